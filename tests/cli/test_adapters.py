"""Adapters on the command line: ``convert`` writes them, ``run`` and ``chat`` add them to a model."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
from adapters import LINEAR, SMALL, trained
from suite import shared
from terminals import Terminal

import converters
import edge_llama
from edge_llama.cli.chat_session import adapter_texts
from edge_llama.errors import OptionError

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, ``base.gguf``, and two adapters: ``legal.gguf`` and ``medical.gguf``."""

    def make(at: Path) -> None:
        base = checkpoints.llama3(at / "Base", shape=SMALL, dtype="F32", tied=False)
        converters.convert(base, at / "base.gguf", quant="f32")
        for seed, name in enumerate(("legal", "medical")):
            trained(base, at / name, seed=seed, r=4, lora_alpha=64, target_modules=LINEAR)
            converters.convert(at / name, at / f"{name}.gguf", base=base)

    return shared(tmp_path_factory, "command-line-adapters", make)


def test_convert_writes_an_adapter_and_says_what_it_leaves_out(called: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "legal").mkdir()
    for file in (folder / "legal").iterdir():
        (tmp_path / "legal" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "legal" / "tokenizer_config.json").write_text("{}")
    done = called("convert", tmp_path / "legal", tmp_path / "a.gguf", "--base", folder / "Base")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "28 tensors: 28 f32" in done.stderr
    assert "adapter's files: not used: tokenizer_config.json" in done.stderr
    assert "memory" not in done.stderr
    planned = called("convert", tmp_path / "legal", "b.gguf", "--base", folder / "Base", "--quant", "q8_0", "--dry-run")
    assert re.search(r"(?m)^ *blk\.0\.attn_q\.weight\.lora_a +4 x 32 +f32 +q8_0 ", planned.stdout), planned.stdout
    refused = called("convert", tmp_path / "legal", tmp_path / "c.gguf", "--base", tmp_path / "none")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_verify_and_inspect_know_them(called: Cli, folder: Path, tmp_path: Path) -> None:
    done = called("verify", folder / "legal.gguf")
    assert (done.returncode, done.stderr) == (0, f"{folder / 'legal.gguf'}: intact, 28 tensors\n")
    flipped = bytearray((folder / "legal.gguf").read_bytes())
    flipped[-40] ^= 1
    (tmp_path / "flipped.gguf").write_bytes(flipped)
    assert called("verify", tmp_path / "flipped.gguf").returncode == 2
    assert "legal: adapter for a llama model, alpha 64" in called("inspect", folder / "legal.gguf").stdout
    found = json.loads(called("inspect", folder / "legal.gguf", "--json").stdout)
    assert found["adapter"] == {"architecture": "llama", "alpha": 64.0}
    assert len(found["tensors"]) == 28


def test_run_adds_the_adapters_with_their_weights(called: Cli, folder: Path) -> None:
    def said(*options: object, raw: bool = True) -> str:
        prompt = ("--raw", "Once upon a time") if raw else ("Once upon a time",)
        arguments = ("--temperature", 0, "--max-tokens", 12, "--n-ctx", 256, *options)
        done = called("run", folder / "base.gguf", *prompt, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    names = {"legal": folder / "legal.gguf", "medical": folder / "medical.gguf"}
    with edge_llama.open(folder / "base.gguf", n_ctx=256, adapters=names) as model:

        def expected(**weights: float) -> str:
            return model.generate("Once upon a time", temperature=0, max_tokens=12, adapters=weights).result().text

        assert said() == expected()
        assert said("--adapter", names["legal"]) == expected(legal=1)
        assert said("--adapter", f"it={names['legal']}@0.5") == expected(legal=0.5)
        both = said("--adapter", names["legal"], "--adapter", f"{names['medical']}@-0.5")
        assert both == expected(legal=1, medical=-0.5)
        assert len({expected(), expected(legal=1), both}) == 3
    assert said("--adapter", names["legal"], raw=False) != said(raw=False)


def test_what_is_no_adapter_is_one_line_and_exit_code_2(called: Cli, folder: Path, tmp_path: Path) -> None:
    for options, expected in {
        ("--adapter", folder / "base.gguf"): "is no adapter",
        ("--adapter", tmp_path / "none.gguf"): "cannot be read",
        ("--adapter", folder / "legal.gguf", "--adapter", folder / "legal.gguf"): "two are called 'legal'",
        ("--adapter", "legal="): "expected [NAME=]FILE[@WEIGHT]",
        ("--adapter", folder / "legal.gguf", "--isolate", "--adapter", folder / "legal"): "two are called 'legal'",
        ("--adapter", folder / "legal"): "is a folder, expected an adapter's .gguf file; convert it first",
    }.items():
        done = called("run", folder / "base.gguf", "Hello", *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert expected in done.stderr


def test_a_chat_switches_and_says_what_is_prefilled_again(terminal: Callable[..., Terminal], folder: Path) -> None:
    files = ("--adapter", folder / "legal.gguf", "--adapter", f"{folder / 'medical.gguf'}@0.5")
    chat = terminal("chat", folder / "base.gguf", *files, "--temperature", 0, "--max-tokens", 4, "--n-ctx", 512)
    chat.see(r"(?m)^>\Z")
    assert "adapters: legal 1, medical 0.5" in chat.ask("/adapter")
    chat.ask("What is the capital of Japan?")
    without = chat.ask("/adapter -")
    assert "adapters: none" in without
    assert "open and not used: legal, medical" in without
    assert tokens(without) > 20
    chat.ask("And of Italy?")
    back = chat.ask("/adapter legal@1 medical@0.5")
    assert tokens(back) < tokens(without), "the first question is still in the cache"
    assert "adapters: 'tax' is none of this model's; known: legal, medical" in chat.ask("/adapter tax")
    assert "adapters: legal 1, medical 0.5" in chat.ask("/adapter")
    assert "messages so far" in chat.ask(f"/model {folder / 'base.gguf'}")
    assert "it was opened without any" in chat.ask("/adapter legal")


def tokens(said: str) -> int:
    found = re.search(r"([\d,]+) tokens are prefilled again", said)
    assert found, said
    return int(found[1].replace(",", ""))


def test_a_chat_goes_on_with_its_adapters_and_reads_nothing_again(called: Cli, folder: Path, tmp_path: Path) -> None:
    environment = {"EDGE_LLAMA_HISTORY": str(tmp_path / "history")}
    options = ("--temperature", 0, "--max-tokens", 4, "--n-ctx", 512)
    adapter = ("--adapter", folder / "legal.gguf")
    first = called("chat", folder / "base.gguf", *adapter, *options, stdin="What is this?\n", env=environment)
    assert first.returncode == 0, first.stderr
    again = called("chat", "--continue", *adapter, *options, stdin="And that?\n", env=environment)
    assert "goes on" in again.stderr
    assert "read again" not in again.stderr
    other = called("chat", "--continue", *options, stdin="And now?\n", env=environment)
    assert "it is read again with the next message" in other.stderr


WRITTEN: dict[str, tuple[str, str, float]] = {
    "legal.gguf": ("legal", "legal.gguf", 1.0),
    "legal.gguf@0.5": ("legal", "legal.gguf", 0.5),
    "it=a b/legal.gguf@-2": ("it", "a b/legal.gguf", -2.0),
    r"C:\models\legal.gguf": ("legal", r"C:\models\legal.gguf", 1.0),
    r"it=C:\models\legal.gguf@1e-1": ("it", r"C:\models\legal.gguf", 0.1),
    "./a=b.gguf": ("a=b", "./a=b.gguf", 1.0),
    "me@home.gguf": ("me@home", "me@home.gguf", 1.0),
    "me@home.gguf@2": ("me@home", "me@home.gguf", 2.0),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_how_they_are_written(text: str) -> None:
    """A drive's colon, an @ and a = in a path change nothing."""
    name, path, weight = WRITTEN[text]
    assert adapter_texts.parse([text]) == ({name: path}, {name: weight})


@pytest.mark.parametrize("text", ["", "it="])
def test_what_names_no_file(text: str) -> None:
    with pytest.raises(OptionError, match=r"expected \[NAME=\]FILE\[@WEIGHT\]"):
        adapter_texts.parse([text])
