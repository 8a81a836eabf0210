"""A Llama 4 vision tower in a GGUF file (an mmproj): what it needs, checked before llama.cpp sees it. No native code.

llama.cpp asserts most of this (``tools/mtmd/clip.cpp``, ``models/llama4.cpp`` in llama-cpp-python 0.3.36), which ends
the process; some of it, a missing norm first of all, it takes in silence to compute nonsense.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.artifact import VisionArtifact, main_format, vision_identity
from edge_llama.files.formats import BF16, F16, F32, FORMATS
from edge_llama.files.gguf import DAMAGED, Header, TensorInfo, ValueType, read_header, shortest
from edge_llama.files.gguf_limits import NOT_MULTIPLIED, items
from edge_llama.files.llama4_vision_shapes import ANY, VisionSizes, names
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.files.vision_spec import VisionSpec

ARCHITECTURE = "clip"
PROJECTORS = ("llama4",)
"""Projector types of which the image plan is known here."""
MAX_TILES = "edge_llama.max_tiles"
_DEFAULT_MAX_TILES = 16  # of every Llama 4 that was published
_PREFIX = "clip.vision."
_SIZES = (
    *("embedding_length", "feed_forward_length", "block_count", "projection_dim", "image_size", "patch_size"),
    *("projector.scale_factor", "attention.head_count", "attention.head_count_kv", "attention.head_dim"),
)
_TYPES = {  # llama.cpp ends the process if one of these is there as another type
    **dict.fromkeys(("general.name", "general.description", "clip.projector_type"), ValueType.STRING),
    _PREFIX + "projector_type": ValueType.STRING,
    **{f"clip.{flag}": ValueType.BOOL for flag in ("use_gelu", "use_silu", "has_vision_encoder")},
    **{f"clip.has_{voice}_encoder": ValueType.BOOL for voice in ("audio", "gen_audio")},
    **{_PREFIX + size: ValueType.UINT32 for size in _SIZES},
    _PREFIX + "attention.layer_norm_epsilon": ValueType.FLOAT32,
}
_OF_OTHERS = (  # read for every tower, without use for this one
    *("clip.minicpmv_version", "clip.minicpmv_query_num", _PREFIX + "mm_patch_merge_type"),
    *(_PREFIX + "feature_layer", _PREFIX + "image_grid_pinpoints"),
)
_MAX_SIDE, _MAX_LAYERS = 8192, 512
_OLD_NORM = re.compile(r"v\.blk\.\d+\.attn_post_norm\.weight")


def read_mmproj(path: Path, bundled: VisionSpec | None = None, name: str | None = None) -> VisionArtifact:
    """The tower of a GGUF file; ``bundled`` is what a manifest says of it, which may differ in what is not its own."""
    header = read_header(path)
    own = read_spec(header)
    spec = bundled or own
    if replace(own, max_tiles=spec.max_tiles, mean=spec.mean, std=spec.std) != spec:
        raise ArtifactError(
            f"{path}: a tower of {own}, where {MANIFEST} says {spec}", remedy="copy or convert both again"
        )
    return VisionArtifact(
        path=path,
        engine="llama.cpp",
        spec=spec,
        identity=vision_identity(spec, (path, header.data_offset, header.tensors)),
        name=name or header.get("general.name", str, path.stem),
        format=main_format(header.tensors),
        nbytes=header.file_size,
        files=(path,),
        tensors=header.tensors,
        header=header,
    )


def projector(header: Header) -> str:
    """The projector type, which says of which family the tower is; "" if the file names none."""
    return header.get("clip.projector_type", str, "") or header.get(_PREFIX + "projector_type", str, "")


def read_spec(header: Header) -> VisionSpec:
    """What is to be known of the tower in ``header``, which is checked: ArtifactError says what is wrong."""
    _check_types(header)
    kind = projector(header)
    if header.architecture != ARCHITECTURE or not kind:
        raise ArtifactError(f"{header.path}: this is no vision tower (mmproj)", remedy="give the mmproj file")
    if kind not in PROJECTORS:
        raise ArtifactError(
            f"{header.path}: the vision tower's projector type {kind[:100]!r} is not supported",
            remedy=f"supported: {', '.join(PROJECTORS)}",
        )
    _check_kind(header)
    width, patch = _size(header, "embedding_length"), _size(header, "patch_size")
    side, scale = _size(header, "image_size", _MAX_SIDE), _size(header, "projector.scale_factor")
    if side % (patch * scale):
        raise _wrong(header, "image_size", f"is {side:,}, no multiple of {patch * scale:,} (patch size x scale factor)")
    _check_heads(header, width)
    grid = side // patch
    expected = _shapes(header, width, grid, patch, scale)
    _check_tensors(header, expected)
    return _spec(header, side, (grid // scale) ** 2)


def _wrong(header: Header, key: str, problem: str, remedy: str = DAMAGED) -> ArtifactError:
    return ArtifactError(f"{header.path}: {_PREFIX}{key} {problem}", remedy=remedy)


def _size(header: Header, key: str, most: int = 1 << 20) -> int:
    value = header.get(_PREFIX + key, int, 0)
    if not 0 < value <= most:
        problem = f"is {value:,}, expected 1 to {most:,}" if _PREFIX + key in header.fields else "is missing"
        raise _wrong(header, key, problem)
    return value


def _check_types(header: Header) -> None:
    for key, kind in _TYPES.items():
        value = header.fields.get(key)
        if value is not None and value.type is not kind:
            raise ArtifactError(
                f"{header.path}: {key} is of type {value.type.name.lower()}, expected {kind.name.lower()}",
                remedy=DAMAGED,
            )
    if other := next((key for key in _OF_OTHERS if key in header.fields), None):
        raise ArtifactError(f"{header.path}: {other} is set, which no Llama 4 has", remedy=DAMAGED)


def _check_kind(header: Header) -> None:
    """Llama 4's tower has GELU, LayerNorm, and nothing to hear or to say."""
    if not header.get("clip.has_vision_encoder", bool, False):
        raise ArtifactError(f"{header.path}: clip.has_vision_encoder is not set", remedy=DAMAGED)
    for key in ("clip.has_audio_encoder", "clip.has_gen_audio_encoder", "clip.use_silu"):
        if header.get(key, bool, False):
            raise ArtifactError(f"{header.path}: {key} is set, which no Llama 4 has", remedy=DAMAGED)
    if not header.get("clip.use_gelu", bool, False):
        raise ArtifactError(f"{header.path}: clip.use_gelu is not set", remedy="convert the model again")
    eps = header.get(_PREFIX + "attention.layer_norm_epsilon", float, -1.0)
    if not 0 <= eps < 1:
        raise _wrong(header, "attention.layer_norm_epsilon", f"is {eps}, expected a small positive number")


def _check_heads(header: Header, width: int) -> None:
    """The rotation turns pairs in each half of a head, so a head is a multiple of four."""
    heads = _size(header, "attention.head_count")
    if width % (4 * heads):
        raise _wrong(header, "attention.head_count", f"is {heads:,}, which makes no heads of four of {width:,}")
    for key, expected in (("head_count_kv", heads), ("head_dim", width // heads)):
        found = header.get(f"{_PREFIX}attention.{key}", int, expected)
        if found != expected:
            raise _wrong(header, f"attention.{key}", f"is {found:,}, expected {expected:,}")


def _shapes(header: Header, width: int, grid: int, patch: int, scale: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the tower and its shape; the adapter's inner widths are free, but equal."""
    sizes = VisionSizes(
        n_embd=width,
        n_ff=_size(header, "feed_forward_length"),
        patch=patch,
        positions=grid * grid + 1,
        shuffled=width * scale * scale,
        n_adapter=ANY,
        n_text=_size(header, "projection_dim"),
    )
    return {name: sizes.shape(name) for name in names(_size(header, "block_count", _MAX_LAYERS))}


def _check_tensors(header: Header, expected: Mapping[str, tuple[int, ...]]) -> None:
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if "v.blk.0.ln2.weight" not in tensors and (old := next(filter(_OLD_NORM.fullmatch, tensors), None)):
        raise ArtifactError(
            f"{header.path}: holds {old!r} where llama.cpp reads 'v.blk.0.ln2.weight': the second norm of every layer "
            "would be left out in silence",
            remedy="convert the checkpoint again: edge-llama convert CHECKPOINT OUTPUT.gguf --tower vision",
        )
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ArtifactError(
                f"{header.path}: tensor {name!r} is missing", remedy="the file is incomplete: convert it again"
            )
        _check_tensor(header, tensor, shape)
    if left := sorted(tensors.keys() - expected.keys()):
        raise ArtifactError(
            f"{header.path}: tensor {left[0]!r} is not part of a Llama 4 vision tower of these sizes", remedy=DAMAGED
        )
    first, second, last = (tensors[f"mm.model.{name}.weight"].shape for name in ("mlp.1", "mlp.2", "fc"))
    if first[0] != second[1] or second[0] != last[1]:
        raise ArtifactError(
            f"{header.path}: the adapter's matrices {[*map(list, (first, second, last))]} don't fit each other",
            remedy=DAMAGED,
        )


def _check_tensor(header: Header, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    fits = len(tensor.shape) == len(shape) and all(
        want in (ANY, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if size == ANY else f"{size:,}" for size in shape)
        raise ArtifactError(
            f"{header.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, expected {wanted}", remedy=DAMAGED
        )
    allowed = {F32} if is_added(tensor.name, shape) else set(FORMATS.values()) - NOT_MULTIPLIED
    if tensor.name == "v.patch_embd.weight":
        allowed = {F32, F16, BF16}
    if tensor.format not in allowed:
        raise ArtifactError(
            f"{header.path}: tensor {tensor.name!r} is stored as {tensor.format}, which llama.cpp can't use there",
            remedy="convert the model again",
        )


def is_added(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is added or multiplied number by number, where llama.cpp takes f32 alone."""
    return len(shape) == 1 or name == "v.position_embd.weight"


def _spec(header: Header, side: int, tokens: int) -> VisionSpec:
    mean, std = (_channels(header, f"image_{key}") for key in ("mean", "std"))
    max_tiles = header.get(MAX_TILES, int, _DEFAULT_MAX_TILES)
    try:
        return VisionSpec(side, max_tiles, tokens, _size(header, "projection_dim"), mean, std)
    except ArtifactError as error:
        raise ArtifactError(f"{header.path}: {error.message}", remedy=DAMAGED) from error


def _channels(header: Header, key: str) -> tuple[float, float, float]:
    """A number each for red, green and blue, as the shortest decimal that it is."""
    values = items(header, _PREFIX + key, ValueType.FLOAT32, default=())
    if len(values) != 3:
        raise _wrong(header, key, f"has {len(values)} numbers, expected three")
    red, green, blue = map(shortest, values)
    return red, green, blue
