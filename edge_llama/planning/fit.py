"""Will it fit, and how fast: a model's shape against a machine. No weight is read, and no file need be there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_llama.backends.base import Engine, Setting
from edge_llama.backends.estimates import Need
from edge_llama.files.shape import TextShape
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.planning.machine import Machine
from edge_llama.planning.memory import DEFAULT_LIMIT, most
from edge_llama.planning.plan import needed

ISOLATION_BYTES = 75 << 20
"""Of a process of its own: Python, numpy and the engine's library."""
DRIVER_BYTES = 500 << 20
"""Of a GPU, what its driver takes for a process: documented nowhere, and so much as a rule."""
_EFFICIENCY = 0.7
"""Of a machine's bandwidth, as a rule, what kernels reach."""
_SPLIT = 256
_USUAL = Setting()


@dataclass(frozen=True, slots=True)
class VisionShape:
    """A vision tower without its weights.

    Examples:
        >>> from edge_llama.convert import shapes
        >>> vision = shapes("tests/data/configs/llama-4-scout.json").vision
        >>> vision.image_tokens  # the most that one takes
        2448
    """

    weight_bytes: int
    spec: VisionSpec
    n_embd: int
    n_head: int
    n_ff: int
    patches: int
    """Of a tile, the class token among them."""

    @property
    def image_tokens(self) -> int:
        """The most that an image takes of the context: all its tiles, and the whole once more."""
        return (self.spec.max_tiles + (self.spec.max_tiles > 1)) * self.spec.tokens_per_tile

    @property
    def compute_bytes(self) -> int:
        """What lies between a tile and its embeddings at the widest point."""
        return 4 * self.patches * (self.patches * self.n_head * 2 + 4 * self.n_embd + 2 * self.n_ff)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the model shall do there.

    Examples:
        >>> from edge_llama.fit import Asked, fit
        >>> one, eight = (fit(asked=Asked(n_ctx=256, max_running=count)) for count in (1, 8))
        >>> one.needed <= eight.needed
        True
    """

    n_ctx: int | None = None
    max_running: int = 1
    setting: Setting = _USUAL
    is_isolated: bool = False


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second: of a prompt, of an answer at its beginning, and at the end of the context.

    Examples:
        >>> from edge_llama.fit import fit
        >>> speed = fit().speed
        >>> speed.is_measured, speed.answer >= speed.answer_at_end
        (True, True)
    """

    prompt: float
    answer: float
    answer_at_end: float
    is_measured: bool
    """Whether by kernels that ran here; else no machine of its kind can be faster."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A model on a machine. ``terms`` are bytes by what they are for; together ``needed``.

    Examples:
        >>> from edge_llama.fit import fit
        >>> found = fit()
        >>> found.needed == sum(found.terms.values()), found.fits == (found.remaining >= 0)
        (True, True)
        >>> found.to_json()["machine"]
        'here'
    """

    shape: TextShape
    machine: Machine
    setting: Setting
    n_ctx: int
    terms: Mapping[str, int]
    host_terms: Mapping[str, int]
    """What lies in the host's memory where the device has its own: of that nothing is told."""
    largest_n_ctx: int
    """The most context that fits; 0: not even the weights do."""
    image_tokens: int = 0
    speed: Speed | None = None

    @property
    def needed(self) -> int:
        """Bytes of all terms."""
        return sum(self.terms.values())

    @property
    def remaining(self) -> int:
        """Bytes that are left; negative if it does not fit."""
        return self.machine.memory - self.needed

    @property
    def prompt_cache(self) -> int:
        """Bytes that copies of what was prefilled may take beside: as much as the KV cache, half of what is left."""
        return min(self.terms["KV cache"], max(0, self.remaining) // 2)

    @property
    def from_disk(self) -> int:
        """Bytes that a token would have to read from the disk, on average, if the weights were mapped.

        Of a token's weights as large a part as memory lacks of all.
        """
        lacking = min(-self.remaining, self.shape.weight_bytes)
        return max(0, lacking) * self.shape.active_bytes // max(self.shape.weight_bytes, 1)

    @property
    def fits(self) -> bool:
        """Whether nothing is lacking."""
        return self.remaining >= 0

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        speed = self.speed
        return {
            "name": self.shape.name,
            "engine": self.shape.engine,
            "machine": self.machine.name,
            "device": self.machine.device,
            "memory": self.machine.memory,
            "n_ctx": self.n_ctx,
            "kv_format": self.setting.kv_format,
            "flash_attention": self.setting.flash_attention,
            "terms": dict(self.terms),
            "host_terms": dict(self.host_terms),
            "needed": self.needed,
            "prompt_cache": self.prompt_cache,
            "remaining": self.remaining,
            "fits": self.fits,
            "largest_n_ctx": self.largest_n_ctx,
            "image_tokens": self.image_tokens,
            "speed": None
            if speed is None
            else {
                "prompt": speed.prompt,
                "answer": speed.answer,
                "answer_at_end": speed.answer_at_end,
                "is_measured": speed.is_measured,
            },
        }


def fit(
    engine: Engine[Any],
    shape: TextShape,
    vision: VisionShape | None,
    machine: Machine,
    asked: Asked,
) -> Fit:
    """The model of this shape on ``machine``, with the context that was asked for, else with what is useful there."""
    need_of = needed(engine, shape, asked.setting, asked.max_running, is_reserved=machine.is_apart)

    def terms(n_ctx: int) -> dict[str, int]:
        found = _terms(need_of(n_ctx, n_ctx), vision, asked)
        return _on_device(found, shape) if machine.is_apart else found

    def is_held(n_ctx: int) -> bool:
        return sum(terms(n_ctx).values()) <= machine.memory

    steps = most(0, max(shape.n_ctx_train // _SPLIT, 1), lambda count: is_held(min(_SPLIT * count, shape.n_ctx_train)))
    largest = min(_SPLIT * steps, shape.n_ctx_train) if steps else 0
    n_ctx = asked.n_ctx or max(min(largest, DEFAULT_LIMIT, shape.n_ctx_train), min(_SPLIT, shape.n_ctx_train))
    image_tokens = vision.image_tokens if vision else 0
    host = _on_host(_terms(need_of(n_ctx, n_ctx), vision, asked), shape) if machine.is_apart else {}
    return Fit(shape, machine, asked.setting, n_ctx, terms(n_ctx), host, largest, image_tokens)


_HOST = ("vocabulary", "engine", "vision weights", "vision compute", "own process")
"""Terms that stay with the host, where the device has a memory of its own."""


def _on_device(terms: Mapping[str, int], shape: TextShape) -> dict[str, int]:
    found = {name: nbytes for name, nbytes in terms.items() if name not in _HOST}
    return {**found, "weights": found["weights"] - shape.embedding_bytes, "driver": DRIVER_BYTES}


def _on_host(terms: Mapping[str, int], shape: TextShape) -> dict[str, int]:
    return {"embeddings": shape.embedding_bytes, **{name: terms[name] for name in _HOST if name in terms}}


def _terms(need: Need, vision: VisionShape | None, asked: Asked) -> dict[str, int]:
    found = {
        "weights": need.weights,
        "KV cache": need.kv_cache,
        "compute": need.compute,
        "vocabulary": need.vocabulary,
        "engine": need.engine,
    }
    if vision:
        found |= {"vision weights": vision.weight_bytes, "vision compute": vision.compute_bytes}
    if asked.is_isolated:
        found["own process"] = ISOLATION_BYTES
    return found


def bound(shape: TextShape, setting: Setting, machine: Machine, n_ctx: int) -> Speed | None:
    """A roofline: what a machine of this bandwidth and arithmetic can't exceed. None where they are not known."""
    if not machine.bandwidth:
        return None
    kv_bytes = shape.kv_values_per_token * _kv_width(setting)
    per_token = shape.active_bytes / (machine.bandwidth * _EFFICIENCY)
    at_end = per_token + n_ctx * kv_bytes / (machine.bandwidth * _EFFICIENCY)
    operations = 2 * shape.active_weights
    prompt = machine.flops * _EFFICIENCY / max(operations, 1) if machine.flops else 1 / per_token
    return Speed(prompt, 1 / per_token, 1 / at_end, is_measured=False)


def _kv_width(setting: Setting) -> float:
    return {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}.get(setting.kv_format, 2.0)


def best(found: Mapping[str, Fit]) -> str | None:
    """Of these the one with the most bytes of weights that fits: more bits answer better. None: nothing does."""
    return max(
        (name for name in found if found[name].fits), key=lambda name: found[name].terms["weights"], default=None
    )
