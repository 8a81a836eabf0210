"""``edge-llama embed``: vectors to stdout or into a file."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from embedding_models import cosines

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_a_line_of_numbers_for_each_text(cli: Cli, bert: Path) -> None:
    """From arguments, and the same from lines of stdin; stderr is silent where the file says how to pool."""
    done = cli("embed", bert, "one text", "another")
    vectors = np.array([line.split() for line in done.stdout.splitlines()], np.float32)
    assert (done.returncode, done.stderr, vectors.shape) == (0, "", (2, 64))
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert cli("embed", bert, "-", stdin="\ufeffone text\r\nanother\n").stdout == done.stdout


def test_json_and_a_file_hold_the_same_vectors(cli: Cli, bert: Path, tmp_path: Path) -> None:
    said = json.loads(cli("embed", bert, "one text", "another", "--json").stdout)
    assert {key: said[key] for key in ("pooling", "pooling_reason", "texts", "n_embd")} == {
        "pooling": "cls",
        "pooling_reason": "as the file says",
        "texts": 2,
        "n_embd": 64,
    }
    output = tmp_path / "vectors.npy"
    done = cli("embed", bert, "one text", "another", "--output", output, "--pooling", "cls", "--json")
    told = json.loads(done.stdout)
    assert (told["output"], told["pooling_reason"], "vectors" in told) == (str(output), "as asked", False)
    assert cosines(np.load(output), np.array(said["vectors"], np.float32)).min() > 0.99999
    refused = cli("embed", bert, "one text", "--output", output)
    assert (refused.returncode, "already exists" in refused.stderr, len(np.load(output))) == (2, True, 2)
    assert list(tmp_path.iterdir()) == [output]


def test_the_mean_is_told_where_the_file_names_no_pooling(cli: Cli) -> None:
    done = cli("embed", "smollm2", "one text")
    assert done.stderr == "pooling: mean (the default: the file names none)\n"
    assert json.loads(cli("embed", "smollm2", "one text", "--json").stdout)["pooling_reason"].startswith("the default")


def test_what_can_not_be_embedded_is_bad_input(cli: Cli, bert: Path, tmp_path: Path) -> None:
    for arguments, stdin, problem in (
        ((), "", "stdin: there is no text"),
        ((), b"a\n\xff\n", "stdin: byte 2 (0xff) is not UTF-8"),
        ((), "a\n\nb\n", "texts[1] is empty"),
        (("a", "--output", tmp_path / "vectors.txt"), "", "expected a name that ends in .npy"),
    ):
        done = cli("embed", bert, *arguments, stdin=stdin)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert problem in done.stderr


def test_a_model_that_only_embeds_says_so_to_who_wants_to_chat(cli: Cli, bert: Path) -> None:
    for verb in (("run", bert, "Hi"), ("chat", bert)):
        done = cli(*verb)
        assert (done.returncode, done.stdout) == (2, "")
        assert "embeds text and writes none" in done.stderr
        assert "edge-llama embed" in done.stderr
