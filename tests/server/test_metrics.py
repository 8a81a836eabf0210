"""What a server tells of its work: numbers, and nothing that a client wrote."""

import gc
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served
from talk import ANSWER, QUESTION, talking

from edge_llama.server.asking import Answers


@pytest.fixture(scope="module")
def served(small_talk: Path) -> Iterator[Served]:
    with talking(small_talk) as server:
        yield server


def line_of(response: httpx.Response, caplog: pytest.LogCaptureFixture) -> str:
    """The one line of a request, which is written when all of the response is."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        lines = [record.getMessage() for record in caplog.records if record.name == "edge_llama.server"]
        if found := [line for line in lines if line.endswith(response.headers["x-request-id"])]:
            (line,) = found
            return line
        time.sleep(0.005)
    raise AssertionError("there is no line")


def value(server: Served, name: str, **labels: str) -> float:
    """Of one sample of ``/metrics``; 0 if there is none."""
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples)
    return next((each.value for each in samples if each.name == name and labels.items() <= each.labels.items()), 0.0)


def test_requests_are_counted_by_endpoint_and_status(served: Served) -> None:
    labels = {"method": "GET", "endpoint": "/health", "status": "200"}
    before = value(served, "edge_llama_requests_total", **labels)
    served.client.get("/health?a=b")
    assert value(served, "edge_llama_requests_total", **labels) == before + 1
    assert value(served, "edge_llama_request_seconds_count", endpoint="/health") >= before + 1
    assert value(served, "edge_llama_requests_running") == 1  # the one that asks


def test_no_label_is_a_clients_text(served: Served) -> None:
    response = served.client.request("BREW", "/secret/path?secret=query", headers={"x-secret": "1"})
    assert response.status_code == 404
    found = served.client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=")
    assert "secret" not in found.text
    assert "BREW" not in found.text
    assert value(served, "edge_llama_requests_total", method="other", endpoint="other", status="404") >= 1


def test_a_loaded_model_tells_its_numbers(served: Served) -> None:
    served.model.generate("Once upon a time", regex=".{200}", max_tokens=4).result()  # no draw ends it
    name = served.name
    assert value(served, "edge_llama_models_loaded") == 1
    assert value(served, "edge_llama_model_cells", model=name) == 1024
    assert value(served, "edge_llama_model_generated_tokens_total", model=name) >= 3
    assert value(served, "edge_llama_model_prompt_tokens_total", model=name) >= 4
    assert value(served, "edge_llama_model_seconds_total", model=name) > 0
    assert value(served, "edge_llama_model_queued", model=name) == 0


def test_a_request_is_one_line_without_content(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edge_llama.server"):
        response = served.client.post("/v1/no%1bsuch%20200%20prompt=9?secret=1", json={"secret": "secret"})
        line = line_of(response, caplog)
    assert re.fullmatch(rf"POST /v1/no%1bsuch%20200%20prompt=9 404 \d+ ms {response.headers['x-request-id']}", line)


@pytest.mark.parametrize(("path", "is_streamed"), [("/v1/chat/completions", False), ("/v1/messages", True)])
def test_tokens_of_a_request_are_told_and_counted(
    served: Served, caplog: pytest.LogCaptureFixture, path: str, is_streamed: bool
) -> None:
    asked = {"model": served.name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64}
    names = {name: f"edge_llama_{name}_tokens_total" for name in ("prompt", "cached", "generated")}
    before = {name: value(served, total, model=served.name) for name, total in names.items()}
    with caplog.at_level(logging.INFO, "edge_llama.server"):
        response = served.client.post(path, json={**asked, "stream": is_streamed, "temperature": 0})
        line = line_of(response, caplog)
    assert response.status_code == 200
    assert ANSWER in response.text or is_streamed
    found = re.fullmatch(rf"POST {path} 200 prompt=(\d+) cached=(\d+) generated=(\d+) \d+ ms req_\w+", line)
    assert found, line
    told = dict(zip(names, map(int, found.groups()), strict=True))
    assert told["prompt"] > told["cached"]
    assert told["generated"] > 5
    counted = {name: value(served, total, model=served.name) - before[name] for name, total in names.items()}
    assert counted == told


def test_a_connection_that_rests_holds_no_answers(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"model": served.name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
    with caplog.at_level(logging.INFO, "edge_llama.server"):
        line_of(served.client.post("/v1/chat/completions", json=asked), caplog)
    until = time.monotonic() + 10
    while gc.collect() >= 0 and any(type(each) is Answers for each in gc.get_objects()):
        assert time.monotonic() < until, "there are some"


def test_tokens_of_all_prompts_are_told(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"model": served.name, "prompt": ["Once upon a time", "Hello"], "n": 2, "max_tokens": 4}
    with caplog.at_level(logging.INFO, "edge_llama.server"):
        response = served.client.post("/v1/completions", json=asked)
        line = line_of(response, caplog)
    usage = response.json()["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert f" prompt={usage['prompt_tokens']} cached={cached} generated={usage['completion_tokens']} " in line
    assert usage["prompt_tokens"] > len(served.model.tokenizer.encode("Once upon a time"))


def test_embedded_texts_are_counted(served: Served) -> None:
    total = "edge_llama_prompt_tokens_total"
    before = value(served, total, model=served.name)
    response = served.client.post("/v1/embeddings", json={"model": served.name, "input": ["one", "two three"]})
    assert value(served, total, model=served.name) - before == response.json()["usage"]["prompt_tokens"] > 0


def test_a_server_that_is_about_to_end_says_so_and_takes_nothing(served: Served) -> None:
    traffic = served.app.state.server.traffic
    traffic.is_draining = True
    try:
        health, other = served.client.get("/health"), served.client.post("/v1/messages", json={})
    finally:
        traffic.is_draining = False
    assert (health.status_code, health.json()["status"]) == (503, "draining")
    assert (other.status_code, other.json()["error"]["type"]) == (503, "overloaded_error")
    assert other.headers["retry-after"]
