"""The OpenAPI document is true: schemathesis draws requests by it, right ones and wrong ones, streams among them.

Every response must be one that the document tells of: its status, media type, headers and body, and each event of a
stream. No wrong request may be accepted, and none may bring a 5xx or end the server. ``EDGE_LLAMA_CASES`` draws more of
each kind than the few that the suite has time for, and others in each run.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig
from serving import Served, serve
from talk import TEMPLATE

from edge_llama.server.pool import Pool
from edge_llama.server.settings import Limits, ServerSettings

CASES = os.environ.get("EDGE_LLAMA_CASES")
"""For each operation: so many by the document, and so many against it."""
FEW = 4
OPERATIONS = (
    ("get", "/health"),
    ("get", "/metrics"),
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("post", "/v1/embeddings"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{name}"),
    ("post", "/v1/responses"),
    ("post", "/v1/responses/input_tokens"),
    ("get", "/v1/responses/{response_id}"),
    ("delete", "/v1/responses/{response_id}"),
    ("get", "/v1/responses/{response_id}/input_items"),
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("post", "/v1/messages"),
    ("post", "/v1/messages/count_tokens"),
)
MODES = {"right": GenerationMode.POSITIVE, "streamed": GenerationMode.POSITIVE, "wrong": GenerationMode.NEGATIVE}
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
CONFIG = {
    "checks": {
        # A prompt that is too long, a tool that a template doesn't show, a model that is not there: no schema says it.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404"]},
    },
}


@pytest.fixture(scope="module")
def served(small_talk: Path) -> Iterator[Served]:
    pool = Pool([str(small_talk)], {"n_ctx": 512, "threads": 1, "chat_template": TEMPLATE}, isolate=False)
    with serve(pool, ServerSettings(limits=Limits(choices=2))) as served:
        yield served


@pytest.fixture(scope="module")
def document(served: Served) -> Any:
    config = SchemathesisConfig.from_dict(CONFIG)
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json", config=config)


def _make_likely(body: dict[str, Any], path: str, model: str, *, is_streamed: bool) -> None:
    """Of a request by the document one that will hardly be refused for what a document can't say."""
    if "model" in body:
        body["model"] = model
    if is_streamed:
        body["stream"] = True
    if path.startswith("/v1/responses"):
        body.pop("previous_response_id", None)
        body.setdefault("input", "Hello!")


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (method, path, mode)
        for method, path in OPERATIONS
        for mode in MODES
        if mode == "right" or (method == "post" and (mode == "wrong" or path in STREAMED))  # paths can't be wrong
    ],
)
def test_every_response_is_as_the_document_says(
    document: Any, served: Served, method: str, path: str, mode: str
) -> None:
    operation = document[path][method]
    strategy = operation.as_strategy(generation_mode=MODES[mode])

    @settings(
        max_examples=int(CASES or FEW),
        deadline=None,
        derandomize=CASES is None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def check(case: Case) -> None:
        if mode != "wrong" and isinstance(case.body, dict):
            _make_likely(case.body, path, served.name, is_streamed=mode == "streamed")
        statuses.add(case.call_and_validate(timeout=60).status_code)

    statuses: set[int] = set()
    check()
    assert not (CASES and mode != "wrong" and method == "post") or 200 in statuses, "no request was answered"
    assert served.client.get("/health").status_code == 200


def test_these_are_all_operations(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == set(OPERATIONS)
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            assert {"200", "401", "403"} <= set(operation["responses"])
