"""``edge-llama verify MODEL --template``: the conversations that a model gets, beside transformers' own."""

import json
import shutil
from pathlib import Path

import checkpoints
import families
import pytest
from refusals import refusal
from tools import official_template

import converters
import edge_llama
from edge_llama import OptionError
from edge_llama.cli import app
from edge_llama.cli.template_check import Finding, check
from edge_llama.prompts.probe_conversations import conversations


def checked(model: Path, reference: Path | None = None) -> dict[str, Finding]:
    with edge_llama.open(model, n_ctx=64) as opened:
        return {finding.conversation: finding for finding in check(opened, reference)}


def outcomes(found: dict[str, Finding]) -> set[str]:
    return {finding.outcome for finding in found.values()}


@pytest.fixture(scope="module")
def tool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3.2 whose template takes tools, and shows no images."""
    folder = checkpoints.llama3(tmp_path_factory.mktemp("template") / "Llama-3.2-tiny-Instruct")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = official_template("meta-llama-Llama-3.2-3B-Instruct")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_a_converted_model_renders_as_its_checkpoint_does(form: str, tool_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / ("model.gguf" if form == "gguf" else "model")
    converters.convert(tool_folder, output, to=form, quant="f16")
    found = checked(output, tool_folder)
    assert len(found) == len(conversations())
    assert {name: finding for name, finding in found.items() if finding.outcome == "differs"} == {}
    assert all(found[name].outcome == "same" for name in ("many turns after a system message", "a tool's result"))
    assert found["tools"].tokens
    assert found["an image"].outcome == "refused"


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_other_families_render_as_their_checkpoints_do(family: str, tmp_path: Path) -> None:
    folder = getattr(families, family)(tmp_path / family)
    found = checked(_converted(folder, tmp_path), folder)
    assert outcomes(found) == {"same", "refused"}
    assert found["a second question"].outcome == "same"


def test_a_template_that_takes_no_tools_refuses_them_rightly(tmp_path: Path) -> None:
    folder = checkpoints.smollm(tmp_path / "SmolLM2-tiny-Instruct")
    found = checked(_converted(folder, tmp_path), folder)
    assert outcomes(found) == {"same", "refused"}
    assert found["a second question"].outcome == "same"
    assert "does not show tools" in found["tools"].why


def test_a_step_of_tokenizer_json_that_transformers_leaves_out_is_told_and_no_difference(
    llama2: Path, tmp_path: Path
) -> None:
    """transformers 5's class for Llama 2 builds normalizer and pre-tokenizer by itself, whatever the file says."""
    found = checked(_converted(llama2, tmp_path), llama2)
    assert outcomes(found) == {"same", "refused"}
    assert "whose steps transformers' LlamaTokenizer leaves out" in found["one question"].why


def test_images_stand_where_the_template_writes_them(llama4_scout: Path, tmp_path: Path) -> None:
    converters.convert(llama4_scout, tmp_path / "text.gguf", tower="text", quant="f16")
    found = checked(tmp_path / "text.gguf", llama4_scout)
    assert outcomes(found) <= {"same", "refused"}
    assert found["images between texts"].outcome == "same"


def _converted(folder: Path, tmp_path: Path, **options: object) -> Path:
    converters.convert(folder, tmp_path / "model.gguf", quant="f16", **options)
    return tmp_path / "model.gguf"


def test_another_template_or_vocabulary_shows_as_a_difference(tool_folder: Path, llama3: Path, tmp_path: Path) -> None:
    model = _converted(tool_folder, tmp_path)
    found = checked(model, llama3)
    assert found["one question"].outcome == "differs"
    assert "the texts differ at character" in found["one question"].why
    other = Path(shutil.copytree(tool_folder, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\s+|\S+"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "the ids differ at token" in checked(model, other)["many turns after a system message"].why


def test_without_a_reference_it_says_what_is_rendered(llama2: Path, tmp_path: Path) -> None:
    found = checked(_converted(llama2, tmp_path))
    assert outcomes(found) == {"rendered", "refused"}
    assert found["one question"].tokens


def test_the_verb_prints_and_exits_with_what_it_found(
    tool_folder: Path, llama3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: transformers takes seconds to load in another."""
    model = str(_converted(tool_folder, tmp_path))
    assert not app(["verify", model, "--template", "--reference", str(tool_folder)], standalone_mode=False)
    shown = capsys.readouterr()
    assert shown.out.count("\n") == len(conversations())
    assert "many turns after a system message: same, " in shown.out
    assert "compared with transformers" in shown.err
    options = ["--template", "--reference", str(llama3), "--json"]
    assert app(["verify", model, *options], standalone_mode=False) == 1
    found = json.loads(capsys.readouterr().out)["conversations"]
    assert {finding["outcome"] for finding in found} >= {"differs"}


def test_what_is_no_reference_is_refused_by_name(
    tool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _converted(tool_folder, tmp_path)
    bare = Path(shutil.copytree(tool_folder, tmp_path / "bare"))
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": None}))
    for folder, why in (
        (tmp_path / "nothing", "no such folder"),
        (bare, "has no chat template"),
    ):
        with refusal(OptionError, why, folder):
            checked(model, folder)
    (bare / "tokenizer.json").write_text("{")
    with refusal(OptionError, "transformers can't read its tokenizer", bare):
        checked(model, bare)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with refusal(OptionError, "nothing was compared: transformers is not installed", tool_folder):
        checked(model, tool_folder)
