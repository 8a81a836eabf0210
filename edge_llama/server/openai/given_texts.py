"""Texts that a request gives as such or as token ids."""

from collections.abc import Sequence

from edge_llama.errors import ContextFullError
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.server.failures import ApiError


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


def check_ids(ids: Sequence[int], field: str, tokenizer: Tokenizer) -> None:
    """ApiError for one that is no token's."""
    for token in ids:
        if token >= tokenizer.n_vocab:
            raise ApiError(400, f"{field}: there is no token {token}, ids are below {tokenizer.n_vocab}", param=field)


def _without_frame(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    before, after = map(list, tokenizer.frame)
    if before and ids[: len(before)] == before:
        ids = ids[len(before) :]
    return ids[: -len(after)] if after and ids[-len(after) :] == after else ids
