"""``/tokenize`` and ``/detokenize``, in llama-server's form."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from edge_llama.model import Model
from edge_llama.server.described import Said
from edge_llama.server.fields import Fields, Refused
from edge_llama.server.handling import Here, model_name, worked
from edge_llama.server.openai.objects import responses
from edge_llama.server.token_ids import TokenIds, check_ids

router = APIRouter()
_LONGEST = 1 << 20
"""Characters: some tokenizers take half a minute for a million newlines, and can't be stopped."""


class TokenizeFields(Fields):
    """A text to cut into tokens."""

    content: str = Field(max_length=_LONGEST, description="The text; at most 1,048,576 characters.")
    add_special: bool | None = Field(None, description="With the tokens that the model wants before and after a text.")
    with_pieces: bool | None = Field(None, description="Each token with its text.")
    model: str | None = Field(None, description="An extension: a model's name or alias, where there are several.")
    parse_special: Annotated[
        Any, Refused("text is never read as control tokens, here as in prompts", allowed=(False,))
    ] = None


class DetokenizeFields(Fields):
    """Tokens to join to a text."""

    tokens: TokenIds = Field(description="Their ids, at most 262,144.")
    model: str | None = Field(None, description="An extension: a model's name or alias, where there are several.")


class TokenPiece(Said):
    """A token and its text."""

    id: int
    piece: str | list[int] = Field(description="Its text; its bytes where they are a part of a character.")


class Tokens(Said):
    """The tokens of a text."""

    tokens: list[int] | list[TokenPiece]


class Content(Said):
    """The text of tokens."""

    content: str


@router.post("/tokenize", responses=responses(Tokens))
async def tokenize(request: Request, fields: TokenizeFields, server: Here) -> Response:
    """The ids that the model makes of a text: nothing in it becomes a control token."""

    def work(model: Model) -> dict[str, Any]:
        before, after = model.tokenizer.frame if fields.add_special else ((), ())
        ids = [*before, *model.tokenizer.encode(fields.content), *after]
        pieces = fields.with_pieces
        return {"tokens": [{"id": token, "piece": _piece(model, token)} for token in ids] if pieces else ids}

    return await worked(request, fields, model_name(server, fields.model), work)


@router.post("/detokenize", responses=responses(Content))
async def detokenize(request: Request, fields: DetokenizeFields, server: Here) -> Response:
    """The text of tokens; control tokens by their names, parts of characters as U+FFFD."""

    def work(model: Model) -> dict[str, Any]:
        tokenizer = model.tokenizer
        check_ids(fields.tokens, "tokens", tokenizer)
        control = {token: text for text, token in tokenizer.control_tokens.items()}
        data = b"".join(
            control[token].encode() if token in control else tokenizer.piece(token) for token in fields.tokens
        )
        text = data.decode("utf-8", "replace")
        # Some vocabularies put a blank before a text. A token may be 128 of them: what is too long to be cut stays so.
        is_before = len(text) <= _LONGEST and text.startswith(" ") and tokenizer.encode(text[1:]) == fields.tokens
        return {"content": text[1:] if is_before else text}

    return await worked(request, fields, model_name(server, fields.model), work)


def _piece(model: Model, token: int) -> str | list[int]:
    data = model.tokenizer.piece(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
