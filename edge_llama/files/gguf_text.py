"""A text tower in GGUF files: what their header says of it, checked. No native code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edge_llama.errors import ArtifactError
from edge_llama.files import gguf_metadata, text_rules
from edge_llama.files.artifact import Recommended, Row
from edge_llama.files.gguf import DAMAGED, Header, TensorInfo, ValueType
from edge_llama.files.gguf_adapter import KIND as ADAPTER
from edge_llama.files.gguf_encoders import ENCODERS, POOLINGS, check_encoder
from edge_llama.files.gguf_limits import check_model, items, numbers
from edge_llama.files.gguf_parts import read_parts
from edge_llama.files.gguf_warnings import quality_warnings
from edge_llama.files.identity import identity_of
from edge_llama.files.integrity import verify
from edge_llama.files.mmproj import ARCHITECTURE as MMPROJ
from edge_llama.files.shape import TextShape
from edge_llama.files.text_artifact import TextArtifact

END_TOKENS = "edge_llama.eos_token_ids"
"""Every token that ends an answer, where the publisher names several: llama.cpp's own keys hold one."""
_TEMPLATE = "tokenizer.chat_template"
"""The key of the chat template, and with a dot and a name after it of others."""
_VISION = ("v.", "mm.")
"""How the names of a vision tower's tensors begin."""
_SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFArtifact(TextArtifact):
    """A text tower for llama.cpp."""

    engine: ClassVar[str] = "llama.cpp"

    headers: tuple[Header, ...] = field(repr=False)
    """One for each file; the metadata is in the first."""

    @property
    def header(self) -> Header:
        """The metadata, and the tensors of the first file."""
        return self.headers[0]

    @property
    def form(self) -> str:
        """GGUF and its version."""
        return f"GGUF {self.header.version}"

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of all files."""
        return tuple(tensor for header in self.headers for tensor in header.tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, the first of them first."""
        return tuple(header.path for header in self.headers)

    @property
    def shape(self) -> TextShape:
        """By the metadata: what is given by layer counts as the layer has it that has the most."""
        prefix = self.architecture

        def most(key: str, default: int = 0) -> int:
            return max(numbers(self.header, f"{prefix}.{key}"), default=0) or default

        n_embd, n_head = most("embedding_length"), most("attention.head_count", 1)
        n_used, merges = most("expert_used_count"), self.header.fields.get("tokenizer.ggml.merges")
        n_expert_ff = n_used * most("expert_feed_forward_length", most("feed_forward_length"))
        return TextShape(
            name=self.name,
            engine=self.engine,
            tensors=self.tensors,
            weight_bytes=self.weight_bytes,
            n_layer=self.n_layer,
            n_ctx_train=self.n_ctx_train,
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=most("attention.head_count_kv", n_head),
            head_dim=most("attention.key_length", n_embd // n_head),
            n_ff=max(most("feed_forward_length"), n_expert_ff),
            n_vocab=self.n_vocab,
            kv_values_per_token=self.kv_values_per_token,
            n_merges=len(merges.data) if merges and merges.item is not None else 0,
            n_expert=most("expert_count"),
            n_expert_used=n_used,
            has_windows=prefix == "llama4" or most("attention.sliding_window") > 0,
            has_output=any(tensor.name == "output.weight" for tensor in self.tensors),
        )

    @property
    def takes_adapters(self) -> bool:
        """llama.cpp can, where something is written."""
        return not self.is_encoder

    @property
    def is_encoder(self) -> bool:
        """Whether llama.cpp keeps no cache for it: such a model embeds text."""
        return self.architecture in ENCODERS

    @property
    def sees_whole_text(self) -> bool:
        """An encoder does, and a decoder that was trained on to embed: ``attention.causal`` is false."""
        return self.is_encoder or not self.header.get(f"{self.architecture}.attention.causal", bool, True)

    @property
    def gives_hidden_states(self) -> bool:
        """llama.cpp gives them of any model; on what it would die is found out by a child process."""
        return True

    @property
    def pooling(self) -> str | None:
        """By ``{arch}.pooling_type``."""
        return POOLINGS[self.header.get(f"{self.architecture}.pooling_type", int, 0)]

    @property
    def cache_depends_on_context(self) -> bool:
        """Whether the context's size changes what the KV cache holds: with long rope factors it does."""
        return any(tensor.name.startswith("rope_factors_long") for tensor in self.tensors)

    def identity(self) -> str:
        """See :func:`edge_llama.files.identity.identity_of`."""
        return identity_of((header.path, header.data_offset, header.tensors) for header in self.headers)

    def metadata(self) -> Mapping[str, Any]:
        """The first file's fields as JSON has them."""
        return gguf_metadata.as_json(self.header)

    def rows(self) -> Sequence[Row]:
        """The same for people."""
        return gguf_metadata.as_rows(self.header)

    def verify(self, on_progress: Callable[[int], None]) -> None:
        """See :func:`edge_llama.files.integrity.verify`."""
        for header in self.headers:
            verify(header, on_progress)


def read_gguf_text(path: Path) -> GGUFArtifact:
    """Read the header at ``path`` and check what a text tower needs; ArtifactError names what is wrong.

    A model that was written in several files is read from the first of them.
    """
    headers = read_parts(path)
    header = headers[0]
    architecture = header.architecture
    if not architecture:
        raise ArtifactError(f"{path}: general.architecture is missing", remedy="this GGUF file holds no model")
    if (kind := header.fields.get("general.type")) is not None and kind.item is None and kind.data == ADAPTER:
        raise ArtifactError(
            f"{path}: this is an adapter, which has no model in it",
            remedy="open the model that it was trained beside, and this file by adapters= (--adapter)",
        )
    if architecture == MMPROJ:
        raise ArtifactError(
            f"{path}: this is a vision tower (mmproj) alone", remedy="open the text model, and this file by --vision"
        )
    if vision := next((t.name for each in headers for t in each.tensors if t.name.startswith(_VISION)), None):
        raise ArtifactError(
            f"{path}: has its vision tower in the same file ({vision}), which llama.cpp does not load",
            remedy="take one with the text tower alone, and its mmproj by --vision",
        )
    n_layer, n_ctx_train = _positive(header, "block_count"), _positive(header, "context_length")
    kv_values = 0 if architecture in ENCODERS else _kv_values(header, n_layer)
    check_model(headers)
    check_encoder(header)
    templates = _chat_templates(header)
    artifact = GGUFArtifact(
        path=path,
        headers=headers,
        name=header.get("general.name", str, path.stem),
        architecture=architecture,
        chat_template=templates.pop("default", None),
        named_templates=templates,
        warnings=() if architecture in ENCODERS else quality_warnings(header, END_TOKENS),
        n_layer=n_layer,
        n_ctx_train=n_ctx_train,
        n_vocab=len(header.fields["tokenizer.ggml.tokens"].data),
        kv_values_per_token=kv_values,
        sampling=_sampling(header),
    )
    text_rules.from_gguf(header, artifact.n_vocab)  # what is no rule shows now
    if any(token >= artifact.n_vocab for token in items(header, END_TOKENS, ValueType.UINT32, default=())):
        raise ArtifactError(f"{path}: {END_TOKENS} holds what is no token", remedy=DAMAGED)
    return artifact


def _chat_templates(header: Header) -> dict[str, str]:
    """Chat templates by name; empty ones are none."""
    named = {key.removeprefix(f"{_TEMPLATE}."): key for key in header.fields if key.startswith(f"{_TEMPLATE}.")}
    keys = {**named, **({"default": _TEMPLATE} if _TEMPLATE in header.fields else {})}
    texts = {name: header.get(key, str, "") for name, key in keys.items()}
    return {name: text for name, text in texts.items() if text}


def _sampling(header: Header) -> tuple[Recommended, ...]:
    keys = {f"general.sampling.{key}": option for key, option in _SAMPLING_KEYS.items()}
    return tuple(Recommended(keys[key], key, header.fields[key].data) for key in keys if key in header.fields)


def _positive(header: Header, key: str) -> int:
    key = f"{header.architecture}.{key}"
    number = header.get(key, int, 0)
    if number < 1:
        problem = f"is {number}, expected a positive number" if key in header.fields else "is missing"
        raise ArtifactError(f"{header.path}: {key} {problem}", remedy=DAMAGED)
    return number


def _kv_values(header: Header, n_layer: int) -> int:
    """Values per token over all layers; head counts may be given per layer."""
    prefix = f"{header.architecture}.attention."
    heads = numbers(header, prefix + "head_count")
    width = _positive(header, "embedding_length")
    if len(heads) == 1 and heads[0] == 0 and header.architecture != "llama":
        return 0  # recurrent: no attention, no cache that grows
    if len(heads) == 1 and (heads[0] < 1 or (width % heads[0] and prefix + "key_length" not in header.fields)):
        raise ArtifactError(
            f"{header.path}: {prefix}head_count is {heads[0]:,}, expected a divisor of {width:,}", remedy=DAMAGED
        )
    head_dim = width // max(max(heads, default=0), 1)
    values = header.get(prefix + "key_length", int, head_dim) + header.get(prefix + "value_length", int, head_dim)
    kv_heads = numbers(header, prefix + "head_count_kv") or heads
    if len(kv_heads) != 1:
        return sum(kv_heads) * values
    if len(heads) == 1 and (kv_heads[0] < 1 or heads[0] % kv_heads[0]):
        raise ArtifactError(
            f"{header.path}: {prefix}head_count_kv is {kv_heads[0]:,}, which does not divide {heads[0]:,} heads",
            remedy=DAMAGED,
        )
    return n_layer * kv_heads[0] * values
