"""Which models there are, and their tokens."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Served, serve

from edge_llama.server.openai.models import ModelList, ModelObject
from edge_llama.server.pool import Pool
from edge_llama.server.tokens import Content, Tokens


@pytest.fixture(scope="module")
def two(small_talk: Path, tool_llama: Path) -> Iterator[Served]:
    pool = Pool(
        [str(small_talk), str(tool_llama)],
        {"n_ctx": 256, "threads": 1},
        isolate=False,
        aliases={"gpt-4o": "small_talk", "org/name": "small_talk"},
    )
    with serve(pool) as served:
        yield served


def posted(served: Served, path: str, status: int = 200, **fields: Any) -> Any:
    response = served.client.post(path, json=fields)
    assert response.status_code == status, response.text
    return response.json()


def test_the_client_lists_models_and_aliases(two: Served, small_talk: Path) -> None:
    with openai.OpenAI(base_url=f"{two.url}/v1", api_key="none", max_retries=0) as client:
        models = {model.id: model for model in client.models.list()}
        assert {"small_talk", "gpt-4o", "org/name", two.pool.entries[1].name} == set(models)
        assert models["gpt-4o"].created == int(small_talk.stat().st_mtime)
        assert client.models.retrieve("org/name").owned_by == "edge-llama"
        with pytest.raises(openai.NotFoundError, match="there are small_talk"):
            client.models.retrieve("gpt-5")


def test_anthropics_client_lists_the_same(two: Served, small_talk: Path) -> None:
    with anthropic.Anthropic(base_url=two.url, api_key="none", max_retries=0) as client:
        models = {model.id: model for model in client.models.list()}
        assert {"small_talk", "gpt-4o", "org/name", two.pool.entries[1].name} == set(models)
        aliased = client.models.retrieve("gpt-4o")
        assert (aliased.type, aliased.display_name) == ("model", "small_talk")
        assert aliased.created_at == datetime.fromtimestamp(int(small_talk.stat().st_mtime), UTC)
        page = client.models.list()
        assert (page.first_id, page.last_id, page.has_more) == (page.data[0].id, page.data[-1].id, False)


def test_what_is_known_of_a_model_that_is_loaded(two: Served) -> None:
    _ = two.model
    body = two.client.get("/v1/models").json()
    ModelList.model_validate(body)
    facts = {each["id"]: each["edge_llama"] for each in body["data"]}
    assert facts["small_talk"] == {
        "loaded": True,
        "n_ctx": 256,
        "max_tokens": None,
        "device": "cpu",
        "vision": False,
        "embeds_only": False,
        "aliases": ["gpt-4o", "org/name"],
    }
    ModelObject.model_validate(two.client.get("/v1/models/small_talk").json())


def test_a_model_must_be_named_where_there_are_several(two: Served) -> None:
    for path, fields in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/tokenize", {"content": "a"}),
    ):
        error = posted(two, path, 400, **fields)["error"]
        assert (error["param"], "small_talk" in error["message"]) == ("model", True)
    assert posted(two, "/tokenize", content="a", model="gpt-4o") == posted(
        two, "/tokenize", content="a", model="small_talk"
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@pytest.mark.parametrize("model", ["small_talk", "tool_llama"])
def test_text_to_tokens_and_back(two: Served, model: str, text: str) -> None:
    tokens = posted(two, "/tokenize", content=text, model=model)
    Tokens.model_validate(tokens)
    content = posted(two, "/detokenize", model=model, **tokens)
    Content.model_validate(content)
    assert content == {"content": text}


def test_tokens_with_their_pieces(two: Served) -> None:
    plain = posted(two, "/tokenize", content="Hi 🦙", model="small_talk")["tokens"]
    told = posted(two, "/tokenize", content="Hi 🦙", with_pieces=True, model="small_talk")["tokens"]
    Tokens.model_validate({"tokens": told})
    assert [each["id"] for each in told] == plain
    pieces = [each["piece"] for each in told]
    assert b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces) == "Hi 🦙".encode()


def test_no_text_is_a_control_token(two: Served) -> None:
    text = "<|begin_of_text|><|eot_id|>"
    for special in (False, None):
        fields = {"content": text, "model": "tool_llama", "parse_special": special}
        tokens = posted(two, "/tokenize", **fields)["tokens"]
        assert len(tokens) > 2
        assert posted(two, "/detokenize", tokens=tokens, model="tool_llama") == {"content": text}
    assert "parse_special" in posted(two, "/tokenize", 400, content=text, parse_special=True)["error"]["message"]
    added = posted(two, "/tokenize", content="a", add_special=True, model="tool_llama")["tokens"]
    assert posted(two, "/detokenize", tokens=added, model="tool_llama")["content"] == "<|begin_of_text|>a"


def test_a_long_text_of_tokens_is_not_cut_again(two: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = posted(two, "/tokenize", content=" Hello you", model="small_talk")["tokens"]
    monkeypatch.setattr("edge_llama.server.tokens._LONGEST", 5)
    monkeypatch.delattr(type(two.model.tokenizer), "_by_engine")
    assert posted(two, "/detokenize", tokens=tokens, model="small_talk") == {"content": " Hello you"}
    posted(two, "/tokenize", 500, content="never before", model="small_talk")  # it would have been told


def test_more_tokens_than_may_be(two: Served) -> None:
    error = posted(two, "/detokenize", 400, tokens=[5] * 262_145, model="small_talk")["error"]
    assert (error["param"], "at most 262144" in error["message"]) == ("tokens", True)


def test_tokens_that_are_none(two: Served) -> None:
    assert "no token" in posted(two, "/detokenize", 400, tokens=[999_999], model="small_talk")["error"]["message"]
    assert posted(two, "/detokenize", 400, tokens=[-1], model="small_talk")["error"]["param"] == "tokens.0"
    assert posted(two, "/tokenize", 400, content="a" * (1 << 21), model="small_talk")["error"]["param"] == "content"
