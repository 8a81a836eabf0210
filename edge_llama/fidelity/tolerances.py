"""Two certificates of one file: which fields differ by more than another processor or thread count explains."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from edge_llama.fidelity.certificate import Certificate, Numbers, Part

_RELATIVE = {
    "kl": 0.1,
    "kl_median": 0.15,
    "kl_99": 0.3,
    "kl_max": 0.75,
    "perplexity": 0.005,
    "perplexity_reference": 0.001,
    "ratio": 0.005,
}
"""By this part of the larger. The tail hangs on few tokens; a mean over thousands hardly moves."""
_ABSOLUTE = {"kl": 2e-4, "kl_median": 2e-4, "kl_99": 2e-3, "kl_max": 2e-2}
"""And by so much more: engines compute activations in 8 or 16 bits, each processor in its own order."""
_TOP1, _TOP1_TOKENS = 0.01, 2.5
"""Of the part of tokens where both agree; in a short text so many tokens may be otherwise."""
_PART, _PART_MORE = 0.05, 1e-4
_VISION, _VISION_MORE = 0.2, 2e-3
_ENGINE = 0.02
"""Nats: the engine's own rounding of activations, the processor's more than the file's."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of which the file says another thing than was measured."""

    field: str
    claimed: str
    measured: str

    def __str__(self) -> str:
        return f"{self.field} is {self.claimed} in the certificate, {self.measured} was measured"


def differences(claimed: Certificate, measured: Certificate) -> Iterator[Difference]:
    """Fields of ``claimed`` that ``measured``, of the same file and checkpoint, doesn't bear out."""
    for name in ("source_sha256", "recipe", "evaluation", "not_located"):
        left, right = getattr(claimed, name), getattr(measured, name)
        if left != right:
            yield Difference(name, repr(left)[:80], repr(right)[:80])
    yield from _of_numbers(claimed.numbers, measured.numbers)
    if not _is_near(claimed.vision, measured.vision):
        yield Difference("vision", *(str([float(f"{each:.3g}") for each in of.vision]) for of in (claimed, measured)))
    one, two = claimed.engine_kl, measured.engine_kl
    if (one is None) != (two is None) or abs((one or 0.0) - (two or 0.0)) > _ENGINE:
        yield Difference("engine_kl", str(one), str(two))
    yield from _of_parts("layers", claimed.layers, measured.layers)
    yield from _of_parts("components", claimed.components, measured.components)


def _is_near(claimed: tuple[float, ...], measured: tuple[float, ...]) -> bool:
    if len(claimed) != len(measured):
        return False
    pairs = zip(claimed, measured, strict=True)
    return all(abs(one - two) <= _VISION * max(one, two) + _VISION_MORE for one, two in pairs)


def _of_numbers(claimed: Numbers, measured: Numbers) -> Iterator[Difference]:
    for each in fields(Numbers):
        left, right = getattr(claimed, each.name), getattr(measured, each.name)
        most = _RELATIVE.get(each.name, 0.0) * max(abs(left), abs(right)) + _ABSOLUTE.get(each.name, 0.0)
        if each.name == "top1":
            most = max(_TOP1, _TOP1_TOKENS / measured.n_tokens)
        if abs(left - right) > most:
            yield Difference(f"numbers.{each.name}", f"{left:.6g}", f"{right:.6g}")


def _of_parts(name: str, claimed: tuple[Part, ...], measured: tuple[Part, ...]) -> Iterator[Difference]:
    left, right = ([part.name for part in parts] for parts in (claimed, measured))
    if left != right:
        yield Difference(name, f"of {len(left)} parts", f"of {len(right)}")
        return
    for own, other in zip(claimed, measured, strict=True):
        for field in ("error", "expected"):
            one, two = getattr(own, field), getattr(other, field)
            if abs(one - two) > _PART * max(abs(one), abs(two)) + _PART_MORE:
                yield Difference(f"{name}: {own.name}: {field}", f"{one:.4g}", f"{two:.4g}")
