"""Whether a server means the same by token ids as the tokenizer here: else it would answer to another text."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from edge_llama.backends.remote.client import Client, RefusedError
from edge_llama.backends.remote.values import WrongReplyError, a_list, a_token, an_object
from edge_llama.errors import OptionError, RemoteError
from edge_llama.prompts.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_TEXT = (
    "The quick brown fox, 1234567890 times: naïve façade; Straße — Привет, мир! 你好，世界。"
    "\n\tdef f(x):\n    return {x: [1.5]}"
)
"""Without what a vocabulary could lack, or cut otherwise and still be the same: rare letters, control tokens."""
_MOST_CONTROL = 64
_NO_ENDPOINT = (400, 404, 405, 422, 501)
"""There is none, or one of another form."""


async def check_vocabulary(
    client: Client, model: str, is_vllm: bool, vocabulary: Tokenizer, n_vocab: int | None
) -> bool:
    """OptionError if the server's ids stand for other texts, or its control tokens have other names.

    Whether it has the endpoints to ask: where it has none, that is told in the log.
    """
    if n_vocab is not None and n_vocab != vocabulary.n_vocab:
        raise _other(client, model, f"it has {n_vocab:,} tokens, the tokenizer {vocabulary.n_vocab:,}")
    try:
        await _check_text(client, model, is_vllm, vocabulary)
        await _check_control(client, model, is_vllm, vocabulary)
    except WrongReplyError as error:
        raise client.error(f"sends what is not understood: {error}") from error
    except _NotAskedError as error:
        _log.warning("%s: whether %s has this tokenizer's vocabulary can't be asked: %s", client.address, model, error)
        return False
    return True


class _NotAskedError(Exception):
    """The server has no such endpoint."""


async def _check_text(client: Client, model: str, is_vllm: bool, vocabulary: Tokenizer) -> None:
    """Its ids of a text must stand for what ours stand for, however it was cut."""
    text, own = _probe(vocabulary)
    body = {"prompt": text, "add_special_tokens": False} if is_vllm else {"content": text, "add_special": False}
    said = await _asked(client, "tokenize", {"model": model, **body})
    ids = _ids(said, vocabulary)
    if ids is None:
        raise _other(client, model, "it makes ids of a text that the tokenizer does not have")
    meant, ours = (b"".join(map(vocabulary.piece, each)).decode("utf-8", "replace").lstrip(" ") for each in (ids, own))
    if meant != ours:
        at = next((at for at, (one, other) in enumerate(zip(meant, ours, strict=False)) if one != other), 0)
        raise _other(client, model, f"its ids of {ours[at : at + 12]!r} stand for {meant[at : at + 12]!r} here")


def _probe(vocabulary: Tokenizer) -> tuple[str, Sequence[int]]:
    """A text and its ids; of a vocabulary that can't express all of it the part in ASCII."""
    try:
        return _TEXT, vocabulary.encode(_TEXT)
    except OptionError:
        text = _TEXT.encode("ascii", "ignore").decode()
        return text, vocabulary.encode(text)


async def _check_control(client: Client, model: str, is_vllm: bool, vocabulary: Tokenizer) -> None:
    """What a template writes must be its control tokens. Blanks don't count: some put them between such."""
    control = sorted(vocabulary.control_tokens.items(), key=lambda each: each[1])[:_MOST_CONTROL]
    if not control:
        return
    said = await _asked(client, "detokenize", {"model": model, "tokens": [token for _, token in control]})
    named = an_object(said, "an answer").get("prompt" if is_vllm else "content")
    if not isinstance(named, str):
        raise _NotAskedError("detokenize gives no text")
    rest = "".join(named.split())
    for text, token in control:
        bare = "".join(text.split())
        if not rest.startswith(bare):
            raise _other(client, model, f"token {token:,} is {text!r:.60} here and {rest[: len(bare)]!r:.60} there")
        rest = rest.removeprefix(bare)


async def _asked(client: Client, endpoint: str, body: Mapping[str, Any]) -> Any:
    try:
        return await client.post(f"{client.address.root}/{endpoint}", body)
    except (RefusedError, RemoteError) as error:
        if error.status in _NO_ENDPOINT:
            raise _NotAskedError(str(error)) from error
        raise


def _ids(said: object, vocabulary: Tokenizer) -> Sequence[int] | None:
    """The ids in an answer; None if one is none of the tokenizer's."""
    try:
        tokens = a_list(an_object(said, "an answer").get("tokens"), "tokens")
    except WrongReplyError as error:
        raise _NotAskedError(str(error)) from error
    try:
        return [a_token(each, vocabulary.n_vocab) for each in tokens]
    except WrongReplyError:
        return None


def _other(client: Client, model: str, why: str) -> OptionError:
    return OptionError(
        f"{client.address}: {model} has another vocabulary than the tokenizer: {why}",
        remedy="give the tokenizer of the model that is served",
    )
