"""A family of models from its tables: names, roles, shapes, hyperparameters, both ways between Hugging Face and GGUF.

What is particular to a family stands in its own file, as rows; what is the same for all is done here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.architectures import rope
from converters.architectures.hyperparameters import Hyperparameters, Rope
from converters.architectures.rope import ROPE_FREQS
from converters.architectures.rotary import llama3_factors
from converters.architectures.table import HParam, Limit, TensorSpec, Values
from converters.architectures.unused_fields import check_unknown
from converters.checkpoint import NOT_TOGETHER, Checkpoint, Tensor, config_fields, text_config
from converters.tensors.constant import constant
from converters.tensors.joined import joined
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Header, Value
from edge_llama.files.json_fields import Fields
from quant.recipe import ROLES, Model

HEAD = "lm_head.weight"
LINEARS = frozenset(ROLES) - {"token_embd", "output"}
"""Roles of matrices that are linear layers within the layers."""
MAX_LAYERS = 1 << 12
"""Lists are made of a number in a file: it must be one that a model may have."""
_IGNORED = r"rope\.freqs$|\.rotary_emb\.inv_freq$"  # recomputed by every runtime
_CONFIG_ORDER = (  # in which people know config.json; other fields follow
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "hidden_act", "tie_word_embeddings", "attention_bias", "mlp_bias"),
)
_LABELS = {"gguf": "GGUF", "onnx": "ONNX"}
_KEEP = "keep the Hugging Face folder: no file of this kind can express it"


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the output under its GGUF name, with what recipes ask: its role and layer (-1 outside the layers)."""

    tensor: Tensor
    role: str
    layer: int


class ServingTensors(NamedTuple):
    """A folder's tensors by name: matrices that are linear layers, each of its own, and all others."""

    linears: Mapping[str, Tensor]
    others: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Place:
    """A row of the table of tensors at a layer (-1: outside the layers) of one model."""

    spec: TensorSpec
    layer: int

    @property
    def prefix(self) -> str:
        """What stands before its name at Hugging Face."""
        return "" if self.layer < 0 else f"model.layers.{self.layer}."

    @property
    def hf(self) -> str:
        """Its whole name at Hugging Face."""
        return self.prefix + self.spec.hf

    @property
    def gguf(self) -> str:
        """Its whole name in GGUF."""
        return self.spec.gguf if self.layer < 0 else f"blk.{self.layer}.{self.spec.gguf}"


def _nothing(_fields: Fields, _values: Values) -> Mapping[str, Any]:
    return {}


def _one_rope(fields: Fields, values: Values, default_theta: float) -> Mapping[str, Rope]:
    return {"rope": rope.read_rope(fields, values["n_ctx"], default_theta)}


def _unsaid(_header: Header) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The tables; see :class:`~converters.architectures.Architecture`.

    ``outside`` and ``layer`` are the tensors. ``fixed`` are fields of :class:`Hyperparameters` that no config.json
    changes, ``read_ropes`` gives those of rotary embedding. ``derived`` gives fields of :class:`Hyperparameters`
    that follow from several of config.json, which ``derived_keys`` names. ``limits`` say by target (gguf, onnx)
    what it can express. ``ropes`` are the kinds of rotary scaling that llama.cpp's graph takes. ``towers`` are what
    may stand before names of the text tower's tensors in place of ``model.``, ``others`` matches those of other
    towers. ``from_gguf`` gives what the table can't say of config.json. ``has_experts`` tells two families apart
    that GGUF calls the same. ``tells_space_prefix``: as llama.cpp's converter for this family.
    ``kept_roles`` are of linear layers that engines don't take quantized, ``kept_modules`` match the names of all that
    aren't quantized, the head's excepted (regular expressions, from the beginning of a name). ``overflows_float16``:
    the activations do.
    """

    name: str
    called: str
    """As errors call it."""
    gguf_name: str
    config_names: tuple[str, ...]
    model_type: str
    hparams: tuple[HParam, ...]
    outside: tuple[TensorSpec, ...]
    layer: tuple[TensorSpec, ...]
    default_theta: float = 10000.0
    ropes: tuple[str, ...] = ("default", "linear", "yarn", "llama3", rope.EXPLICIT)
    read_ropes: Callable[[Fields, Values, float], Mapping[str, Rope]] = _one_rope
    fixed: Mapping[str, Any] = field(default_factory=dict)
    derived: Callable[[Fields, Values], Mapping[str, Any]] = _nothing
    derived_keys: frozenset[str] = frozenset()
    limits: Mapping[str, tuple[Limit, ...]] = field(default_factory=dict)
    towers: tuple[str, ...] = ()
    others: str = ""
    from_gguf: Callable[[Header], Mapping[str, Any]] = _unsaid
    has_experts: bool | None = None
    tells_space_prefix: bool = True
    kept_roles: frozenset[str] = frozenset()
    kept_modules: tuple[str, ...] = ()
    overflows_float16: bool = False

    def claims(self, header: Header) -> bool:
        """Whether a GGUF file is of this family."""
        has_experts = header.get(f"{header.architecture}.expert_count", int, 0) > 0
        return header.architecture == self.gguf_name and self.has_experts in (None, has_experts)

    def hyperparameters(self, checkpoint: Checkpoint) -> Hyperparameters:
        """What config.json says; CheckpointError names the field that is missing, wrong, or not understood."""
        has_head = self._take(checkpoint).has(HEAD)
        return self.read(checkpoint.config, checkpoint.path, has_head=has_head)

    def read(self, config: Mapping[str, Any], path: Path, *, has_head: bool) -> Hyperparameters:
        """The same of a config.json's content; ``has_head``: whether there is a tensor for the output."""
        fields = config_fields(text_config(config), path)
        for key in ("quantization_config", "quantization"):  # transformers' name, and MLX's
            if fields.content.get(key):
                raise fields.fail(key, "is set: these weights are quantized", "give the full-precision checkpoint")
        values: dict[str, Any] = {}
        for row in self.hparams:
            is_null = fields.content.get(row.key, row) is None
            values[row.field] = row.kind.read(fields, row.key, row.fallback(values, is_null=is_null))
            if row.check and (problem := row.check(values, fields.content)):
                raise fields.fail(row.key, problem)
        if values["n_layer"] > MAX_LAYERS:
            raise fields.fail("num_hidden_layers", f"is {values['n_layer']}, expected {MAX_LAYERS} at most")
        values |= self.fixed
        values |= self.read_ropes(fields, values, self.default_theta)
        values |= self.derived(fields, values)
        values["tied"] = values["tied"] and not has_head
        check_unknown(fields, {row.key for row in self.hparams} | rope.KEYS | self.derived_keys)
        return Hyperparameters(**values)

    def check_limits(self, target: str, checkpoint: Checkpoint, hp: Hyperparameters) -> None:
        """CheckpointError for the first value that the target can't express. What is from GGUF is, in GGUF."""
        if target == "gguf" and checkpoint.metadata:
            return
        fields = config_fields(text_config(checkpoint.config), checkpoint.path)
        limits = self.limits.get(target, ())
        if target == "gguf":
            limits = (*limits, *_rope_limits(self.ropes))
        for limit in limits:
            if not limit.holds(hp):
                key = next((key for key in limit.keys if fields.content.get(key)), limit.keys[0])
                problem = f"is {fields.content.get(key)!r:.100}; in {_LABELS[target]} it can only be: {limit.only}"
                raise fields.fail(key, problem, _KEEP)

    def places(self, hp: Hyperparameters) -> Iterator[Place]:
        """The table's rows in this model, outside the layers first."""
        yield from (Place(spec, -1) for spec in self.outside if spec.hf != HEAD or not hp.tied)
        for layer in range(hp.n_layer):
            yield from (Place(spec, layer) for spec in self.layer if spec.when(hp, layer))

    def places_in(self, checkpoint: Checkpoint) -> Mapping[str, Place]:
        """The table's rows by the names that the checkpoint has for them."""
        published = self._take(checkpoint).published
        return {published(place.hf): place for place in self.places(self.hyperparameters(checkpoint))}

    def _take(self, checkpoint: Checkpoint) -> "_Take":
        return _Take(checkpoint, self.towers)

    def _canonical(self, checkpoint: Checkpoint, hp: Hyperparameters) -> dict[Place, Tensor]:
        """The tower's tensors, checked for shape; CheckpointError for what is missing or left over."""
        take = self._take(checkpoint)
        found = {
            place: place.spec.view.load(take, place.prefix, place.spec.hf, place.spec.sizes(hp))
            for place in self.places(hp)
        }
        known = take.used | (set(rope.KEPT) if hp.rope.kind == rope.EXPLICIT else set())
        ignored = re.compile(f"{_IGNORED}|{self.others}" if self.others else _IGNORED)
        left = sorted(name for name in checkpoint.tensors if name not in known and not ignored.search(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(
                f"{checkpoint.path}: tensor {left[0]!r}{more} is not part of a {self.called} of this config",
                remedy=NOT_TOGETHER,
            )
        return found

    def weights(self, checkpoint: Checkpoint) -> list[Weight]:
        """Every tensor of the GGUF file, checked for shape, in llama.cpp's order of tensors and rows. Reads nothing."""
        hp = self.hyperparameters(checkpoint)
        self.check_limits("gguf", checkpoint, hp)
        weights = [
            Weight(place.spec.view.to_gguf(tensor, hp).renamed(place.gguf), place.spec.role, place.layer)
            for place, tensor in self._canonical(checkpoint, hp).items()
        ]
        # Last: the Q projection has shown by now that head_dim is a size to make something of.
        weights += _rope_weights(hp, checkpoint)
        return sorted(weights, key=lambda weight: (weight.layer, weight.tensor.name.encode()))

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Value]:
        """The hyperparameters under llama.cpp's keys."""
        hp, config = self.hyperparameters(checkpoint), text_config(checkpoint.config)
        found: dict[str, Value] = {}
        for row in self.hparams:
            if not row.given or config.get(row.key) is not None:
                value = getattr(hp, row.field)
                found |= {key: row.kind.pack(value) for key in row.gguf if value is not None}
            if row.field == "n_head_kv":
                found |= rope.to_gguf(hp.rope, hp.window_rope)
        return {f"{self.gguf_name}.{key}": value for key, value in found.items()}

    def recipe_model(self, checkpoint: Checkpoint) -> Model:
        """What a recipe's rules ask."""
        hp = self.hyperparameters(checkpoint)
        return Model(hp.n_layer, hp.n_head, hp.n_head_kv, hp.n_expert)

    def tower_tensors(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """The text tower's, a row for each output, norms as they multiply; CheckpointError unless it is whole."""
        hp = self.hyperparameters(checkpoint)
        self.check_limits("onnx", checkpoint, hp)
        found = {
            place.hf: place.spec.view.to_tower(tensor).renamed(place.hf)
            for place, tensor in self._canonical(checkpoint, hp).items()
        }
        if hp.rope.kind == rope.EXPLICIT:
            if any(name in checkpoint.tensors for name in rope.KEPT[1:]) or ROPE_FREQS not in checkpoint.tensors:
                raise _unscaled(checkpoint, hp)
            found[ROPE_FREQS] = checkpoint.tensor(ROPE_FREQS, (hp.head_dim // 2,))
        return found

    def serving_tensors(self, checkpoint: Checkpoint) -> ServingTensors:
        """A folder's tensors for programs that quantize linear layers; CheckpointError as :meth:`folder_tensors`."""
        folder, published = self.folder_tensors(checkpoint), self._take(checkpoint).published
        linears, taken = list[Tensor](), set[str]()
        for place, tensor in self._canonical(checkpoint, self.hyperparameters(checkpoint)).items():
            if place.spec.role in LINEARS - self.kept_roles:
                where = (place.prefix, place.spec.hf, tensor)
                linears += place.spec.view.apart(*where)
                taken.update(published(part.name) for part in place.spec.view.store(*where))
        return ServingTensors(
            {(name := published(linear.name)): linear.renamed(name) for linear in linears},
            {name: tensor for name, tensor in folder.items() if name not in taken},
        )

    def folder_tensors(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """All of the checkpoint's; CheckpointError unless the text tower is whole and config.json can express it."""
        hp = self.hyperparameters(checkpoint)
        tower = self._canonical(checkpoint, hp)
        if hp.rope.kind == rope.EXPLICIT:
            raise _unscaled(checkpoint, hp)
        if not checkpoint.metadata:
            return checkpoint.tensors
        found: dict[str, Tensor] = {}
        for place, tensor in tower.items():
            for part in place.spec.view.store(place.prefix, place.spec.hf, tensor):
                earlier = found.get(part.name)
                found[part.name] = joined([earlier, part], -1) if earlier else part
        return found

    def config_from_gguf(self, header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """A config.json's content from GGUF metadata, and from tensors that hold settings."""
        values: dict[str, Any] = {}
        config: dict[str, Any] = {"architectures": [self.config_names[0]], "model_type": self.model_type}
        for row in self.hparams:
            if row.field in values:
                continue
            keys = [f"{header.architecture}.{key}" for key in row.gguf]
            there = next((key for key in keys if key in header.fields), None)
            if row.field == "n_vocab":
                value = _n_vocab(header, tensors)
            elif row.field == "tied":
                value = "output.weight" not in tensors
            elif row.tensor:
                value = row.tensor in tensors
            else:
                value = row.kind.unpack(header, there) if there else row.fallback(values)
            values[row.field] = config[row.key] = value
            if row.field == "n_head" and not value:  # what follows from it divides by it
                values[row.field] = 1
        config |= rope.from_gguf(header, tensors.get(ROPE_FREQS), values["head_dim"], self.default_theta)
        config = {**config, **self.from_gguf(header)}
        return {key: config[key] for key in sorted(config, key=_place_in_config)}

    def tensors_from_gguf(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
    ) -> dict[str, Tensor]:
        """GGUF's tensors under Hugging Face's names and in its order of rows."""
        hp = self.read(config, path, has_head="output.weight" in tensors)
        places = {place.gguf: place for place in self.places(hp)}
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if name in rope.KEPT:
                found |= {name: tensor} if hp.rope.kind == rope.EXPLICIT else {}
            elif name in places:
                place = places[name]
                found[place.hf] = place.spec.view.from_gguf(tensor, hp).renamed(place.hf)
            else:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is not part of a {self.called}",
                    remedy="start from the original checkpoint",
                )
        return found


class _Take:
    """The tensors of a checkpoint under canonical names, and which of them were taken."""

    def __init__(self, checkpoint: Checkpoint, towers: tuple[str, ...]) -> None:
        self._checkpoint = checkpoint
        names = checkpoint.tensors
        self._tower = next((tower for tower in towers if any(name.startswith(tower) for name in names)), "model.")
        self._head = next((head for head in (f"{self._tower.removesuffix('model.')}{HEAD}",) if head in names), HEAD)
        self.used: set[str] = set()

    def published(self, name: str) -> str:
        """What the checkpoint calls the tensor ``name``."""
        if name == HEAD:
            return self._head
        return self._tower + name.removeprefix("model.") if name.startswith("model.") else name

    def has(self, name: str) -> bool:
        return self.published(name) in self._checkpoint.tensors

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        name = self.published(name)
        self.used.add(name)
        return self._checkpoint.tensor(name, shape)


def _rope_limits(ropes: tuple[str, ...]) -> tuple[Limit, ...]:
    """What llama.cpp's graph of a family computes."""
    kinds = ", ".join(kind for kind in ropes if kind != rope.EXPLICIT)
    return (
        Limit(rope.PLACES, lambda hp: hp.rope.kind in ropes, kinds),
        Limit(rope.PLACES, lambda hp: rope.is_papers_yarn(hp.rope), "YaRN without truncate, mscale, attention_factor"),
    )


def _unscaled(checkpoint: Checkpoint, hp: Hyperparameters) -> CheckpointError:
    """The error about rotary frequencies that config.json can't express."""
    return CheckpointError(
        f"{checkpoint.path}: {hp.rope.scaling['by']}: no rope scaling of a config.json reproduces its values",
        remedy="convert to GGUF, which keeps it, or start from the original checkpoint",
    )


def _rope_weights(hp: Hyperparameters, checkpoint: Checkpoint) -> Iterator[Weight]:
    """The factors of the rotary frequencies, if they are scaled so that numbers in the metadata can't say it."""
    if hp.rope.kind == "llama3":
        yield Weight(constant(ROPE_FREQS, _factors(hp, checkpoint.path)), "norm", -1)
    elif hp.rope.kind == rope.EXPLICIT:
        for name in rope.KEPT:
            if name in checkpoint.tensors:
                yield Weight(checkpoint.tensor(name, (hp.head_dim // 2,)), "norm", -1)


def _factors(hp: Hyperparameters, path: Path) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        factors = llama3_factors(hp.head_dim, hp.rope.theta, hp.rope.scaling)
    if not np.isfinite(factors).all():
        numbers = {"rope_theta": hp.rope.theta, **hp.rope.scaling}
        raise CheckpointError(
            f"{path}: config.json: rope_scaling makes no finite frequencies of {numbers}",
            remedy="download config.json again",
        )
    return factors


def _place_in_config(key: str) -> int:
    return _CONFIG_ORDER.index(key) if key in _CONFIG_ORDER else len(_CONFIG_ORDER)


def _n_vocab(header: Header, tensors: Mapping[str, Tensor]) -> int:
    """Rows of the embedding; a vocabulary may be shorter, never longer."""
    n_tokens = len(header.fields["tokenizer.ggml.tokens"].data)
    embedding = tensors.get("token_embd.weight")
    rows = embedding.rows if embedding else n_tokens
    if n_tokens > rows:
        raise CheckpointError(
            f"{header.path}: {n_tokens:,} tokens but token_embd.weight has {rows:,} rows",
            remedy="the file is damaged: download or convert it again",
        )
    return rows
