"""``edge-llama calibrate --for importance``: of a GGUF and of a checkpoint, gone on from, and what it refuses."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imatrix_files
import numpy as np
import pytest

from edge_llama.fidelity.texts import Text, fingerprint
from quant.importance import HASHES, MODEL, TEXTS, read_importance

Cli = Callable[..., subprocess.CompletedProcess[str]]
IMPORTANCE = ("--for", "importance", "--n-ctx", imatrix_files.N_CTX)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(imatrix_files.text(), "utf-8")
    return path


def test_importance_of_a_gguf_is_llama_imatrix_s(called: Cli, small_talk: Path, text: Path, tmp_path: Path) -> None:
    output, older = tmp_path / "i.gguf", tmp_path / "i.dat"
    done = called("calibrate", small_talk, text, output, *IMPORTANCE, "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "tokens at the end fill no chunk of 128 and are left out" in done.stderr
    assert f"{output}: importance for 14 matrices over 896 tokens" in done.stderr
    found, reference = read_importance(output), read_importance(imatrix_files.FOLDER / "dense.gguf")
    assert (found.n_chunks, found.chunk_size, found.datasets) == (7, 128, ("text.txt",))
    assert found.notes[TEXTS] == fingerprint([Text("", "", imatrix_files.text())])
    assert len(found.notes[MODEL]) == 64
    assert found.notes[HASHES]
    for name, (_, counts) in reference.entries.items():
        assert np.array_equal(found.entries[name].counts, counts)
        np.testing.assert_allclose(found.weights(name), reference.weights(name), rtol=0.02)
    assert called("calibrate", small_talk, text, older, *IMPORTANCE, "--device", "cpu", "--quiet").stderr == ""
    for name in reference.entries:
        np.testing.assert_allclose(read_importance(older).weights(name), found.weights(name), rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.dat", "i.gguf"]


def test_a_checkpoint_gives_what_its_file_gives(called: Cli, llama3: Path, text: Path, tmp_path: Path) -> None:
    assert called("convert", llama3, tmp_path / "f32.gguf", "--quant", "f32").returncode == 0
    for model, name in ((llama3, "streamed"), (tmp_path / "f32.gguf", "engine")):
        done = called("calibrate", model, text, tmp_path / f"{name}.gguf", *IMPORTANCE, "--chat", "--threads", 1)
        assert done.returncode == 0, done.stderr
    streamed, engine = (read_importance(tmp_path / f"{name}.gguf") for name in ("streamed", "engine"))
    assert streamed.entries.keys() == engine.entries.keys()
    for name, (_, counts) in engine.entries.items():
        assert np.array_equal(streamed.entries[name].counts, counts)
        np.testing.assert_allclose(streamed.weights(name), engine.weights(name), rtol=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.gguf", "f32.gguf", "streamed.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_what_is_killed_goes_on_to_the_same_bytes(small_talk: Path, text: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(text.read_text("utf-8") * 120, "utf-8")
    output, partial = tmp_path / "i.gguf", tmp_path / ".i.gguf.partial"

    def command(name: str) -> list[str]:
        options = [str(option) for option in (*IMPORTANCE, "--device", "cpu", "--threads", 1)]
        return [
            sys.executable,
            "-m",
            "edge_llama",
            "calibrate",
            str(small_talk),
            str(long),
            str(tmp_path / name),
            *options,
        ]

    running = subprocess.Popen(command("i.gguf"), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not partial.exists() and time.monotonic() < until:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert partial.exists()
    assert not output.exists()
    done = subprocess.run(command("i.gguf"), capture_output=True, text=True, check=True)
    assert "chunks, which an earlier run read" in done.stderr
    subprocess.run(command("whole.gguf"), capture_output=True, check=True)
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not partial.exists()


def test_what_can_not_be_measured_is_refused(
    called: Cli, small_talk: Path, llama3: Path, text: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    short, binary, latin = (tmp_path / name for name in ("short.txt", "binary.txt", "latin.txt"))
    short.write_text("Too short.")
    binary.write_bytes(b"a\0b")
    latin.write_bytes("Straße".encode("latin-1"))
    output = tmp_path / "i.gguf"
    for model, arguments, told in (
        (small_talk, (short, output), "too short: a chunk takes 128 tokens, the texts have"),
        (small_talk, (binary, output), "is no text: byte 1 is zero"),
        (small_talk, (latin, output), "is not UTF-8"),
        (small_talk, (tmp_path / "a.png", output), "is a picture; importance is measured on texts"),
        (small_talk, (text, tmp_path / "i.json"), "is no .gguf or .dat"),
        (small_talk, (text, output, "--n-ctx", 8), "--n-ctx 8: expected at least 16"),
        (small_talk, (text, output, "--max-tiles", 2), "--max-tiles is for another purpose"),
        (llama3, (text, output, "--device", "cpu"), "--device is for .gguf files"),
        (onnx_folder, (text, output), "is a model for onnxruntime"),
    ):
        done = called("calibrate", model, *arguments[:2], *IMPORTANCE, *arguments[2:])
        assert done.returncode == 2, (told, done.stderr)
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.txt", "latin.txt", "short.txt"]
