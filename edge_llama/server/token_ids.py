"""Token ids as a request gives them."""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import Field

from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.server.failures import ApiError

_Id: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds: TypeAlias = Annotated[list[_Id], Field(max_length=1 << 18)]
"""Those of one text."""


def check_ids(ids: Sequence[int], field: str, tokenizer: Tokenizer) -> None:
    """ApiError for one that is no token's."""
    for token in ids:
        if token >= tokenizer.n_vocab:
            raise ApiError(400, f"{field}: there is no token {token}, ids are below {tokenizer.n_vocab}", param=field)
