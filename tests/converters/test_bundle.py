"""Bundles: both towers in one pass, complete or not at all, and a manifest that tells of every file."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama4
import pytest
from refusals import refusal

import converters
from converters import partial_folder
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate, read_bundle, read_towers, read_vision
from edge_llama.errors import ArtifactError, CheckpointError, OptionError, OutputError
from edge_llama.files.gguf import read_header
from edge_llama.files.gguf_text import END_TOKENS
from edge_llama.files.integrity import verify as verify_file
from edge_llama.files.manifest import NAME, read_manifest, verify

EVERYTHING = ["LICENSE", NAME, "text.gguf", "vision/model.onnx", "vision/model.onnx.data"]


def files(folder: Path) -> dict[str, bytes]:
    """Content by path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_bundle_has_both_towers_the_licence_and_a_manifest(bundle: Path, llama4_scout: Path) -> None:
    found = files(bundle)
    assert sorted(found) == EVERYTHING
    manifest = json.loads(found.pop(NAME))
    assert manifest["files"] == {
        name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for name, raw in found.items()
    }
    assert manifest["schema"] == 1
    assert manifest["name"] == llama4_scout.name
    assert manifest["text"] == {"engine": "llama.cpp", "file": "text.gguf"}
    assert manifest["vision"] == {"engine": "onnxruntime", "file": "vision/model.onnx", "format": "f16"}
    assert manifest["images"] == {
        "tile": 56,
        "max_tiles": 16,
        "tokens_per_tile": 4,
        "n_embd": 64,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    assert manifest["generation"] == json.loads((llama4_scout / "generation_config.json").read_text())
    assert found["LICENSE"] == b"Do no harm.\n"


def test_the_towers_are_read(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.text == locate(bundle) == bundle / "text.gguf"
    text, vision = open_artifact(read.text), read.vision
    assert vision is not None
    assert text.header.get("llama4.embedding_length", int, 0) == vision.spec.n_embd == 64
    assert (vision.engine, vision.format, vision.path) == ("onnxruntime", "f16", bundle / "vision/model.onnx")
    assert vision.nbytes == sum(path.stat().st_size for path in (bundle / "vision").iterdir())
    assert read_vision(bundle) == read_vision(bundle / "vision/model.onnx") == vision
    assert read_towers(bundle / "vision/model.onnx").text is None


def test_the_text_is_the_file_that_it_is_alone(bundle: Path, llama4_scout: Path, tmp_path: Path) -> None:
    """And carries its own seal."""
    converters.convert(llama4_scout, tmp_path / "text.gguf", tower="text")
    assert (bundle / "text.gguf").read_bytes() == (tmp_path / "text.gguf").read_bytes()
    verify_file(read_header(bundle / "text.gguf"))
    assert END_TOKENS in read_header(bundle / "text.gguf").fields


def test_vision_for_llama_cpp_is_the_file_that_it_is_alone(llama4_scout: Path, tmp_path: Path) -> None:
    converters.convert(llama4_scout, tmp_path / "bundle", vision_to="gguf", vision_quant="f32")
    assert sorted(files(tmp_path / "bundle")) == [NAME, "mmproj.gguf", "text.gguf"]
    converters.convert(llama4_scout, tmp_path / "alone.gguf", tower="vision", vision_quant="f32")
    assert (tmp_path / "bundle" / "mmproj.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    verify_file(read_header(tmp_path / "alone.gguf"))
    verify(tmp_path / "bundle")
    bundled, alone = read_vision(tmp_path / "bundle"), read_vision(tmp_path / "alone.gguf")
    assert bundled.engine == alone.engine == "llama.cpp"
    assert (bundled.spec, bundled.identity, bundled.format) == (alone.spec, alone.identity, "f32")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tower": "text"}, [NAME, "text.gguf"]),
        ({"tower": "vision"}, [NAME, "vision/model.onnx", "vision/model.onnx.data"]),
        ({"tower": "vision", "to": "onnx"}, [NAME, "vision/model.onnx", "vision/model.onnx.data"]),
        ({"tower": "vision", "to": "gguf"}, [NAME, "mmproj.gguf"]),
        ({"tower": "all", "to": "gguf"}, [NAME, "text.gguf", "vision/model.onnx", "vision/model.onnx.data"]),
    ],
)
def test_a_bundle_may_hold_one_tower(
    llama4_scout: Path, tmp_path: Path, options: dict[str, str], expected: list[str]
) -> None:
    converters.convert(llama4_scout, tmp_path / "bundle", **options)
    assert sorted(files(tmp_path / "bundle")) == expected
    read = read_bundle(tmp_path / "bundle")
    assert (read.text is not None) == ("text.gguf" in expected)
    assert (read.vision is not None) == (len(expected) != 2 or "mmproj.gguf" in expected)
    verify(tmp_path / "bundle")


def test_text_in_several_files(llama4_scout: Path, tmp_path: Path) -> None:
    converters.convert(llama4_scout, tmp_path / "bundle", max_shard_bytes=200_000)
    parts = [name for name in files(tmp_path / "bundle") if name.startswith("text-")]
    assert len(parts) > 2
    text = read_bundle(tmp_path / "bundle").text
    assert text == tmp_path / "bundle" / parts[0]
    assert len(open_artifact(text).headers) == len(parts)
    verify(tmp_path / "bundle")
    content = json.loads((tmp_path / "bundle" / NAME).read_text("utf-8"))
    del content["files"][parts[1]]
    (tmp_path / "bundle" / NAME).write_text(json.dumps(content), "utf-8")
    with refusal(ArtifactError, f"'{parts[1]}' is missing", NAME):
        read_bundle(tmp_path / "bundle")


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "two towers in a file": ("x.gguf", {}, "has two, text and vision; add --tower text or --tower vision, or give a"),
    "all towers in a file": ("x.gguf", {"tower": "all"}, "has two, text and vision"),
    "an unknown tower": ("x", {"tower": "audio"}, "--tower audio: unknown; known: text, vision, all"),
    "an unknown target": ("x", {"to": "mlx"}, "--to mlx: unknown; known: gguf, safetensors, onnx"),
    "an unknown target for vision": ("x", {"vision_to": "mlx"}, "--vision-to mlx: unknown; known: onnx, gguf"),
    "an unknown format": (
        "x",
        {"vision_quant": "q9"},
        "--vision-quant q9: unknown; known: f16, f32, int8, int4, a16w8, bf16",
    ),
    "a format for llama.cpp": (
        "x",
        {"vision_quant": "q8_0"},
        "q8_0: not for onnx; known: f16, f32, int8, int4, a16w8; or add --vision-to gguf",
    ),
    "a format for ONNX Runtime": (
        "x",
        {"vision_quant": "int8", "vision_to": "gguf"},
        "int8: not for gguf; known: f16, f32, bf16, q8_0; or add --vision-to onnx",
    ),
    "integers without ranges": (
        "x",
        {"vision_quant": "a16w8"},
        "is made by the ranges of the vision tower.*edge-llama calibrate",
    ),
    "ranges for a GGUF text": (
        "x.gguf",
        {"tower": "text", "calibration": ["r.json"]},
        "--calibration r.json: cannot be read",
    ),
    "ranges that are not there": (
        "x",
        {"vision_quant": "a16w8", "calibration": ["nowhere.json"]},
        "--calibration nowhere.json: cannot be read",
    ),
    "an unknown recipe": ("x", {"quant": "q9"}, "--quant q9: not for bundle; known: f32"),
    "ONNX in a .gguf": ("x.gguf", {"to": "onnx", "tower": "vision"}, "ends in .gguf; give a folder"),
    "ONNX weights in a .gguf": ("x.gguf", {"vision_to": "onnx", "tower": "vision"}, "can't hold it; give a folder"),
    "two targets": ("x", {"to": "gguf", "vision_to": "onnx", "tower": "vision"}, "--vision-to says onnx"),
    "a recipe for vision": ("x.gguf", {"tower": "vision", "quant": "q8_0"}, "--quant: .*--vision-quant"),
    "a role for vision": ("x", {"tower": "vision", "tensor_types": {"attn_v": "q8_0"}}, "--tensor-type: is for a text"),
    "parts for vision": ("x.gguf", {"tower": "vision", "max_shard_bytes": 9}, "--max-shard-size: is for a text tower"),
    "a template for vision": ("x", {"tower": "vision", "chat_template": "none"}, "--chat-template: is for a text"),
    "an adapter for vision": ("x", {"tower": "vision", "lora": "a"}, "--lora: is for a text tower"),
    "vision's format for text": ("x.gguf", {"tower": "text", "vision_quant": "f16"}, "--vision-quant: is for a vision"),
    "vision's target for text": ("x", {"tower": "text", "vision_to": "onnx"}, "--vision-to: is for a vision tower"),
    "a role of vision": ("x", {"tensor_types": {"v.attn_q": "q8_0"}}, "no such role; known: token_embd"),
    "an adapter that is none": ("x", {"lora": "none"}, "none: no such folder"),
    "a tower of a folder": ("x", {"to": "safetensors", "tower": "text"}, "--tower text: not for safetensors"),
    "a format in a folder": ("x", {"to": "safetensors", "vision_quant": "f16"}, "--vision-quant: is for a vision"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_do_not_fit_are_refused(name: str, llama4_scout: Path, tmp_path: Path) -> None:
    output, options, expected = BAD[name]
    with pytest.raises((OptionError, CheckpointError), match=expected):
        converters.convert(llama4_scout, tmp_path / output, **options)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_text_alone_has_no_vision_tower(tmp_path: Path) -> None:
    source = llama4.text_only(tmp_path / "source")
    for output, options in (("x.gguf", {"tower": "vision"}), ("x", {"tower": "vision", "to": "onnx"})):
        with refusal(OptionError, "--tower vision: .* has a text tower alone", source):
            converters.convert(source, tmp_path / output, **options)
    with refusal(OptionError, "what shall be written"):
        converters.convert(source, tmp_path / "x")
    with refusal(OptionError, "--vision-quant: is for a vision tower"):
        converters.convert(source, tmp_path / "x.gguf", vision_quant="f16")
    converters.convert(source, tmp_path / "all.gguf", tower="all")
    converters.convert(source, tmp_path / "plain.gguf")
    assert (tmp_path / "all.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_metas_folder_becomes_the_same_vision_tower(bundle: Path, llama4_scout: Path, tmp_path: Path) -> None:
    meta = llama4.meta(tmp_path / llama4_scout.name, llama4_scout, fused=False, shards=2)
    converters.convert(meta, tmp_path / "bundle")
    for name in ("vision/model.onnx", "vision/model.onnx.data"):
        assert (tmp_path / "bundle" / name).read_bytes() == (bundle / name).read_bytes()
    assert read_vision(tmp_path / "bundle").identity == read_vision(bundle).identity


def test_a_dry_run_lists_both_towers(llama4_scout: Path, tmp_path: Path) -> None:
    plan = converters.plan(llama4_scout, tmp_path / "bundle")
    names = [part.name for part in plan.layout.parts for _ in part.entries]
    assert set(names) == {"text.gguf", "vision/model.onnx.data"}
    done = converters.convert(llama4_scout, tmp_path / "bundle")
    assert plan.layout.output_bytes == sum(map(len, files(done.output).values()))
    assert (plan.options.quant, plan.options.vision_quant, plan.options.vision_to) == ("q4_k_m", "f16", "onnx")


def stop_at(source: Path, output: Path, share: float) -> None:
    def stop(done: int, total: int) -> None:
        if done > total * share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converters.convert(source, output, on_progress=stop)
    assert not output.exists()


@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_stopped_conversion_is_resumed_in_either_tower(
    llama4_scout: Path, bundle: Path, tmp_path: Path, share: float
) -> None:
    output = tmp_path / "bundle"
    stop_at(llama4_scout, output, share)
    done = converters.convert(llama4_scout, output)
    assert done.resumed_bytes > share / 2 * done.plan.layout.output_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    expected, found = files(bundle), files(output)
    for name in ("text.gguf", "vision/model.onnx", "vision/model.onnx.data"):
        assert found[name] == expected[name]
    verify(output)


def test_other_options_for_vision_begin_anew(llama4_scout: Path, tmp_path: Path) -> None:
    stop_at(llama4_scout, tmp_path / "bundle", 0.4)
    assert converters.convert(llama4_scout, tmp_path / "bundle", vision_quant="f32").resumed_bytes == 0


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork")
def test_bundles_killed_at_random_moments_resume_to_identical_bytes(tmp_path: Path, seed: int) -> None:
    source = llama4.scout(tmp_path / "source", **llama4.K_QUANTS)
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(Path(__file__).with_name("crashes.py")), str(source), str(tmp_path / "out")]
    done = subprocess.run([*command, "5", str(seed), ""], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["identical"] == counts["rounds"]
    assert counts["killed"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("limit", [1000, 100_000, 500_000])
def test_a_write_that_fails_leaves_nothing(llama4_scout: Path, tmp_path: Path, limit: int) -> None:
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from edge_llama.cli import main; main()"
    )
    command = [sys.executable, "-B", "-c", code, "convert", str(llama4_scout), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_replaced_by_another_but_nothing_of_others_is_deleted(llama4_scout: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    converters.convert(llama4_scout, output, max_shard_bytes=200_000)
    with refusal(OutputError, "already exists", output):
        converters.convert(llama4_scout, output)
    converters.convert(llama4_scout, output, vision_to="gguf", force=True)
    assert sorted(files(output)) == [NAME, "mmproj.gguf", "text.gguf"]
    for name in ("mine.txt", "vision/mine.txt", "mine/too.txt"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
        with refusal(OutputError, "holds .*mine.*, which --force would delete", output):
            converters.convert(llama4_scout, output, force=True)
        assert (output / name).read_text() == "mine"
        (output / name).unlink()
        if "/" in name:
            (output / name).parent.rmdir()
    (output / NAME).write_text("{}")
    with refusal(OutputError, "holds 'mmproj.gguf'"):
        converters.convert(llama4_scout, output, force=True)


def test_what_the_manifest_cannot_hold_is_refused_before_a_weight_is_read(llama4_scout: Path, tmp_path: Path) -> None:
    for text in ('{"temperature": 0.6, "x": NaN}', '{"x": "\\ud800"}', f'{{"x": "{"a" * (1 << 20)}"}}'):
        source = tmp_path / "source"
        shutil.copytree(llama4_scout, source)
        (source / "generation_config.json").write_text(text)
        with refusal(CheckpointError, "can't hold .*generation_config.json", source):
            converters.plan(source, tmp_path / "bundle")
        shutil.rmtree(source)


def test_a_copied_folder_is_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "elsewhere")
    assert read_manifest(tmp_path / "elsewhere") == read_manifest(bundle)
    assert read_vision(tmp_path / "elsewhere").identity == read_vision(bundle).identity
    assert not partial_folder(bundle).exists()
