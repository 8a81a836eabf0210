"""A certificate as people read it."""

from collections.abc import Iterator, Sequence

from edge_llama.errors import printable
from edge_llama.fidelity.certificate import Certificate, Part

_HASH = 16
"""Digits of a hash that are shown."""


def lines(certificate: Certificate) -> Iterator[str]:
    """A few lines: of what it is, the numbers, the parts that are furthest off."""
    numbers = certificate.numbers
    yield printable(
        f"certificate: {certificate.recipe}, from {certificate.source} (weights {certificate.source_sha256[:_HASH]}…)"
    )
    yield (
        f"  KL divergence {numbers.kl:.4g} nats (median {numbers.kl_median:.3g}, 99 % {numbers.kl_99:.3g}, "
        f"largest {numbers.kl_max:.3g}), same choice {100 * numbers.top1:.1f} %"
    )
    yield (
        f"  perplexity {numbers.perplexity:.4g}, of the checkpoint {numbers.perplexity_reference:.4g}, "
        f"ratio {numbers.ratio:.4f}; {numbers.n_tokens:,} tokens in chunks of {numbers.n_ctx:,}"
    )
    if certificate.engine_kl is not None:
        yield (f"  {certificate.engine} is {certificate.engine_kl:.3g} nats from what the same weights give in float32")
    if certificate.not_located:
        yield printable(f"  {certificate.not_located}")
    if certificate.vision:
        yield f"  vision: features of {len(certificate.vision)} tiles, at most {max(certificate.vision):.3g} off"
    if certificate.layers:
        yield f"  layers: {_furthest(certificate.layers)}"
    if certificate.components:
        yield f"  outside them: {_furthest(certificate.components)}"
    versions = ", ".join(f"{name} {number}" for name, number in certificate.versions.items())
    yield printable(f"  measured by {versions}; it does not say by whom")


def _furthest(parts: Sequence[Part]) -> str:
    worst = max(parts, key=lambda part: part.error)
    return printable(
        f"{len(parts)}, the furthest off is {worst.name}: {worst.error:.3g}, its rounding gives {worst.expected:.3g}"
    )
