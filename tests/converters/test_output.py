"""Outputs appear complete or not at all, whatever happens; what was done is not done again."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
from filelock import FileLock
from refusals import refusal

import converters
import edge_llama
from edge_llama import CheckpointError, OutputError

GGUF = "model.gguf"
SOURCE = checkpoints.Shape(hidden=256, ffn=1024, layers=6, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("source") / "checkpoint", shape=SOURCE, dtype="F32")


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed conversion writes."""
    path = tmp_path_factory.mktemp("whole") / GGUF
    converters.convert(source, path)
    return path.read_bytes()


def stop_halfway(source: Path, output: Path, **options: object) -> Path:
    """Convert until half of the source was read, then Ctrl-C; the folder that is left."""

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converters.convert(source, output, on_progress=stop, **options)  # type: ignore[arg-type]
    assert not output.exists()
    return converters.partial_folder(output)


def test_a_stopped_conversion_is_resumed_and_gives_the_same_bytes(source: Path, whole: bytes, tmp_path: Path) -> None:
    partial = stop_halfway(source, tmp_path / GGUF)
    assert partial.is_dir()
    read: list[int] = []
    done = converters.convert(source, tmp_path / GGUF, on_progress=lambda so_far, _total: read.append(so_far))
    assert done.resumed_bytes > len(whole) / 4
    assert read[0] > done.plan.layout.source_bytes / 4
    assert read[-1] == done.plan.layout.source_bytes
    assert (tmp_path / GGUF).read_bytes() == whole
    assert not partial.exists()


def test_what_was_damaged_meanwhile_is_written_again(source: Path, whole: bytes, tmp_path: Path) -> None:
    partial = stop_halfway(source, tmp_path / GGUF)
    data = bytearray((partial / "output" / GGUF).read_bytes())
    data[len(data) // 2] ^= 1
    (partial / "output" / GGUF).write_bytes(data)
    converters.convert(source, tmp_path / GGUF)
    assert (tmp_path / GGUF).read_bytes() == whole


@pytest.mark.parametrize("journal", [b"", b"\xff\xfe", b"junk\njunk\n", None])
def test_a_journal_that_is_not_ours_is_not_believed(
    source: Path, whole: bytes, tmp_path: Path, journal: bytes | None
) -> None:
    partial = stop_halfway(source, tmp_path / GGUF)
    if journal is None:
        (partial / "journal").unlink()
    else:
        (partial / "journal").write_bytes(journal)
    assert converters.convert(source, tmp_path / GGUF).resumed_bytes == 0
    assert (tmp_path / GGUF).read_bytes() == whole


def test_another_plan_begins_anew(source: Path, whole: bytes, tmp_path: Path) -> None:
    stop_halfway(source, tmp_path / GGUF, quant="q8_0")
    assert converters.convert(source, tmp_path / GGUF).resumed_bytes == 0
    assert (tmp_path / GGUF).read_bytes() == whole


def test_a_source_that_changed_begins_anew(source: Path, tmp_path: Path) -> None:
    stop_halfway(source, tmp_path / GGUF)
    os.utime(source / "model.safetensors")
    assert converters.convert(source, tmp_path / GGUF).resumed_bytes == 0


def test_a_source_that_changes_while_it_is_read_is_noticed(source: Path, tmp_path: Path) -> None:
    def touch(_done: int, _total: int) -> None:
        os.utime(source / "model.safetensors")

    with pytest.raises(CheckpointError, match="changed while it was read"):
        converters.convert(source, tmp_path / GGUF, on_progress=touch)
    assert not list(tmp_path.iterdir())


def test_a_second_conversion_to_the_same_output_is_refused(source: Path, tmp_path: Path) -> None:
    partial = converters.partial_folder(tmp_path / GGUF)
    partial.mkdir()
    with FileLock(partial / "lock"), refusal(OutputError, "another conversion is writing it"):
        converters.convert(source, tmp_path / GGUF)
    converters.convert(source, tmp_path / GGUF)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork")
def test_conversions_killed_at_random_moments_resume_to_identical_bytes(
    source: Path, tmp_path: Path, seed: int
) -> None:
    """Twelve here; ``python tests/converters/crashes.py SOURCE FOLDER 100 SEED`` does as many as you like."""
    script = Path(__file__).with_name("crashes.py")
    command = [sys.executable, str(script), str(source), str(tmp_path), "12", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["identical"] == counts["rounds"]
    assert counts["killed"] > 5


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("limit", [0, 1000, 100_000, 300_000, 1_000_000, -1])
def test_a_write_that_fails_is_a_typed_error_and_leaves_nothing(
    source: Path, whole: bytes, tmp_path: Path, limit: int
) -> None:
    """The kernel refuses the write at a chosen byte, as a full disk does; -1: the last byte but one."""
    limit = limit if limit >= 0 else len(whole) - 1
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from edge_llama.cli import main; main()"
    )
    command = [sys.executable, "-B", "-c", code, "convert", str(source), str(tmp_path / GGUF)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"it needs {len(whole):,} bytes" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_parts_are_one_model_to_us_and_to_llama_cpp(source: Path, whole: bytes, tmp_path: Path) -> None:
    done = converters.convert(source, tmp_path / GGUF, max_shard_bytes=1_000_000)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 2
    assert names == [f"model-{number + 1:05}-of-{len(names):05}.gguf" for number in range(len(names))]
    assert done.output == tmp_path / names[0]
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / GGUF).write_bytes(whole)
    answers = []
    for path in (done.output, tmp_path, tmp_path / "whole"):
        with edge_llama.open(path, n_ctx=128) as model:
            answers.append(model.generate("Hello", temperature=0, max_tokens=12).result().tokens)
    assert answers[0] == answers[1] == answers[2]


def test_parts_that_are_not_whole_are_refused(source: Path, tmp_path: Path) -> None:
    first = converters.convert(source, tmp_path / GGUF, max_shard_bytes=1_000_000).output
    second = sorted(tmp_path.iterdir())[1]
    with pytest.raises(edge_llama.ArtifactError, match=r"part 2 of .*open the first"):
        edge_llama.open(second)
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(edge_llama.ArtifactError, match="this part is missing"):
        edge_llama.open(first)
    (tmp_path / "elsewhere.gguf").replace(second)
    first.replace(tmp_path / "renamed.gguf")
    with pytest.raises(edge_llama.ArtifactError, match="its name must end in"):
        edge_llama.open(tmp_path / "renamed.gguf")


def test_a_stopped_conversion_to_parts_is_resumed(source: Path, tmp_path: Path) -> None:
    undisturbed, stopped = tmp_path / "a", tmp_path / "b"
    undisturbed.mkdir()
    stopped.mkdir()
    converters.convert(source, undisturbed / GGUF, max_shard_bytes=1_000_000)
    stop_halfway(source, stopped / GGUF, max_shard_bytes=1_000_000)
    assert converters.convert(source, stopped / GGUF, max_shard_bytes=1_000_000).resumed_bytes > 0
    for path in undisturbed.iterdir():
        assert (stopped / path.name).read_bytes() == path.read_bytes()


def test_random_amounts_of_threads_and_stops_give_the_same_bytes(
    source: Path, whole: bytes, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    for third in range(3):  # each stop falls behind the last one, and before the end: there is always work left
        stop_at = (third + 0.6 * rng.random()) / 3

        def stop(done: int, total: int, stop_at: float = stop_at) -> None:
            if done > total * stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            converters.convert(source, tmp_path / GGUF, on_progress=stop, threads=rng.randrange(1, 6))
    converters.convert(source, tmp_path / GGUF)
    assert (tmp_path / GGUF).read_bytes() == whole
