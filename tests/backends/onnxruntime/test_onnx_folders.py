"""Folders with an ONNX text tower: found by their files, verified by their manifest, refused by the field."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx_llama import edited, opened, text
from refusals import refusal

import edge_llama
from edge_llama.backends import crash_probe
from edge_llama.backends.base import ON_CPU
from edge_llama.backends.device_names import KINDS, DeviceKind, Onnx
from edge_llama.backends.onnxruntime.providers import runtime
from edge_llama.backends.onnxruntime.text import require
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate, read_bundle, read_towers
from edge_llama.errors import ArtifactError, NotVerifiableError, OptionError
from edge_llama.files import manifest
from edge_llama.files.identity import sha256_of
from edge_llama.files.manifest import NAME, Manifest, StoredFile, Tower


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_format": "f16"}, "kv_format is 'f16', but ONNX Runtime runs"),
        ({"flash_attention": False}, "flash_attention is False"),
        ({"device": "vulkan"}, "device vulkan: unknown to ONNX Runtime"),
        ({"n_ctx": 5000}, "expected a whole number from 2 to 4,096"),
    ],
)
def test_options_of_another_engine_are_errors(options: dict[str, Any], told: str, onnx_folder: Path) -> None:
    with refusal(OptionError, told) if "n_ctx" not in options else pytest.raises(OptionError, match=told):
        edge_llama.open(onnx_folder, **options)


def test_a_device_that_this_build_has_not_is_an_error(onnx_folder: Path) -> None:
    with pytest.raises(OptionError, match="device cuda: this onnxruntime has no CUDAExecutionProvider"):
        edge_llama.open(onnx_folder, device="cuda")


def test_the_model_is_found_by_folder_and_by_file(onnx_folder: Path) -> None:
    assert locate(onnx_folder) == onnx_folder / "model.onnx" == read_towers(onnx_folder / "model.onnx").text
    artifact = open_artifact(onnx_folder / "model.onnx")
    assert (artifact.engine, artifact.n_ctx_train, artifact.n_vocab) == ("onnxruntime", 4096, 1010)
    assert artifact.kv_values_per_token == 3 * 2 * 2 * 32
    options = {entry.option: entry.value for entry in artifact.sampling}
    assert options == {"temperature": 0.6, "top_p": 0.9}


def test_what_genai_draws_by_is_taken_where_the_publisher_says_nothing(onnx_copy: Path) -> None:
    (onnx_copy / "generation_config.json").unlink()
    search = {"do_sample": True, "top_k": 7}
    edited(onnx_copy / "genai_config.json", lambda content: content["search"].update(search))
    assert [(entry.option, entry.value) for entry in text(onnx_copy).sampling] == [("top_k", 7)]
    edited(onnx_copy / "genai_config.json", lambda content: content["search"].update(do_sample=False))
    assert text(onnx_copy).sampling == ()


def sealed(folder: Path, *left_out: str) -> Path:
    """The folder with a manifest of all its files but these."""
    files = [file for file in sorted(folder.iterdir()) if file.name not in left_out]
    stored = {file.name: StoredFile(file.stat().st_size, sha256_of(file)) for file in files}
    manifest = Manifest("Tiny", "a test", stored, Tower("onnxruntime", "model.onnx"))
    (folder / NAME).write_bytes(manifest.encode())
    return folder


def test_a_bundle_has_its_name_and_every_file_is_verified(onnx_copy: Path) -> None:
    sealed(onnx_copy)
    manifest.verify(onnx_copy)
    assert read_bundle(onnx_copy).text == onnx_copy / "model.onnx"
    assert text(onnx_copy).name == "Tiny"
    with edge_llama.open(onnx_copy, n_ctx=64) as model:
        assert model.generate("a", temperature=0, max_tokens=2).result().tokens
    raw = bytearray((onnx_copy / "model.onnx").read_bytes())
    raw[-1] ^= 1
    (onnx_copy / "model.onnx").write_bytes(raw)
    with refusal(ArtifactError, "is not as it was written", onnx_copy / "model.onnx"):
        edge_llama.open(onnx_copy, n_ctx=64)


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx.data"])
def test_a_manifest_that_does_not_list_what_is_read_is_refused(name: str, onnx_copy: Path) -> None:
    sealed(onnx_copy, name)
    with refusal(ArtifactError, f"{name}' is missing", onnx_copy):
        edge_llama.open(onnx_copy, n_ctx=64)


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "genai_config.json", change)


def decoder(**fields: Any) -> Callable[[Path], None]:
    return config(lambda content: content["model"]["decoder"].update(fields))


def settings(**fields: Any) -> Callable[[Path], None]:
    return config(lambda content: content["model"].update(fields))


def graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return edit


def renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for values in (model.graph.input, model.graph.output):
            for value in values:
                value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return change


def located(name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name

    return change


def typed(name: str, kind: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(value for value in model.graph.input if value.name == name).type.tensor_type.elem_type = kind

    return change


def more_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1]))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "genai_config.json").unlink(), "expected exactly one text model"),
    "config that is cut": (lambda folder: (folder / "genai_config.json").write_text('{"model"'), "not valid JSON"),
    "config that is a list": (lambda folder: (folder / "genai_config.json").write_text("[]"), "expected a JSON object"),
    "no decoder": (config(lambda content: content["model"].pop("decoder")), r"model\.decoder\.filename is missing"),
    "a file elsewhere": (decoder(filename="../model.onnx"), r"filename is '../model.onnx', expected a file in"),
    "a file that is not there": (decoder(filename="other.onnx"), "other.onnx"),
    "no vocabulary": (settings(vocab_size=0), "model.vocab_size is 0, expected 1 to"),
    "a vocabulary of text": (settings(vocab_size="many"), "model.vocab_size is 'many', expected a whole number"),
    "a vocabulary too small": (
        settings(vocab_size=100, eos_token_id=1),
        "has a token [0-9,]+, the model knows 0 to 99",
    ),
    "a vocabulary too large": (settings(vocab_size=2000), r"the output 'logits' as .*expected .* 2000\]"),
    "an end beyond": (settings(eos_token_id=[5, 10**6]), "model.eos_token_id has 1000000, expected token ids"),
    "a context of nothing": (settings(context_length=-1), "model.context_length is -1"),
    "layers without number": (decoder(num_hidden_layers=True), "num_hidden_layers is True, expected a whole"),
    "a layer more": (decoder(num_hidden_layers=4), "no input 'past_key_values.3.key', which genai_config.json names"),
    "a layer less": (decoder(num_hidden_layers=2), "has the input 'past_key_values.2.key', which this version"),
    "other heads": (
        decoder(num_key_value_heads=3),
        r"input 'past_key_values.0.key' as .* expected .*\[\?, 3, \?, 32\]",
    ),
    "another width": (decoder(head_size=16), r"expected tensor\(float\) \[\?, 2, \?, 16\]"),
    "names without a layer": (
        decoder(inputs={"past_key_names": "past"}),
        "past_key_names is 'past', expected a name with",
    ),
    "other names": (decoder(outputs={"logits": "scores"}), "no output 'scores', which genai_config.json names"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "holds no tokenizer.json and no tokenizer.model",
    ),
    "no settings": (
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        "tokenizer_config.json: cannot be read",
    ),
    "an odd template": (
        lambda folder: edited(folder / "tokenizer_config.json", lambda content: content.update(chat_template=3)),
        "chat_template is 3, expected a text",
    ),
    "a graph that is none": (lambda folder: (folder / "model.onnx").write_bytes(b"\xff" * 99), "model.onnx: is"),
    "weights elsewhere": (graph(located("../outside.data")), "expected a file beside it"),
    "weights anywhere": (graph(located("/etc/hostname")), "expected a file beside it"),
    "weights nowhere": (lambda folder: (folder / "model.onnx.data").unlink(), "its weights are missing"),
    "weights cut short": (lambda folder: os.truncate(folder / "model.onnx.data", 9999), "ends at byte"),
    "an opset to come": (graph(lambda model: setattr(model.opset_import[0], "version", 99)), "[Oo]pset"),
    "a domain unknown": (graph(lambda model: setattr(model.graph.node[5], "domain", "com.example")), "com.example"),
    "an operator unknown": (graph(lambda model: setattr(model.graph.node[5], "op_type", "Nonsense")), "Nonsense"),
    "ids by another name": (graph(renamed("input_ids", "ids")), "no input 'input_ids'"),
    "logits by another name": (graph(renamed("logits", "scores")), "no output 'logits'"),
    "ids in 32 bits": (graph(typed("input_ids", onnx.TensorProto.INT32)), "input_ids|INT32|int32"),
    "an input more": (graph(more_input), "has the input 'extra', which this version does not know"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_tower_is_told_by_its_field(name: str, onnx_copy: Path) -> None:
    damage, told = BAD[name]
    damage(onnx_copy)
    with refusal(ArtifactError, told, onnx_copy):
        edge_llama.open(onnx_copy, n_ctx=64)


def test_a_graph_that_onnx_runtime_dies_of_ends_a_child_alone(
    onnx_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))

    def change(model: onnx.ModelProto) -> None:
        split = onnx.helper.make_node("Split", ["norm"], ["one", "two"], name="split", axis=2, num_outputs=1)
        model.graph.node.append(split)

    graph(change)(onnx_copy)
    with refusal(ArtifactError, "ONNX Runtime"):  # one that was repaired would refuse it itself
        require(text(onnx_copy), ON_CPU)
        with opened(onnx_copy):
            pass


def test_a_foreign_graph_is_tried_once(onnx_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    require(text(onnx_copy), ON_CPU)
    monkeypatch.setattr(crash_probe, "run", None)  # not asked again
    require(text(onnx_copy), ON_CPU)


def test_verify_says_that_a_foreign_folder_has_no_hashes(onnx_folder: Path) -> None:
    from edge_llama.cli.verify import verify  # noqa: PLC0415

    with pytest.raises(NotVerifiableError, match="no hashes"):
        verify(str(onnx_folder), quiet=True)


def test_a_device_that_does_not_take_the_graph_names_the_node(
    onnx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one provider besides the CPU's that is in the package takes no operator of a model."""
    azure = Onnx("AzureExecutionProvider", "pip install onnxruntime")
    monkeypatch.setitem(KINDS, "webgpu", DeviceKind("webgpu", "Azure", (), lambda: True, onnx=azure))
    if azure.provider not in runtime().get_available_providers():
        pytest.skip("this build has the CPU's provider alone")
    told = r"takes 0 of its \d+ nodes, the CPU would run total.length \(Shape\), .* and \d+ more; .*--device cpu"
    with refusal(OptionError, told):
        edge_llama.open(onnx_folder, device="webgpu", n_ctx=64)
