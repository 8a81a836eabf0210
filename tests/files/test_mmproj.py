"""Vision towers in GGUF: what is to be known of them, and typed errors for what llama.cpp would take or die of."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import field_sweep
import numpy as np
import pytest
import tower_sweep
from ggufs import read_tensor, rewritten
from numpy.typing import NDArray
from refusals import refusal

import converters
import edge_llama
from edge_llama.backends.towers import locate, read_bundle, read_towers, read_vision
from edge_llama.errors import ArtifactError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import (
    TensorInfo,
    Value,
    ValueType,
    array,
    boolean,
    encode_header,
    f32,
    read_header,
    string,
    u32,
)
from edge_llama.files.mmproj import MAX_TILES
from edge_llama.files.vision_spec import VisionSpec

Raw = NDArray[np.uint8]
Change = Callable[[Path, Path], Path]
V = "clip.vision."


@pytest.fixture(scope="module")
def tower(llama4_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("tower") / "bundle"
    converters.convert(llama4_scout, bundle, vision_to="gguf")
    return bundle / "mmproj.gguf"


def test_the_spec_is_in_the_metadata(tower: Path) -> None:
    vision = read_vision(tower)
    assert vision.spec == VisionSpec(56, 16, 4, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (vision.engine, vision.format, vision.files) == ("llama.cpp", "f16", (tower,))
    assert vision.nbytes == tower.stat().st_size
    assert read_towers(tower).text is None


def field(key: str, value: Value | None) -> Change:
    return lambda source, output: rewritten(source, output, fields={key: value})


def test_other_values_are_read_as_they_were_written(tower: Path, tmp_path: Path) -> None:
    mean, std = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
    fields = {f"{V}image_mean": array(ValueType.FLOAT32, mean), f"{V}image_std": array(ValueType.FLOAT32, std)}
    path = rewritten(tower, tmp_path / "a.gguf", fields={**fields, MAX_TILES: u32(9)})
    assert read_vision(path).spec == VisionSpec(56, 9, 4, 64, tuple(mean), tuple(std))
    path = rewritten(tower, tmp_path / "b.gguf", fields={MAX_TILES: None, f"{V}projector_type": string("llama4")})
    assert read_vision(path).spec.max_tiles == 16
    path = rewritten(path, tmp_path / "c.gguf", fields={"clip.projector_type": None})
    assert read_vision(path).spec.max_tiles == 16


def test_an_identity_is_of_the_weights_and_of_what_is_done_to_pixels(tower: Path, tmp_path: Path) -> None:
    brighter = field(f"{V}image_mean", array(ValueType.FLOAT32, [0.6] * 3))(tower, tmp_path / "a.gguf")

    def other(info: TensorInfo, raw: Raw) -> Raw:
        return raw ^ 1 if info.name == "mm.model.fc.weight" else raw

    trained = rewritten(tower, tmp_path / "b.gguf", data=other)
    (tmp_path / "c.gguf").write_bytes(tower.read_bytes())
    found = [read_vision(path).identity for path in (tower, tmp_path / "c.gguf", brighter, trained)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def tensors(
    change: Callable[[TensorInfo, Raw], Iterator[tuple[TensorInfo, Raw]]],
) -> Change:
    """The tower with other tensors in place of each one."""

    def make(source: Path, output: Path) -> Path:
        header = read_header(source)
        found = [pair for info in header.tensors for pair in change(info, read_tensor(source, info))]
        table = [(info.name, info.shape, info.format) for info, _ in found]
        with output.open("wb") as file:
            file.write(encode_header(header.fields, table)[0])
            for _, raw in found:
                file.write(raw.tobytes() + bytes(-raw.nbytes % 32))
        return output

    return make


def renamed(old: str, new: str) -> Change:
    def change(info: TensorInfo, raw: Raw) -> Iterator[tuple[TensorInfo, Raw]]:
        yield TensorInfo(info.name.replace(old, new), info.shape, info.format, 0), raw

    return tensors(change)


def shaped(name: str, *shape: int) -> Change:
    def change(info: TensorInfo, raw: Raw) -> Iterator[tuple[TensorInfo, Raw]]:
        if info.name != name:
            yield info, raw
            return
        other = TensorInfo(name, shape, info.format, 0)
        yield other, np.zeros(other.nbytes, np.uint8)

    return tensors(change)


def stored(name: str, format_name: str) -> Change:
    def change(source: Path, output: Path) -> Path:
        return rewritten(
            source, output, formats=lambda info: FORMATS[format_name] if info.name == name else info.format
        )

    return change


def without(name: str) -> Change:
    return lambda source, output: rewritten(source, output, names=lambda info: info.name != name)


def added(name: str) -> Change:
    def change(info: TensorInfo, raw: Raw) -> Iterator[tuple[TensorInfo, Raw]]:
        yield info, raw
        if info.name == "v.class_embd":
            yield TensorInfo(name, info.shape, info.format, 0), raw

    return tensors(change)


BAD: dict[str, tuple[Change, str]] = {
    "another family": (field("clip.projector_type", string("gemma3")), "'gemma3' is not supported; supported: llama4"),
    "no family": (field("clip.projector_type", None), "no vision tower"),
    "no vision": (field("clip.has_vision_encoder", None), "has_vision_encoder is not set"),
    "vision that is a number": (field("clip.has_vision_encoder", u32(1)), "of type uint32, expected bool"),
    "64 bits": (field(f"{V}image_size", Value(ValueType.UINT64, 56)), "image_size is of type uint64, expected uint32"),
    "a query": (field("clip.minicpmv_version", u32(3)), "minicpmv_version is set, which no Llama 4 has"),
    "ears": (field("clip.has_audio_encoder", boolean(True)), "has_audio_encoder is set"),
    "a voice": (field("clip.has_gen_audio_encoder", boolean(True)), "has_gen_audio_encoder is set"),
    "no GELU": (field("clip.use_gelu", None), "use_gelu is not set"),
    "SiLU": (field("clip.use_silu", boolean(True)), "use_silu is set"),
    "no eps": (field(f"{V}attention.layer_norm_epsilon", None), "layer_norm_epsilon is -1"),
    "NaN eps": (field(f"{V}attention.layer_norm_epsilon", f32(math.nan)), "layer_norm_epsilon is nan"),
    "no image size": (field(f"{V}image_size", None), "image_size is missing"),
    "image size 0": (field(f"{V}image_size", u32(0)), "image_size is 0"),
    "image size 57": (field(f"{V}image_size", u32(57)), "image_size is 57, no multiple of 28"),
    "image size 84": (field(f"{V}image_size", u32(84)), "v.position_embd.weight' has shape .*, expected 37 x 48"),
    "image size 2**31": (field(f"{V}image_size", u32(1 << 31)), "image_size is 2,147,483,648, expected 1 to"),
    "image size as text": (field(f"{V}image_size", string("56")), "image_size is of type string, expected uint32"),
    "patch size 0": (field(f"{V}patch_size", u32(0)), "patch_size is 0"),
    "patch size 7": (field(f"{V}patch_size", u32(7)), "expected"),
    "scale 0": (field(f"{V}projector.scale_factor", u32(0)), "scale_factor is 0"),
    "no scale": (field(f"{V}projector.scale_factor", None), "scale_factor is missing"),
    "scale 4": (field(f"{V}projector.scale_factor", u32(4)), "mm.model.mlp.1.weight' has shape .*, expected any x 768"),
    "width 0": (field(f"{V}embedding_length", u32(0)), "embedding_length is 0"),
    "another width": (field(f"{V}embedding_length", u32(96)), "expected 96"),
    "heads 0": (field(f"{V}attention.head_count", u32(0)), "head_count is 0"),
    "heads that do not divide": (field(f"{V}attention.head_count", u32(5)), "head_count is 5, which makes no heads"),
    "heads of two": (field(f"{V}attention.head_count", u32(24)), "head_count is 24, which makes no heads of four"),
    "fewer KV heads": (field(f"{V}attention.head_count_kv", u32(1)), "head_count_kv is 1, expected 3"),
    "another head size": (field(f"{V}attention.head_dim", u32(8)), "head_dim is 8, expected 16"),
    "another FFN": (field(f"{V}feed_forward_length", u32(96)), "ffn_up.weight' has shape .*, expected 96 x 48"),
    "blocks 0": (field(f"{V}block_count", u32(0)), "block_count is 0"),
    "a block too many": (field(f"{V}block_count", u32(4)), "'v.blk.3.ln1.weight' is missing"),
    "a block too few": (field(f"{V}block_count", u32(2)), "'v.blk.2.* is not part of a Llama 4 vision tower"),
    "blocks 2**30": (field(f"{V}block_count", u32(1 << 30)), "block_count is 1,073,741,824, expected 1 to 512"),
    "another projection": (field(f"{V}projection_dim", u32(32)), "mm.model.fc.weight' has shape"),
    "no projection": (field(f"{V}projection_dim", None), "projection_dim is missing"),
    "no mean": (field(f"{V}image_mean", None), "image_mean has 0 numbers"),
    "two means": (field(f"{V}image_mean", array(ValueType.FLOAT32, [0.5, 0.5])), "image_mean has 2 numbers"),
    "a mean of integers": (field(f"{V}image_mean", array(ValueType.INT32, [1, 1, 1])), "expected an array of float32"),
    "a mean that is a number": (field(f"{V}image_mean", f32(0.5)), "image_mean is"),
    "std 0": (field(f"{V}image_std", array(ValueType.FLOAT32, [0.5, 0, 0.5])), "std is"),
    "std NaN": (field(f"{V}image_std", array(ValueType.FLOAT32, [0.5, math.nan, 0.5])), "std is"),
    "tiles 0": (field(MAX_TILES, u32(0)), "max_tiles is 0"),
    "tiles as text": (field(MAX_TILES, string("16")), "max_tiles is '16'"),
    "no class": (without("v.class_embd"), "'v.class_embd' is missing"),
    "no bias": (without("v.blk.1.attn_out.bias"), "'v.blk.1.attn_out.bias' is missing"),
    "a norm left out": (without("v.blk.1.ln2.weight"), "'v.blk.1.ln2.weight' is missing"),
    "the old name of a norm": (renamed(".ln2.", ".attn_post_norm."), "'v.blk.0.attn_post_norm.weight' where .*--tower"),
    "an old name beside it": (added("v.blk.0.attn_post_norm.weight"), "attn_post_norm.weight' is not part of"),
    "a scale": (added("v.blk.0.ls1.weight"), "'v.blk.0.ls1.weight' is not part of"),
    "a patch of four dimensions": (shaped("v.patch_embd.weight", 48, 3, 14, 14), "expected 48 x 588"),
    "a class of two dimensions": (shaped("v.class_embd", 1, 48), "expected 48"),
    "positions of another grid": (shaped("v.position_embd.weight", 16, 48), "expected 17 x 48"),
    "an adapter that does not fit": (shaped("mm.model.mlp.2.weight", 80, 40), "don't fit each other"),
    "a projection that does not fit": (shaped("mm.model.fc.weight", 64, 40), "don't fit each other"),
    "positions in f16": (stored("v.position_embd.weight", "f16"), "is stored as f16, which llama.cpp can't use"),
    "a class in f16": (stored("v.class_embd", "f16"), "is stored as f16, which llama.cpp can't use"),
    "a norm in f16": (stored("v.blk.0.ln1.weight", "f16"), "is stored as f16, which llama.cpp can't use"),
    "a bias in bf16": (stored("v.blk.0.attn_q.bias", "bf16"), "is stored as bf16, which llama.cpp can't use"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_llama_4_can_have_is_a_typed_error(name: str, tower: Path, tmp_path: Path) -> None:
    change, expected = BAD[name]
    path = change(tower, tmp_path / "bad.gguf")
    with refusal(ArtifactError, expected, path):
        read_vision(path)


def test_no_wrong_field_ends_the_process(tower: Path, rng: np.random.Generator) -> None:
    """All edits of metadata and some of tensors; ``tower_sweep.py`` does all of them."""
    found = tower_sweep.cases(tower)
    of_tensors = {at for at, case in enumerate(found) if case.label.startswith(("v.", "mm."))}
    sample = rng.choice(sorted(of_tensors), 100, replace=False).tolist()
    numbers = sorted({*range(len(found))} - of_tensors | {*sample})
    verdicts = field_sweep.sweep(tower, numbers, tower_sweep.__file__)
    named = {found[number].label: text for number, text in verdicts.items()}
    assert len(verdicts) == len(numbers) > 600
    assert not {label: text for label, text in named.items() if text.startswith("died")}
    assert named["nothing edited"] == "runs 4"
    assert named[f"{V}image_size as it is"] == "runs 4"


def test_quantized_matrices_are_read(tower: Path, tmp_path: Path) -> None:
    path = stored("mm.model.mlp.1.weight", "q8_0")(tower, tmp_path / "a.gguf")
    assert read_vision(path).spec == read_vision(tower).spec


def test_a_text_model_is_no_vision_tower_and_the_other_way_round(packaged: Path, tower: Path) -> None:
    with refusal(ArtifactError, r"no vision tower \(mmproj\)", packaged):
        read_vision(packaged)
    with refusal(ArtifactError, r"a vision tower \(mmproj\) alone; open the text model", tower):
        edge_llama.open(tower)


def test_a_text_model_and_its_mmproj_in_a_folder_are_a_pair(packaged: Path, tower: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(packaged)
    assert read_bundle(tmp_path).vision is None
    (tmp_path / "mmproj-model-f16.gguf").symlink_to(tower)
    pair = read_bundle(tmp_path)
    assert pair.text == locate(tmp_path) == tmp_path / "model.gguf"
    assert pair.vision == read_vision(tmp_path)
    assert pair.vision is not None
    assert pair.vision.path == tmp_path / "mmproj-model-f16.gguf"
    (tmp_path / "mmproj-model-f32.gguf").symlink_to(tower)
    assert locate(tmp_path) == tmp_path / "model.gguf"
    with refusal(ArtifactError, "more than one vision tower: mmproj-model-f16.gguf, mmproj-model-f32.gguf", tmp_path):
        read_bundle(tmp_path)


def test_an_mmproj_alone_in_a_folder_is_no_text_model(tower: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj.gguf").symlink_to(tower)
    for read in (locate, read_bundle):
        with refusal(ArtifactError, "found mmproj.gguf", tmp_path):
            read(tmp_path)
