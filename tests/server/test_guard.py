"""Who may ask: the whole matrix of Host, Origin, key and endpoint, and what browsers are told."""

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Served, exchanged, serve

from edge_llama.errors import OptionError
from edge_llama.server.addresses import Authority, Hosts, Origin
from edge_llama.server.gate import Gate
from edge_llama.server.guard import SECURITY
from edge_llama.server.pool import Pool
from edge_llama.server.settings import ServerSettings

CASES = int(os.environ.get("EDGE_LLAMA_CASES", "12"))
KEY = "sk-the-server's-own"
ALLOWED = "https://chat.example.org"
GOOD_HOSTS = [
    "LOCALHOST.:1234",
    "[::1]:8080",
    "ported.lan:7000",
    "localhost",
    "127.0.0.1",
    "127.9.9.9:80",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "box.lan",
    "Box.LAN.:9999",
]
BAD_HOSTS = [
    "evil.example",
    "localhost.evil.example",
    "ported.lan:7001",
    "192.168.1.7",
    "",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "evil-localhost",
    "ported.lan",
    "localhost:99999",
    "localhost:x",
    "localhost:0",
    "user@localhost",
    "localhost,evil.example",
    "localhost/",
    "::1",
    "[::2]",
    "2130706433",
    "0.0.0.0",
]
OWN = "own"
GOOD_ORIGINS = [None, OWN, ALLOWED, "HTTPS://Chat.Example.Org:443"]
BAD_ORIGINS = [
    "null",
    "http://evil.example",
    "http://localhost:3000",
    "https://chat.example.org:444",
    "",
    "*",
    "http://chat.example.org",
    "https://chat.example.org.evil.example",
    "https://chat.example.org@evil.example",
    "file://",
]
GOOD_KEYS: list[dict[str, Any]] = [
    {"authorization": f"Bearer {KEY}"},
    {"authorization": f"bearer  {KEY}"},
    {"x-api-key": KEY},
]
BAD_KEYS: list[dict[str, Any]] = [
    {},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": KEY},
    {"authorization": f"Basic {KEY}"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"x-api-key": KEY.upper()},
    {"x-api-key": "ключ".encode()},
]
OPEN = [("GET", "/health"), ("GET", "/"), ("GET", "/page/page.js")]
CLOSED = [
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/messages"),
    ("DELETE", "/v1/responses/resp_1"),
    ("GET", "/page/facts.json"),
    ("GET", "/openapi.json"),
    ("POST", "/health"),
    ("GET", "/no/such/path"),
]


@pytest.fixture(scope="module")
def locked(small_talk: Path) -> Iterator[Served]:
    """A server that wants a key, with a name of its own and a site that may ask. It loads no model."""
    wanted = ServerSettings(api_key=KEY, allowed_hosts=("box.lan", "ported.lan:7000"), allowed_origins=(ALLOWED,))
    with serve(Pool([str(small_talk)], isolate=False), wanted) as server:
        yield server


def ask(server: Served, method: str, path: str, headers: dict[str, Any]) -> httpx.Response:
    """A request with just these headers, and a body where one belongs."""
    request = httpx.Request(method, server.url + path, headers=headers, json={} if method == "POST" else None)
    return server.client.send(request)


def is_refused(response: httpx.Response) -> bool:
    return response.status_code in (401, 403)


def check_error(response: httpx.Response, path: str) -> None:
    """The error has the form of the API that was asked."""
    error = response.json()
    assert ("type" in error) == path.startswith("/v1/messages")
    assert error["error"]["message"]


@pytest.mark.parametrize("origin", GOOD_ORIGINS[:3] + BAD_ORIGINS[:4])
@pytest.mark.parametrize(("method", "path"), OPEN[:2] + CLOSED[:6])
def test_the_whole_matrix(locked: Served, method: str, path: str, origin: str | None) -> None:
    for host, key in product(GOOD_HOSTS[:3] + BAD_HOSTS[:4], (GOOD_KEYS[0], BAD_KEYS[0], BAD_KEYS[1])):
        given = f"http://{host}" if origin == OWN else origin
        response = ask(locked, method, path, {"host": host, **key} | ({} if given is None else {"origin": given}))
        may_name, may_ask = host in GOOD_HOSTS, origin in GOOD_ORIGINS
        has_key = key in GOOD_KEYS or (method, path) in OPEN
        expected = 403 if not (may_name and may_ask) else None if has_key else 401
        assert (response.status_code if is_refused(response) else None) == expected, (host, key, response.text)
        if expected:
            check_error(response, path)
        shown = response.headers.get("access-control-allow-origin")
        assert shown == (given if may_name and origin == ALLOWED else None)
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["vary"] == "Origin"
        assert {name: response.headers.get(name) for name in SECURITY} == SECURITY


@pytest.mark.parametrize("host", GOOD_HOSTS + BAD_HOSTS)
def test_hosts(locked: Served, host: str) -> None:
    response = ask(locked, "GET", "/health", {"host": host})
    assert response.status_code == (200 if host in GOOD_HOSTS else 403)
    if host in GOOD_HOSTS:
        assert ask(locked, "GET", "/health", {"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("origin", GOOD_ORIGINS + BAD_ORIGINS)
def test_origins(locked: Served, origin: str | None) -> None:
    given = locked.url if origin == OWN else origin
    response = ask(locked, "GET", "/health", {} if given is None else {"origin": given})
    assert response.status_code == (200 if origin in GOOD_ORIGINS else 403)
    assert response.headers.get("access-control-allow-origin") == (given if origin in GOOD_ORIGINS[2:] else None)


@pytest.mark.parametrize("key", GOOD_KEYS + BAD_KEYS, ids=str)
@pytest.mark.parametrize(("method", "path"), OPEN + CLOSED)
def test_keys(locked: Served, method: str, path: str, key: dict[str, Any]) -> None:
    response = ask(locked, method, path, key)
    is_let_in = key in GOOD_KEYS or (method, path) in OPEN
    assert is_refused(response) != is_let_in
    if not is_let_in:
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text


def test_a_server_without_a_key_asks_for_none(served: Served) -> None:
    assert ask(served, "GET", "/metrics", {}).status_code == 200


def test_ids_are_unlike_and_told_as_each_api_has_them(locked: Served) -> None:
    responses = [ask(locked, "POST", path, {}) for path in ("/v1/messages", "/v1/messages", "/v1/completions")]
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == 3
    assert [response.headers.get("request-id") for response in responses] == [*ids[:2], None]


def preflight(server: Served, origin: str, **more: str) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return ask(server, "OPTIONS", "/v1/chat/completions", headers)


def test_a_preflight_says_what_an_allowed_page_may_send(locked: Served) -> None:
    wanted = "authorization,content-type,x-stainless-os"
    response = preflight(locked, ALLOWED, access_control_request_headers=wanted)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == ALLOWED
    assert response.headers["access-control-allow-headers"] == wanted
    assert {"GET", "POST", "DELETE"} <= set(response.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-private-network" not in response.headers
    assert {"Origin", "Access-Control-Request-Headers"} <= set(response.headers["vary"].split(", "))
    assert not response.content


def test_a_preflight_of_a_page_on_the_internet_asks_for_the_private_network(locked: Served) -> None:
    response = preflight(locked, ALLOWED, access_control_request_private_network="true")
    assert response.headers["access-control-allow-private-network"] == "true"


def test_a_preflight_of_another_page_is_told_nothing(locked: Served) -> None:
    for origin in BAD_ORIGINS:
        response = preflight(locked, origin, access_control_request_private_network="true")
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_preflight_echoes_no_garbage(locked: Served) -> None:
    response = preflight(locked, ALLOWED, access_control_request_headers="a b; c=\t<script>")
    assert response.status_code == 204
    assert "access-control-allow-headers" not in response.headers


def test_an_allowed_page_can_read_why_it_was_refused(locked: Served) -> None:
    response = ask(locked, "GET", "/v1/models", {"origin": ALLOWED})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == ALLOWED


def test_an_address_is_the_servers_where_the_connection_came_to_it() -> None:
    hosts = Hosts("0.0.0.0", ())
    lan = Authority("192.168.1.7", 8080)
    assert hosts.allow(lan, "192.168.1.7")
    assert hosts.allow(lan, "::ffff:192.168.1.7")
    assert not hosts.allow(lan, "127.0.0.1")
    assert not hosts.allow(Authority("evil.example"), "192.168.1.7")


def test_the_name_that_a_server_listens_at_is_its_own() -> None:
    assert Hosts("Box.lan", ()).allow(Authority("box.lan", 1), None)


@pytest.mark.parametrize("text", ["*", "null", "chat.example.org", "https://", "https://*.example.org", "https://a/b"])
def test_an_origin_that_is_none_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(OptionError, match="--allow-origin"):
        Gate(ServerSettings(allowed_origins=(text,)))


@pytest.mark.parametrize("text", ["", "*", "a b", "http://box.lan", "box.lan:0", "[::1"])
def test_a_host_that_is_none_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(OptionError, match="--allow-host"):
        Gate(ServerSettings(allowed_hosts=(text,)))


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_a_key_that_no_header_carries_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(OptionError, match="--api-key"):
        Gate(ServerSettings(api_key=key))


names = st.from_regex(r"[A-Za-z0-9-]{1,20}(\.[A-Za-z0-9-]{1,20}){0,3}\.?", fullmatch=True)
addresses = st.ip_addresses().map(lambda each: f"[{each}]" if each.version == 6 else str(each))
ports = st.none() | st.integers(1, 65535)


@given(names | addresses, ports)
def test_writing_a_host_otherwise_changes_nothing(host: str, port: int | None) -> None:
    given_port = "" if port is None else f":{port}"
    found = Authority.parse(host + given_port)
    assert found
    again = f"[{found.host}]" if ":" in found.host else found.host
    assert Authority.parse(again.upper() + given_port) == found
    assert found.port == port
    assert Origin.parse(f"http://{host}{given_port}").is_of(found)  # type: ignore[union-attr] # it is one


@given(st.text(max_size=60))
def test_no_text_is_taken_for_a_host_by_mistake(text: str) -> None:
    """What is understood has no character that could hide another host."""
    if found := Authority.parse(text):
        assert not set(found.host) & set("@/\\?#,% \t\r\n")
        assert found.host.isascii()


header_bytes = st.binary(max_size=40)


@settings(max_examples=10 * CASES, deadline=None)
@given(st.lists(st.tuples(header_bytes, header_bytes), max_size=5))
def test_garbage_in_headers_is_refused_or_harmless(locked: Served, pairs: list[tuple[bytes, bytes]]) -> None:
    lines = b"".join(name + b":" + value + b"\r\n" for name, value in pairs)
    answer = exchanged(locked, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n" + lines + b"connection: close\r\n\r\n")
    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    error, _ = json.JSONDecoder().raw_decode(body.decode())  # an empty line among the headers makes two requests
    assert error["error"]["message"]
    assert b"nosniff" in head
