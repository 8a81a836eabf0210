"""The page's files: what is served, under which policy, and that nothing in them asks another host or parses markup."""

import json
import re
from html.parser import HTMLParser
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import PurePath
from urllib.parse import urlsplit

import pytest
from serving import Served

FOLDER = files("edge_llama.server").joinpath("page")
NAMES = sorted(each.name for each in FOLDER.iterdir())
SCRIPTS = [name for name in NAMES if name.endswith(".js")]
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def text_of(name: str) -> str:
    return FOLDER.joinpath(name).read_text("utf-8")


PARSERS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|DOMParser|document\.write|\beval\b|new Function"
)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text_of("index.html"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", ["/", "/page/index.html", "/page/style.css"])
def test_the_policy_lets_nothing_in_but_the_servers_own(served: Served, path: str) -> None:
    response = served.client.get(path)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_served_as_what_it_is(served: Served, name: str) -> None:
    response = served.client.get(f"/page/{name}")
    assert response.status_code == 200
    assert response.headers["content-type"] == f"{MEDIA_TYPES[PurePath(name).suffix]}; charset=utf-8"
    assert response.text == text_of(name)


def test_a_browser_that_has_a_file_is_sent_nothing(served: Served) -> None:
    first = served.client.get("/")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"another", {tag}'):
        again = served.client.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert served.client.get("/", headers={"If-None-Match": '"another"'}).status_code == 200
    assert served.client.get("/page/style.css").headers["etag"] != tag


def test_a_file_is_asked_about_each_time_but_for_the_icon(served: Served) -> None:
    kept = {name: served.client.get(f"/page/{name}").headers["cache-control"] for name in NAMES}
    assert {name for name, how in kept.items() if how != "no-cache"} == {"icon.svg"}


@pytest.mark.parametrize(
    "path",
    [
        "/page/none.js",
        "/page/",
        "/page/..%2fpage_routes.py",
        "/page/%2e%2e/page_routes.py",
        "/page/..",
        "/page/index.html%00",
    ],
)
def test_there_are_no_other_files(served: Served, path: str) -> None:
    connection = HTTPConnection(urlsplit(served.url).netloc, timeout=60)  # httpx would resolve the dots
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 404
    assert json.load(response)["error"]["type"] == "invalid_request_error"
    connection.close()


def test_a_head_request_gets_headers_alone(served: Served) -> None:
    response = served.client.head("/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(text_of("index.html").encode())


def test_what_the_page_refers_to_is_there() -> None:
    referred = {value for _, given in Elements().found for key in ("src", "href") if (value := given.get(key))}
    modules = {each for name in SCRIPTS for each in re.findall(r'from "\./([^"]+)"', text_of(name))}
    assert {value for value in referred if not value.startswith("#")} <= {f"page/{name}" for name in NAMES}
    assert modules <= set(NAMES)
    assert {f"page/{name}" for name in NAMES} - referred - {"page/index.html"} == {f"page/{name}" for name in modules}


def test_each_symbol_that_is_used_is_drawn_and_each_id_is_there() -> None:
    ids = [given["id"] for _, given in Elements().found if given.get("id")]
    assert len(ids) == len(set(ids))
    calls = re.compile(r'(?:\bicon\(|iconButton\(|\? icon\()"(\w+)"')
    symbols = {f"icon-{each}" for name in SCRIPTS for each in calls.findall(text_of(name))}
    targets = {given["href"] or "" for _, given in Elements().found if "href" in given}
    asked = {each for name in SCRIPTS for each in re.findall(r'byId\("([\w-]+)"\)', text_of(name))}
    assert symbols | asked | {each[1:] for each in targets if each.startswith("#")} <= set(ids)


def test_no_script_and_no_style_stands_in_the_page() -> None:
    for tag, given in Elements().found:
        assert tag != "style"
        assert "style" not in given
        assert not [name for name in given if name.startswith("on")]
        assert tag != "script" or given["src"]


@pytest.mark.parametrize("name", NAMES)
def test_no_other_host_is_named(name: str) -> None:
    named = set(re.findall(r"(?:https?:)?//[a-z0-9][\w.-]*\.[a-z]{2,}[^\s\"']*", text_of(name)))
    assert named <= {"http://www.w3.org/2000/svg"}  # a name, not an address


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_parses_markup_or_code(name: str) -> None:
    assert not PARSERS.search(text_of(name))


def test_the_page_is_told_of_its_model(served: Served) -> None:
    assert served.model.n_ctx == 2048  # loaded
    facts = served.client.get("/page/facts.json").json()
    (model,) = facts["models"]
    assert {name: model[name] for name in ("name", "loaded", "n_ctx", "vision", "thinks", "engine", "device")} == {
        "name": served.name,
        "loaded": True,
        "n_ctx": 2048,
        "vision": False,
        "thinks": False,
        "engine": "llama.cpp",
        "device": "CPU",
    }
    assert model["bytes"] > 1e6
    assert facts["limits"]["body_bytes"] > 1e6


def test_facts_are_not_kept_by_browsers(served: Served) -> None:
    response = served.client.get("/page/facts.json")
    assert response.headers["cache-control"] == "no-store"
