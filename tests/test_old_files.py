"""What commit 2b7ee22 wrote opens: models, sessions, histories, findings about the machine, an unfinished conversion.

``old_files.py`` says how the files came about.
"""

import json
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import old_files
import pytest
from old_files import CAPITAL, DIGITS, MAX_TOKENS, SHORT

import converters
import edge_llama

FILES = Path(__file__).parent / "data" / "old_files"
MODELS = {"llama3-q4_k_m.gguf": 20, "llama3-int4": 33, "digits": 135, "digits-mmproj.gguf": 58}
"""How many tensors each has."""
READ = "left 5, right 4"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The files, to work with."""
    return Path(shutil.copytree(FILES, tmp_path / "old"))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_inspected_and_intact(name: str) -> None:
    told = json.loads(old_files.edge_llama("inspect", FILES / name, "--json").stdout)
    assert len(told["tensors"]) == MODELS[name]
    assert list(told["towers"]) == {"digits": ["text", "vision"], "digits-mmproj.gguf": ["vision"]}.get(name, ["text"])
    intact = json.loads(old_files.edge_llama("verify", FILES / name, "--json").stdout)
    assert (intact["intact"], intact["tensors"]) == (True, MODELS[name])


@pytest.mark.parametrize("name", ["llama3-q4_k_m.gguf", "llama3-int4"])
def test_a_text_model_answers(name: str) -> None:
    with edge_llama.open(FILES / name, n_ctx=512) as model:
        answer = model.chat(temperature=0, max_tokens=8).send(CAPITAL).result()
    assert answer.tokens


@pytest.mark.parametrize("vision", [None, "digits-mmproj.gguf"], ids=["its own", "mmproj"])
def test_a_bundle_reads_a_picture(vision: str | None) -> None:
    with edge_llama.open(FILES / "digits", n_ctx=512, vision=vision and FILES / vision) as model:
        answer = model.chat(temperature=0).send(DIGITS, images=[old_files.picture()]).result()
    assert answer.text == READ


@pytest.mark.parametrize(("to", "output"), [("gguf", "new.gguf"), ("onnx", "new"), ("safetensors", "new")])
def test_a_safetensors_folder_is_converted(to: str, output: str, tmp_path: Path) -> None:
    converters.convert(FILES / "llama3", tmp_path / output, to=to)
    if to == "safetensors":
        written = (tmp_path / output / "model.safetensors").read_bytes()
        assert written == (FILES / "llama3" / "model.safetensors").read_bytes()
    else:
        assert json.loads(old_files.edge_llama("verify", tmp_path / output, "--json").stdout)["intact"]


def test_what_calibrate_measured_goes_into_a_tower(tmp_path: Path, llama4_digits: Path) -> None:
    options: dict[str, Any] = {"tower": "vision", "vision_quant": "a16w8", "calibration": [FILES / "ranges.json"]}
    converters.convert(llama4_digits, tmp_path / "tower", **options)
    with edge_llama.open(FILES / "digits", n_ctx=512, vision=tmp_path / "tower") as model:
        answer = model.chat(temperature=0).send(DIGITS, images=[old_files.picture()]).result()
    assert answer.text == READ


@pytest.mark.parametrize("name", ["llama3-q4_k_m.gguf", "llama3-int4", "digits"])
def test_a_saved_chat_goes_on_without_reading_again(name: str) -> None:
    session = FILES / f"{Path(name).stem}.session"
    kept = header(session)
    with edge_llama.open(FILES / name, **edge_llama.session_settings(session)) as model:
        chat = model.load_chat(session)
        question, answer = (message for message in chat.messages if message.role != "system")
        assert (question.role, answer.role) == ("user", "assistant")
        assert question.content == (DIGITS if name == "digits" else CAPITAL)
        if name == "digits":
            assert answer.content == READ
        going_on = chat.send("Which is on the left?", temperature=0, max_tokens=4).result()
        assert going_on.timings.tiles == 0 or chat.reread_reason
        same_engine = kept["settings"]["engine"] == dict(model._engine.tower.settings)["engine"]
    if same_engine:
        assert chat.reread_reason is None
        assert going_on.timings.cached_tokens >= len(kept["tokens"]) - MAX_TOKENS
    else:
        assert kept["settings"]["engine"] in (chat.reread_reason or "")


def header(session: Path) -> Mapping[str, Any]:
    """A session file's header, read by the format's description alone."""
    raw = session.read_bytes()
    magic, version, nbytes = struct.unpack_from("<8sII", raw)
    assert (magic, version) == (b"edgelses", 1)
    return dict(json.loads(raw[16 : 16 + nbytes]))


class TestHistory:
    """A database with two conversations; of one the KV cache is kept."""

    @pytest.fixture
    def kept(self, old: Path) -> dict[str, str]:
        return {"EDGE_LLAMA_HISTORY": str(old / "history")}

    @pytest.fixture
    def ids(self, kept: dict[str, str]) -> list[str]:
        return [entry["id"] for entry in json.loads(old_files.edge_llama("history", "list", "--json", env=kept).stdout)]

    def test_it_is_listed_shown_and_searched(self, kept: dict[str, str], ids: list[str]) -> None:
        shown = [json.loads(old_files.edge_llama("history", "show", id_, "--json", env=kept).stdout) for id_ in ids]
        asked = [[said["content"] for said in one["messages"] if said["role"] == "user"] for one in shown]
        assert asked == [[CAPITAL, "And of Egypt?"], ["Tell me of llamas."]]
        assert ids[0] in old_files.edge_llama("history", "search", "egypt", env=kept).stdout

    def test_a_conversation_goes_on_with_its_kv_cache(self, old: Path, kept: dict[str, str], ids: list[str]) -> None:
        model = old / "llama3-q4_k_m.gguf"
        saved = header(old / "history" / "kv" / f"{ids[0]}.session")
        done = old_files.edge_llama("chat", model, "--continue", ids[0], *SHORT, stdin="And of Italy?\n", env=kept)
        assert f"{ids[0]} goes on: {CAPITAL}" in done.stderr
        with edge_llama.open(model, n_ctx=512) as opened:
            same_engine = saved["settings"]["engine"] == dict(opened._engine.tower.settings)["engine"]
        assert ("read again" in done.stderr) == (not same_engine)
        cached = re.search(r"\((\d+) cached", done.stderr)
        assert cached
        if same_engine:  # a random model's answer may be other tokens when it is read from its text
            assert int(cached[1]) >= len(saved["tokens"]) - MAX_TOKENS

    def test_one_without_a_kv_cache_is_read_again(self, old: Path, kept: dict[str, str], ids: list[str]) -> None:
        model = old / "llama3-q4_k_m.gguf"
        done = old_files.edge_llama("chat", model, "--continue", ids[1], *SHORT, stdin="And sheep?\n", env=kept)
        assert "it is read again with the next message: its KV cache is not kept any more" in done.stderr
        told = json.loads(old_files.edge_llama("history", "show", ids[1], "--json", env=kept).stdout)
        assert len(told["messages"]) == 4

    def test_it_is_deleted(self, old: Path, kept: dict[str, str], ids: list[str]) -> None:
        old_files.edge_llama("history", "delete", ids[0], "--force", env=kept)
        assert not list((old / "history" / "kv").iterdir())
        left = json.loads(old_files.edge_llama("history", "list", "--json", env=kept).stdout)
        assert [entry["id"] for entry in left] == ids[1:]


def test_findings_about_the_machine_are_used(old: Path, tmp_path: Path) -> None:
    """Those of another machine or build are never found; so each is put under the key that it would have here."""
    foreign = old_files.strangers(old, tmp_path)
    old_files.find_out(old, foreign, tmp_path / "cache")
    today = {path: json.loads(path.read_text("utf-8")) for path in sorted((tmp_path / "cache").glob("*/*.json"))}
    before = {path.stem: json.loads(path.read_text("utf-8")) for path in (old / "cache").iterdir()}
    assert {path.parent.name for path in today} == before.keys()
    for path, finding in today.items():
        if "tried" in finding["key"] or "environment" in finding["key"]:
            continue  # trials of GGUF files try more than they did, an engine depends on variables: both are done again
        assert finding["key"].keys() == before[path.parent.name]["key"].keys()
        path.write_text(json.dumps({**finding, "found": before[path.parent.name]["found"]}), "utf-8")
    put = {path: path.read_text("utf-8") for path in today}
    old_files.find_out(old, foreign, tmp_path / "cache")
    assert len({path.parent.name for path in put}) == len(before)
    assert {path: path.read_text("utf-8") for path in put} == put  # nothing was found out anew


class TestUnfinished:
    """A conversion that was stopped half-way."""

    @pytest.fixture
    def output(self, old: Path) -> Path:
        output = old / "llama3-q8_0.gguf"
        (old / "unfinished").rename(converters.partial_folder(output))
        return output

    @pytest.fixture
    def whole(self, old: Path, tmp_path: Path) -> bytes:
        converters.convert(old / "llama3", tmp_path / "llama3-q8_0.gguf", quant="q8_0")
        return (tmp_path / "llama3-q8_0.gguf").read_bytes()

    def test_of_a_folder_elsewhere_is_begun_anew(self, old: Path, output: Path, whole: bytes) -> None:
        done = converters.convert(old / "llama3", output, quant="q8_0")
        assert done.resumed_bytes == 0
        assert output.read_bytes() == whole
        assert not converters.partial_folder(output).exists()

    def test_of_this_folder_goes_on(self, old: Path, output: Path, whole: bytes) -> None:
        """The journal begins with a hash of, among others, the source's place and its files' times: set to those."""
        journal = converters.partial_folder(output) / "journal"
        key = converters.plan(old / "llama3", output, quant="q8_0").key
        journal.write_text("\n".join([key, *journal.read_text("ascii").splitlines()[1:], ""]), "ascii")
        done = converters.convert(old / "llama3", output, quant="q8_0")
        assert done.resumed_bytes > 0
        assert output.read_bytes() == whole
        assert not converters.partial_folder(output).exists()
