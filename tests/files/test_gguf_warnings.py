"""What a file lacks so that answers become worse is told once, by whoever opens or converts it."""

import json
import logging
from pathlib import Path

import pytest
from ggufs import rewritten

import edge_llama
from edge_llama.convert import convert, plan
from edge_llama.files.gguf import ValueType, array, read_header, string
from edge_llama.files.gguf_text import read_gguf_text

PRE, SCORES, TOKENS = "tokenizer.ggml.pre", "tokenizer.ggml.scores", "tokenizer.ggml.tokens"
ENDS = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]


@pytest.fixture(scope="module")
def old(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as those of spring 2024 are."""
    return rewritten(packaged, tmp_path_factory.mktemp("old") / "old.gguf", fields={PRE: None})


def test_a_file_without_a_rule_of_splitting_says_so_when_it_is_opened(
    old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "edge_llama"), edge_llama.open(old, n_ctx=64, threads=1) as model:
        model.generate("x", max_tokens=1).result()
    assert [record.getMessage() for record in caplog.records if PRE in record.getMessage()] == [
        f"{old}: {text}" for text in model.artifact.warnings
    ]
    assert len(model.artifact.warnings) == 1


def test_a_conversion_of_such_a_file_says_so_and_so_does_what_it_writes(old: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    assert any(PRE in text for text in plan(old, output, quant="q8_0").warnings)
    done = convert(old, output, quant="q8_0", chat_template="none")
    assert any(PRE in text for text in done.plan.warnings)
    assert PRE in "".join(read_gguf_text(output).warnings)


def test_nothing_is_said_of_a_file_that_has_all(packaged: Path) -> None:
    assert read_gguf_text(packaged).warnings == ()


def test_an_empty_rule_is_none(packaged: Path, tmp_path: Path) -> None:
    path = rewritten(packaged, tmp_path / "a.gguf", fields={PRE: string("")})
    assert PRE in "".join(read_gguf_text(path).warnings)


def test_a_vocabulary_without_scores_and_one_without_an_end_are_told(
    packaged: Path, llama2: Path, tmp_path: Path
) -> None:
    convert(llama2, tmp_path / "a.gguf", quant="q8_0")
    path = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", fields={SCORES: None})
    assert [text.split(" ")[0] for text in read_gguf_text(path).warnings] == [SCORES]
    tokens = [text.strip("<|>") for text in read_header(packaged).fields[TOKENS].data]
    first = {text: at for at, text in reversed(list(enumerate(tokens)))}
    renamed = [text if first[text] == at else f"{text} {at}" for at, text in enumerate(tokens)]
    fields = {TOKENS: array(ValueType.STRING, renamed), **dict.fromkeys(ENDS)}
    path = rewritten(packaged, tmp_path / "c.gguf", fields=fields)
    assert "no token ends an answer" in "".join(read_gguf_text(path).warnings)


def test_inspect_says_it(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edge_llama.cli.inspect import inspect  # noqa: PLC0415 - imports typer

    inspect(str(old))
    assert f"warning: {PRE} is missing" in capsys.readouterr().out
    inspect(str(old), as_json=True)
    assert PRE in json.loads(capsys.readouterr().out)["warnings"][0]
