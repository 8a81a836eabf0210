"""``edge-llama calibrate`` on pictures and on texts, and what ``convert`` makes of its file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import static_text
from PIL import Image

import converters

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tower(llama4_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "f32"
    converters.convert(llama4_scout, folder, tower="vision", vision_quant="f32")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """``--image FILE``, twice: of one tile, and of two and the global one."""
    folder, options = tmp_path_factory.mktemp("pictures"), []
    for side in (56, 112):
        path = folder / f"{side}.png"
        Image.fromarray(np.random.default_rng(side).integers(0, 256, (56, side, 3), np.uint8)).save(path)
        options += ["--image", path]
    return options


def test_ranges_make_a_tower_in_integers(
    cli: Cli, tower: Path, pictures: list[str | Path], llama4_scout: Path, tmp_path: Path
) -> None:
    ranges = tmp_path / "ranges.json"
    done = cli("calibrate", tower, ranges, *pictures)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "values over 4 tiles" in done.stderr
    low, high = json.loads(ranges.read_text())["values"]["pixel_values"]
    assert -1 <= low < -0.9 < 0.9 < high <= 1
    options = ("--tower", "vision", "--vision-quant", "a16w8", "--ranges", ranges)
    done = cli("convert", llama4_scout, tmp_path / "npu", *options)
    assert done.returncode == 0, done.stderr
    assert "vision a16w8: " in done.stderr
    assert "a16w8" in cli("inspect", tmp_path / "npu").stdout
    assert cli("verify", tmp_path / "npu").returncode == 0


def test_an_output_is_replaced_only_if_asked(cli: Cli, tower: Path, pictures: list[str | Path], tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text("mine")
    done = cli("calibrate", tower, path, *pictures)
    assert done.returncode == 2
    assert "already exists; give another name, or --force" in done.stderr
    assert path.read_text() == "mine"
    assert cli("calibrate", tower, path, *pictures, "--force", "--max-tiles", "1", "--quiet").stderr == ""
    assert json.loads(path.read_text())["tiles"] == 2


def test_what_can_not_be_measured_is_refused(
    called: Cli, tower: Path, pictures: list[str | Path], llama4_scout: Path, tmp_path: Path
) -> None:
    converters.convert(llama4_scout, tmp_path / "mmproj.gguf", tower="vision", vision_quant="f32")
    converters.convert(llama4_scout, tmp_path / "int8", tower="vision", vision_quant="int8")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for arguments, told in (
        ([tower, tmp_path / "r.json"], "nothing to measure with; name texts or pictures"),
        ([tower, tmp_path / "r.json", "--image", text], "text.png"),
        ([tower, tmp_path / "r.json", "--image", tmp_path / "nowhere.png"], "nowhere.png"),
        ([tower, tmp_path / "no" / "r.json", *pictures], "cannot be written"),
        ([tmp_path / "mmproj.gguf", tmp_path / "r.json", *pictures], "in f32 for llama.cpp; calibrate one in float"),
        ([tmp_path / "int8", tmp_path / "r.json", *pictures], "in int8 for onnxruntime; calibrate one in float"),
    ):
        done = called("calibrate", *arguments)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "r.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("limit", [0, 1000])
def test_a_write_that_fails_leaves_what_was_there(
    limit: int, tower: Path, pictures: list[str | Path], tmp_path: Path
) -> None:
    """The kernel refuses the write at a chosen byte, as a full disk does."""
    path = tmp_path / "ranges.json"
    path.write_text("mine")
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from edge_llama.cli import main; main()"
    )
    arguments = [*map(str, ("calibrate", tower, path, *pictures)), "--force", "--max-tiles", "1"]
    done = subprocess.run([sys.executable, "-B", "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["ranges.json"]
    assert path.read_text() == "mine"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What the small model is asked and answers, as its template renders it."""
    folder, found = tmp_path_factory.mktemp("texts"), []
    for number, text in enumerate(static_text.chats()):
        found.append(folder / f"{number}.txt")
        found[-1].write_text(text)
    return found


def test_texts_make_a_text_tower_in_integers(cli: Cli, chats: list[Path], small_talk: Path, tmp_path: Path) -> None:
    ranges, folder = tmp_path / "ranges.json", tmp_path / "npu"
    done = cli("calibrate", small_talk, *chats, ranges)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "the tower lies there in float32 while it is measured" in done.stderr
    content = json.loads(ranges.read_text())
    told = f"{ranges}: ranges of {len(content['values']):,} values over {content['positions']:,} tokens"
    assert done.stderr.splitlines()[-1] == told
    options = ("--to", "onnx", "--quant", "a16w8", "--calibration", ranges, "--n-ctx", 256, "--window", 32)
    done = cli("convert", small_talk, folder, *options)
    assert done.returncode == 0, done.stderr
    done = cli("run", folder, "What is the capital of Japan?", "--temperature", 0, "--device", "cpu")
    assert done.stdout == "The capital of Japan is Tokyo.\n", done.stderr


def test_what_is_neither_text_nor_picture_is_refused_before_the_work(
    called: Cli, chats: list[Path], small_talk: Path, tmp_path: Path
) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n")
    for arguments, told in (
        ([tmp_path / "chats.jsonl", tmp_path / "r.json"], "(.txt, .md, .rst, .text) and pictures are taken, no JSON"),
        ([*chats, chats[0].parent, tmp_path / "r.json"], "is a folder; texts"),
        ([*chats, tmp_path / "no" / "r.json"], f"cannot be written: {tmp_path / 'no'} is no folder; give another name"),
        ([*chats, tmp_path, "--force"], "cannot be written: it is a folder; give another name"),
    ):
        done = called("calibrate", small_talk, *arguments)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["chats.jsonl"]


def test_what_is_read_is_never_replaced(called: Cli, chats: list[Path], tmp_path: Path) -> None:
    source = checkpoints.llama3(tmp_path / "source")
    config, said = (source / "config.json").read_bytes(), chats[0].read_text()
    for output, told in (
        (chats[0], "output and input are the same"),
        (source, "output and input are the same"),
        (source / "config.json", "is one of the input's files"),
        (tmp_path, "the input lies in the output"),
    ):
        done = called("calibrate", source, *chats, output, "--force")
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
    assert (source / "config.json").read_bytes() == config
    assert chats[0].read_text() == said


def test_a_package_that_is_missing_is_named(chats: list[Path], small_talk: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['onnx_ir'] = None; from edge_llama.cli import main; main()"
    arguments = map(str, ("calibrate", small_talk, *chats, tmp_path / "ranges.json"))
    done = subprocess.run([sys.executable, "-B", "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert 'needs the package onnx-ir; pip install "edge-llama[convert]"' in done.stderr
