"""``edge-llama evaluate``."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import ggufs
import perplexity_numbers
import pytest
from terminals import Terminal

from edge_llama.cli.evaluate_overlap import DATASET, HASHES, OWN, warnings
from edge_llama.fidelity.texts import Text, default_texts, hashes
from edge_llama.files.gguf import string

Cli = Callable[..., subprocess.CompletedProcess[str]]
SMALL_TALK = Path(__file__).parent.parent / "data" / "small_talk.gguf"
SHORT = ("--n-ctx", 64, "--threads", 1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "known.txt"
    path.write_text(perplexity_numbers.text(), "utf-8")
    return path


@pytest.fixture(scope="module")
def full(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model in f32."""
    return ggufs.all_in(small_talk, tmp_path_factory.mktemp("full") / "full.gguf", "f32")


@pytest.fixture(scope="module")
def small(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model in Q4_0."""
    return ggufs.all_in(small_talk, tmp_path_factory.mktemp("small") / "small.gguf", "q4_0")


def test_the_table_has_a_row_for_all_domains_and_texts(cli: Cli, small: Path, full: Path, text: Path) -> None:
    other = text.with_name("other.txt")
    other.write_text(perplexity_numbers.text().swapcase(), "utf-8")
    done = cli("evaluate", small, text, other, "--reference", full, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "small.gguf against full.gguf" in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines() if re.search(r"\d ± \d", line)]
    assert rows == 2 * ["all", "known.txt", "other.txt"]
    assert re.search(r"[\d,]+ tokens at the texts' ends fill no chunk and are left out", done.stderr)


def test_json_has_the_numbers(called: Cli, small: Path, full: Path, text: Path) -> None:
    found = json.loads(called("evaluate", small, text, "--reference", full, *SHORT, "--json", "-q").stdout)
    every = found["all"]
    assert 0 < every["kl_median"] < every["kl"]["value"] < every["kl_99"] < every["kl_max"]
    assert every["kl"]["low"] < every["kl"]["value"] < every["kl"]["high"]
    assert 0.5 < every["top1"]["value"] < 1
    assert every["perplexity"]["value"] / every["perplexity_reference"]["value"] == pytest.approx(
        every["ratio"]["value"]
    )
    assert (found["n_ctx"], found["kv_format"], len(found["positions"])) == (64, "f16", 8)


def test_a_model_beside_itself_differs_in_nothing_but_its_caches_format(called: Cli, full: Path, text: Path) -> None:
    found = {}
    for name in ("f16", "q8_0", "q4_0"):
        done = called("evaluate", full, text, "--reference", full, *SHORT, "--flash-attn", "on", "--kv", name, "--json")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)["all"]["kl"]["value"]
    assert found["f16"] < 1e-4 < found["q8_0"] * 10
    assert found["f16"] < found["q8_0"] < found["q4_0"]


def test_a_checkpoint_is_a_reference_run_layer_by_layer(called: Cli, llama3: Path, text: Path, tmp_path: Path) -> None:
    """Its f32 file in llama.cpp agrees with it, a quantized one less so."""
    found = {}
    for quant in ("f32", "q4_0"):
        model = tmp_path / f"{quant}.gguf"
        assert called("convert", llama3, model, "--quant", quant, "-q").returncode == 0
        options = (*SHORT, "--max-chunks", 6, "--kv", "f32", "--json", "-q")
        done = called("evaluate", model, text, "--reference", llama3, *options)
        assert done.returncode == 0, done.stderr
        found[quant] = json.loads(done.stdout)
    assert found["f32"]["reference"] == llama3.name
    assert found["f32"]["all"]["kl"]["value"] < 1e-5 < found["q4_0"]["all"]["kl"]["value"]


def test_without_a_reference_it_tells_perplexity(called: Cli, text: Path) -> None:
    found = json.loads(called("evaluate", SMALL_TALK, text, *SHORT, "--json").stdout)
    assert set(found["all"]) == {"n_tokens", "perplexity"}
    assert found["all"]["perplexity"]["low"] > 1


def test_compatible_tells_what_llama_perplexity_prints_and_the_exact_value_beside_it(
    called: Cli, small: Path, full: Path, text: Path
) -> None:
    done = called("evaluate", small, text, "--reference", full, *SHORT, "--compatible")
    assert done.returncode == 0, done.stderr
    for name in ("Mean PPL(Q): ", "Mean KLD: ", "99.9% KLD: ", "RMS Δp: ", "Same top p: "):
        assert name in done.stdout
    again = called("evaluate", small, text, "--reference", full, *SHORT, "--compatible", "--json")
    found = json.loads(again.stdout)
    assert found["llama_perplexity"]["Mean KLD"][0] == pytest.approx(found["all"]["kl"]["value"], rel=0.05)
    assert found["all"]["n_tokens"] % 31 == 0  # second halves of chunks of 64


def test_answers_of_the_reference_are_scored_too(called: Cli, small: Path, full: Path, text: Path) -> None:
    options = ("--n-ctx", 128, "--threads", 1, "--continuations", 3, "--max-chunks", 2, "--json")
    done = called("evaluate", small, text, "--reference", full, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["domains"]["answers"]["n_tokens"] > 3
    assert found["domains"]["answers"]["perplexity_reference"]["value"] < 3  # its own likeliest tokens
    assert [each["text"] for each in found["texts"]][1:] == ["answer 1", "answer 2", "answer 3"]


@pytest.mark.parametrize("ending", ["html", "png"])
def test_a_plot_is_written_whole_and_not_over_another(
    called: Cli, small: Path, full: Path, text: Path, tmp_path: Path, ending: str
) -> None:
    picture = tmp_path / f"spread.{ending}"
    asked = ("evaluate", small, text, "--reference", full, *SHORT, "--max-chunks", 4, "--plot", picture)
    assert called(*asked).returncode == 0
    content = picture.read_bytes()
    if ending == "html":
        page = content.decode()
        assert page.count("<svg") == 2
        assert "http" not in page  # nothing is loaded
    else:
        assert content.startswith(b"\x89PNG")
    again = called(*asked)
    assert (again.returncode, picture.read_bytes()) == (2, content)
    assert "already exists" in again.stderr
    assert called(*asked, "--force").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [picture.name]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({DATASET: "/somewhere/known.txt"}, "known.txt: it does better"),
        ({HASHES: hashes([Text("any", "", perplexity_numbers.text())])}, "known.txt: it does better"),
        ({DATASET: OWN}, ""),
        ({DATASET: "another.txt", HASHES: "no hashes"}, ""),
    ],
    ids=["by name", "by content", "another", "damaged"],
)
def test_a_text_that_the_file_was_calibrated_on_is_warned_of(
    called: Cli, small_talk: Path, text: Path, tmp_path: Path, fields: dict[str, str], said: str
) -> None:
    values = {key: string(value) for key, value in fields.items()}
    file = ggufs.rewritten(small_talk, tmp_path / "calibrated.gguf", fields=values)
    done = called("evaluate", file, text, *SHORT, "--max-chunks", 1, "-q")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (f"warning: calibrated.gguf was calibrated on {said} there than elsewhere\n" if said else "")


def test_a_part_of_a_calibration_text_is_warned_of(small_talk: Path) -> None:
    own = default_texts("calibration")[0]
    mixed = Text("mine", "", own.content[: len(own.content) // 2] + default_texts("evaluation")[0].content)
    (told,) = warnings("a.gguf", {DATASET: OWN}, [mixed])
    assert re.search(r"mine \(\d+ % of it\)", told)
    assert not list(warnings("a.gguf", {DATASET: OWN}, default_texts("evaluation")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no text in it"),
        (b"\x7fELF\x00\x00", "is no text: byte 4 is zero"),
        ("naïve".encode("latin-1"), "byte 2 (0xef) is not UTF-8"),
        ("Hello".encode("utf-16"), "UTF-16"),
        (b"Too short.", "too short: a chunk takes"),
    ],
)
def test_texts_that_are_none_are_one_line_and_exit_code_2(
    called: Cli, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    done = called("evaluate", *SHORT, SMALL_TALK, path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--n-ctx", 3), "n_ctx is 3"),
        (("--compatible",), "--reference MODEL"),
        (("--plot", "picture.svg"), "end its name by .html or .png"),
        (("--plot", "no/such/folder.html"), "is no folder"),
        (("--plot", "picture.html"), "draws the divergence from a reference"),
        (("--max-chunks", 0), "max_chunks is 0"),
        (("--continuations", 2), "needs a reference that answers"),
        (("--reference", "no-such-model"), "no-such-model"),
        (("--kv", "q5_0"), "known: f16, f32, q8_0, q4_0"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    called: Cli, small_talk: Path, text: Path, options: tuple[object, ...], said: str
) -> None:
    done = called("evaluate", small_talk, text, "--threads", 1, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]


def test_a_reference_of_another_vocabulary_is_refused(called: Cli, onnx_folder: Path, small_talk: Path) -> None:
    done = called("evaluate", small_talk, __file__, "--reference", onnx_folder, *SHORT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "vocabular" in done.stderr


def test_ctrl_c_ends_it(terminal: Callable[..., Terminal], text: Path) -> None:
    text.with_name("long.txt").write_text(perplexity_numbers.text() * 200, "utf-8")
    running = terminal("evaluate", SMALL_TALK, text.with_name("long.txt"), *SHORT)
    running.see("scoring")
    running.see("tokens")
    running.interrupt()
    assert running.exit_code() == 130


def test_help_has_an_example(called: Cli) -> None:
    assert "Example: edge-llama evaluate" in called("evaluate", "--help").stdout
