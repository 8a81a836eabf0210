"""What the server has done, in Prometheus's words. No label is a client's own text."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_llama.runtime.stats import Stats
from edge_llama.server.traffic import Traffic

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class Counts:
    """The tokens of a request, as far as it came."""

    model: str
    prompt: int
    cached: int = 0
    """Of the prompt, those that were not read again."""
    generated: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over."""

    method: str
    endpoint: str
    """The route's pattern, not the path."""
    status: int
    seconds: float
    counts: Counts | None


_GAUGES = {
    "running": "Requests that the model prefills or answers.",
    "queued": "Requests that wait for their turn.",
    "max_running": "Requests that it serves at once.",
    "used_cells": "Positions of the KV cache that are taken.",
    "cells": "Positions of the KV cache.",
    "cached_bytes": "Memory that copies of sequences and pictures' embeddings take.",
}
_COUNTERS = {
    "prompt_tokens": "Tokens that were prefilled since the model was loaded.",
    "generated_tokens": "Tokens that were decoded one by one since the model was loaded.",
    "seconds": "Seconds in which the engine was at work since the model was loaded.",
}
"""Fields of :class:`edge_llama.runtime.stats.Stats`."""


class Metrics:
    """What was counted. A registry of its own: several servers in one process don't mix."""

    def __init__(self, traffic: Traffic) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests by endpoint and status.", "method", "endpoint", "status")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.", "model")
        self._cached = self._counter("cached_tokens", "Tokens of prompts that the cache held.", "model")
        self._generated = self._counter("generated_tokens", "Tokens of answers.", "model")
        self._seconds = Histogram(
            "edge_llama_request_seconds",
            "From a request to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._now = _Now(traffic)
        self._registry.register(self._now)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"edge_llama_{name}", about, labels, registry=self._registry)

    def ended(self, request: Ended) -> None:
        """Count a request."""
        method = request.method if request.method in _METHODS else "other"
        self._requests.labels(method, request.endpoint, str(request.status)).inc()
        self._seconds.labels(request.endpoint).observe(request.seconds)
        if counts := request.counts:
            self._prompt.labels(counts.model).inc(counts.prompt)
            self._cached.labels(counts.model).inc(counts.cached)
            self._generated.labels(counts.model).inc(counts.generated)

    def text(self, stats: Mapping[str, Stats]) -> bytes:
        """All of it, with ``stats`` of the models that are loaded, in Prometheus's text format."""
        self._now.stats = stats
        return generate_latest(self._registry)


class _Now(Collector):
    """What is as it is when it is asked for."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.stats: Mapping[str, Stats] = {}

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "edge_llama_requests_running", "Requests that are being answered.", value=self._traffic.running
        )
        yield GaugeMetricFamily("edge_llama_models_loaded", "Models that are loaded now.", value=len(self.stats))
        yield from self._of_models()

    def _of_models(self) -> Iterator[Metric]:
        for kind, fields in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for field, about in fields.items():
                family = kind(f"edge_llama_model_{field}", about, labels=["model"])
                for name, stats in self.stats.items():
                    family.add_metric([name], getattr(stats, field))
                yield family
