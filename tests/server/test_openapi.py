"""The OpenAPI document is true: schemathesis draws requests by it, right ones and wrong ones, streams among them.

Every response must be one that the document tells of: its status, its media type, its body, each event of a stream. A
wrong request must not be accepted, no request may bring a 5xx or end the server, and a method that is not there is 405.
``EDGE_LLAMA_CASES`` draws more than the few that the suite has time for; ``EDGE_LLAMA_SEED`` others.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, seed, settings
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from serving import Served, serve

from edge_llama.server.pool import Pool
from edge_llama.server.settings import Limits, ServerSettings

CASES = int(os.environ.get("EDGE_LLAMA_CASES", "12"))
"""For each operation."""
SEED = int(os.environ.get("EDGE_LLAMA_SEED", "0"))
CONFIG = {
    "generation": {"mode": "all", "database": "none"},
    "phases": {"coverage": {"enabled": "EDGE_LLAMA_CASES" in os.environ}, "examples": {"enabled": False}},
    "checks": {
        # A prompt that is too long, a tool that a template doesn't show: no schema can say it.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404"]},
    },
}


@pytest.fixture(scope="module")
def served(small_talk: Path) -> Iterator[Served]:
    pool = Pool([str(small_talk)], {"n_ctx": 256, "threads": 1}, isolate=False)
    limits = Limits(max_tokens=8, choices=2)
    with serve(pool, ServerSettings(limits=limits)) as served:
        yield served


@pytest.fixture(scope="module")
def document(served: Served) -> schemathesis.BaseSchema:
    config = SchemathesisConfig.from_dict(CONFIG)
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json", config=config)


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@seed(SEED)
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_every_response_is_as_the_document_says(case: Case, served: Served) -> None:
    case.call_and_validate(timeout=60)
    assert served.client.get("/health").status_code == 200


def test_every_operation_is_described(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    operations = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert operations >= {
        ("/v1/chat/completions", "post"),
        ("/v1/completions", "post"),
        ("/v1/embeddings", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{name}", "get"),
        ("/tokenize", "post"),
        ("/detokenize", "post"),
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"], path
