"""GGUF to GGUF: the file that llama.cpp's quantizer makes with allow_requantize, from every format that ggml reads."""

from pathlib import Path

import checkpoints
import pytest
from ggufs import READABLE, all_in, read_tensor, rewritten
from quantizer import WITHOUT_IMPORTANCE, differences, quantized_by_llama_cpp
from refusals import refusal

import converters
from edge_llama import ArtifactError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import Header, ValueType, array, f32, read_header, string, u32
from quant.recipe import RECIPES

SHAPE = checkpoints.Shape(hidden=256, ffn=512, layers=2, heads=4, kv_heads=2)
FREE = ("general.file_type", "general.quantization_version", "edge_llama.")
"""What may differ; the names are kept."""


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3 with rotary scaling in f32 whose rows are whole super-blocks."""
    folder = tmp_path_factory.mktemp("requantize")
    checkpoints.llama3(folder / "checkpoint", shape=SHAPE, dtype="F32", tied=False)
    converters.convert(folder / "checkpoint", folder / "floats.gguf", quant="f32")
    return folder / "floats.gguf"


def comparable(header: Header) -> dict[str, tuple[object, ...]]:
    return {
        key: (value.type, value.item, list(value.data) if value.item is not None else value.data)
        for key, value in header.fields.items()
        if not key.startswith(FREE)
    }


def data(header: Header) -> bytes:
    return header.path.read_bytes()[header.data_offset :]


@pytest.mark.parametrize("name", READABLE)
def test_every_format_that_ggml_reads_is_a_source(name: str, floats: Path, tmp_path: Path) -> None:
    """One matrix in it: making some of these formats takes seconds a megabyte."""
    source = rewritten(
        floats,
        tmp_path / "source.gguf",
        formats=lambda info: FORMATS[name] if info.name == "blk.1.attn_q.weight" else info.format,
    )
    assert {info.format.name for info in read_header(source).tensors} == {"f32", name}
    converters.convert(source, tmp_path / "ours.gguf", quant="q8_0")
    theirs = quantized_by_llama_cpp(source, tmp_path / "theirs.gguf", RECIPES["q8_0"].ftype)
    assert not list(differences(read_header(tmp_path / "ours.gguf"), read_header(theirs)))


@pytest.mark.parametrize("quant", WITHOUT_IMPORTANCE)
@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q4_1"])
def test_every_recipe_gives_what_llama_cpps_requantizer_gives(
    name: str, quant: str, floats: Path, tmp_path: Path
) -> None:
    source = all_in(floats, tmp_path / "source.gguf", name)
    converters.convert(source, tmp_path / "ours.gguf", quant=quant)
    theirs = quantized_by_llama_cpp(source, tmp_path / "theirs.gguf", RECIPES[quant].ftype)
    assert not list(differences(read_header(tmp_path / "ours.gguf"), read_header(theirs)))


@pytest.mark.parametrize("family", ["llama2", "smollm"])
def test_other_vocabularies_requantize_to_the_same_bytes(family: str, tmp_path: Path) -> None:
    source, ours = tmp_path / "source.gguf", tmp_path / "ours.gguf"
    converters.convert(getattr(checkpoints, family)(tmp_path / "checkpoint"), source, quant="q8_0")
    converters.convert(source, ours, quant="q4_0")
    theirs = quantized_by_llama_cpp(source, tmp_path / "theirs.gguf", RECIPES["q4_0"].ftype)
    assert not list(differences(read_header(ours), read_header(theirs)))


def test_metadata_is_kept_as_llama_cpps_quantizer_keeps_it(floats: Path, tmp_path: Path) -> None:
    """Naming keys, licence, base models, unknown keys, in their order; not what described the source file's form."""
    source = rewritten(
        floats,
        tmp_path / "source.gguf",
        fields={
            "general.name": string("Meta Llama Tiny"),
            "general.license": string("llama3.2"),
            "general.tags": array(ValueType.STRING, ["facebook", "meta"]),
            "general.base_model.count": u32(1),
            "general.base_model.0.name": string("Llama"),
            "llama.rope.scaling.attn_factor": f32(1.0),
            "tokenizer.chat_template.tool_use": string("{{ tools }}"),
            "tokenizer.ggml.add_eos_token": None,
            "somebody.elses.key": string("kept"),
        },
    )
    converters.convert(source, tmp_path / "ours.gguf", quant="q4_k_m")
    ours = read_header(tmp_path / "ours.gguf")
    theirs = read_header(quantized_by_llama_cpp(source, tmp_path / "theirs.gguf", RECIPES["q4_k_m"].ftype))
    assert comparable(ours) == comparable(theirs)
    assert [key for key in ours.fields if not key.startswith(FREE)] == list(comparable(theirs))
    assert data(ours) == data(theirs)


def test_tensors_already_in_the_wanted_format_pass_untouched(floats: Path, tmp_path: Path) -> None:
    """Q6_K re-made from its own numbers would differ: the blocks must be the source's."""
    source, again = tmp_path / "source.gguf", tmp_path / "again.gguf"
    converters.convert(floats, source, quant="q4_k_m")
    plan = converters.convert(source, again, quant="q4_k_m").plan
    assert again.read_bytes() == source.read_bytes()
    assert plan.warnings == ()
    mixed = all_in(source, tmp_path / "mixed.gguf", "q6_k")
    converters.convert(mixed, again, quant="q4_k_m", force=True)
    before = {info.name: info for info in read_header(mixed).tensors}
    kept = [info for info in read_header(again).tensors if info.format == before[info.name].format]
    assert {info.format.name for info in kept} == {"q6_k", "f32"}
    for info in kept:
        assert (read_tensor(again, info) == read_tensor(mixed, before[info.name])).all(), info.name


def test_quality_lost_twice_is_said_with_the_counts(floats: Path, tmp_path: Path) -> None:
    source = all_in(floats, tmp_path / "source.gguf", "q8_0")
    (warning,) = converters.plan(source, tmp_path / "out.gguf", quant="q4_0").warnings
    assert "16 of 22 tensors are quantized a second time (15 from q8_0 to q4_0, 1 from q8_0 to q6_k)" in warning
    assert converters.plan(source, tmp_path / "out.gguf", quant="f16").warnings == ()
    assert converters.plan(floats, tmp_path / "out.gguf", quant="q4_0").warnings == ()


def test_a_model_in_several_files_is_a_source_as_one_in_one(llama3: Path, tmp_path: Path) -> None:
    whole = converters.convert(llama3, tmp_path / "whole.gguf", quant="f32").output
    first = converters.convert(llama3, tmp_path / "parts.gguf", quant="f32", max_shard_bytes=300_000).output
    assert first.name.startswith("parts-00001-of-")
    for source, name in ((whole, "a.gguf"), (first, "b.gguf")):
        converters.convert(source, tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    second = sorted(tmp_path.glob("parts-*"))[1]
    with pytest.raises(ArtifactError, match=r"this is part 2 of \d+; open the first"):
        converters.plan(second, tmp_path / "out.gguf")


def test_another_chat_template_replaces_the_sources(floats: Path, tmp_path: Path) -> None:
    converters.convert(floats, tmp_path / "out.gguf", chat_template="none")
    assert not [key for key in read_header(tmp_path / "out.gguf").fields if "chat_template" in key]
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    converters.convert(floats, tmp_path / "out.gguf", chat_template=tmp_path / "own.jinja", force=True)
    template = read_header(tmp_path / "out.gguf").get("tokenizer.chat_template", str, "")
    assert template == "{{ messages[0].content }}"


def test_a_format_without_a_way_back_is_a_typed_error_from_the_header_alone(floats: Path, tmp_path: Path) -> None:
    source = all_in(floats, tmp_path / "source.gguf", "q8_0")
    raw = bytearray(source.read_bytes())
    at = raw.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    raw[at : at + 4] = FORMATS["i8"].ggml_id.to_bytes(4, "little")
    source.write_bytes(raw)
    with refusal(ArtifactError, r"blk\.0\.ffn_up\.weight.*stored as i8, which no product takes", source):
        converters.plan(source, tmp_path / "out.gguf")
