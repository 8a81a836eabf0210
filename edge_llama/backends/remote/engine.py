"""The engine for models that a server runs: the door, which loads httpx only to connect."""

from edge_llama.backends.remote.address import key_of, parsed
from edge_llama.backends.token_stream import TokenStream
from edge_llama.errors import OptionError
from edge_llama.prompts.tokenizer import Tokenizer


class Remote:
    """Keeps the Protocol :class:`edge_llama.backends.token_stream.RemoteEngine`."""

    async def connect(
        self, url: str, *, model: str | None, vocabulary: Tokenizer, n_ctx: int | None, key_variable: str | None
    ) -> TokenStream:
        """See the Protocol."""
        address, key = parsed(url), key_of(key_variable)
        try:
            from edge_llama.backends.remote.client import Client  # noqa: PLC0415 - loads httpx, an extra
            from edge_llama.backends.remote.served import found  # noqa: PLC0415
        except ImportError as error:
            raise OptionError(
                f"{address}: a model on a server needs httpx, which cannot be loaded: {error}",
                remedy='pip install "edge-llama[remote]"',
            ) from error
        client = Client(address, key)
        try:
            return await found(client, model, vocabulary, n_ctx)
        except BaseException:
            await client.close()
            raise


ENGINE = Remote()
