"""Texts that a request gives as such or as token ids."""

from collections.abc import Sequence

from edge_llama.errors import ContextFullError
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.server.asking import Tokens
from edge_llama.server.failures import ApiError
from edge_llama.server.token_ids import check_ids


def texts_of(
    given: str | list[str] | list[int] | list[list[int]], field: str, tokenizer: Tokenizer, n_ctx: int
) -> list[str]:
    """One text or several; ``field`` is where they stand. Raises what :func:`text_of` does."""
    if isinstance(given, str):
        return [given]
    texts = [each for each in given if isinstance(each, str)]
    ids = [each for each in given if isinstance(each, int)]
    lists = [each for each in given if isinstance(each, list)]
    if ids:
        return [text_of(ids, field, tokenizer, n_ctx)]
    return texts or [text_of(each, f"{field}.{at}", tokenizer, n_ctx) for at, each in enumerate(lists)]


def tokens_of(given: str | list[str] | list[int] | list[list[int]], field: str, tokenizer: Tokenizer) -> list[Tokens]:
    """One text or several by their ids, as they are. ApiError for what is none."""
    lists = [each for each in given if isinstance(each, list)]
    ids = [each for each in given if isinstance(each, int)]
    found = [ids] if ids else lists
    if isinstance(given, str) or len(found) != (1 if ids else len(given)):
        raise ApiError(400, f"{field}: allow_control_tokens is for token ids: a text has none", param=field)
    for at, each in enumerate(found):
        check_ids(each, field if ids else f"{field}.{at}", tokenizer)
    return [Tokens(tuple(each)) for each in found]


def text_of(ids: Sequence[int], field: str, tokenizer: Tokenizer, n_ctx: int) -> str:
    """The text that the model makes these ids of, with or without what it wants before and after one.

    ApiError if there is none: only text is given to the model, so that no id can be a control token. ContextFullError,
    before anything is made of them, for more than fit.
    """
    own = _without_frame(list(ids), tokenizer)
    if len(own) > n_ctx:
        raise ContextFullError(len(own), n_ctx, text=field)
    check_ids(own, field, tokenizer)
    data = b"".join(tokenizer.piece(token) for token in own)
    text = data.decode("utf-8", "replace")
    # Some vocabularies put a blank before a text.
    for each in (text, text.removeprefix(" ")):
        if tokenizer.encode(each) == own:
            return each
    raise ApiError(
        400,
        f"{field}: these are not the token ids that the model makes of their text: give the text itself, or what "
        f"/tokenize makes of it",
        param=field,
    )


def _without_frame(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    before, after = map(list, tokenizer.frame)
    if before and ids[: len(before)] == before:
        ids = ids[len(before) :]
    return ids[: -len(after)] if after and ids[-len(after) :] == after else ids
