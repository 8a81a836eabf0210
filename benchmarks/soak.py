"""Callers that come and leave at random on one model: nothing is lost, memory stays, running requests don't stall.

    make test-soak                                   # 10 minutes of text, 2 minutes with images
    make test-soak ARGS="--minutes 1 --image-minutes 0.5"

32 callers come at random, with prompts of 100 to 4,000 tokens, half of which begin with one of four system prompts;
three in ten leave at a random moment, in one of four ways: they cancel, close or drop their generation, or had set a
deadline. With images the model is a Llama 4 with random weights in SmolLM2's widths, whose pictures have up to 16
tiles. Printed, and for what is no time the exit code too:

errors   what a caller got that it hadn't asked for, and answers that are not what they should be
lost     callers that got nothing within a quarter of an hour after the end, and requests that the engine still has
memory   growth of the process's own memory from the second fifth of the time to the last (goal: < 2 %), without
         what the caches hold, which are capped; all cells are in use at once before the clock starts
gaps     between tokens of running requests, beside the median gap of as many callers without arrivals (p99 <= 3 x)
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peers import CACHE, ROOT

import edge_llama
from edge_llama.backends.towers import locate
from edge_llama.convert import convert
from edge_llama.errors import DeadlineError
from edge_llama.host import devices

N_CTX = 4608
WORDS = tuple((ROOT / "README.md").read_text("utf-8").split())
SIDES = (300, 600, 1344)
"""Pixels of pictures: one tile, four and a whole one, sixteen and a whole one."""
PATIENCE = 900
"""Seconds until a caller counts as lost: two dozen wait in the end, and a request takes 12 s on two cores."""
GROWTH = 0.02
_PICTURES = 64
"""Of which each is shown once, unless there are more requests with one."""
_QUIET_TOKENS = 64
"""That each caller writes while none comes or leaves."""


@dataclass(slots=True)
class Tally:
    """What happened to all callers."""

    came: Counter[str] = field(default_factory=Counter)
    """How requests ended: answered, or by the way that the caller left."""
    errors: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Seconds between the tokens of a request."""
    bytes: list[float] = field(default_factory=list)
    """The process's own memory without what its caches hold, every two seconds."""


@dataclass(frozen=True, slots=True)
class Report:
    """Of one part of the soak: seconds, bytes and counts."""

    what: str
    minutes: float
    requests: dict[str, int]
    errors: list[str]
    lost: int
    left_in_engine: dict[str, int]
    growth: float
    fifths: list[float]
    """The process's own memory in each fifth of the time."""
    median_gap_alone: float
    p99_gap: float
    max_gap: float

    @property
    def is_good(self) -> bool:
        return not self.errors and not self.lost and not any(self.left_in_engine.values()) and self.growth < GROWTH

    def __str__(self) -> str:
        requests = ", ".join(f"{count:,} {how}" for how, count in sorted(self.requests.items()))
        ratio = self.p99_gap / self.median_gap_alone
        lines = (
            f"{self.what}, {self.minutes:g} minutes: {requests}",
            f"  errors: {len(self.errors)}",
            *(f"    {error}" for error in self.errors[:10]),
            f"  lost callers: {self.lost}; left in the engine: {self.left_in_engine}",
            f"  memory grew by {self.growth:.1%}; goal < {GROWTH:.0%}; MB by fifths of the time: {told(self.fifths)}",
            f"  gap between tokens: p99 {self.p99_gap * 1e3:.0f} ms, the longest {self.max_gap * 1e3:.0f} ms; median "
            f"without arrivals {self.median_gap_alone * 1e3:.0f} ms: {ratio:.2f} x; goal <= 3 x",
        )
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--image-minutes", type=float, default=2)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--max-running", type=int, default=8)
    parser.add_argument("--pause", type=float, default=10, help="mean seconds between a caller's requests")
    parser.add_argument("--cache-bytes", type=int, default=2**28)
    parser.add_argument("--kv-cells", type=int, default=4 * N_CTX, help="for all callers together")
    parser.add_argument("--threads", type=int, default=devices.cpu_threads())
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--model", type=Path, default=locate())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reports = []
    if options.minutes:
        reports.append(part("text", options.model, options, options.minutes, has_images=False))
    if options.image_minutes:
        reports.append(part("images", llama4(), options, options.image_minutes, has_images=True))
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=1))
    sys.exit(0 if all(report.is_good for report in reports) else 1)


def part(what: str, model_path: Path, options: argparse.Namespace, minutes: float, *, has_images: bool) -> Report:
    with edge_llama.open(
        model_path,
        n_ctx=N_CTX,
        threads=options.threads,
        max_running=options.max_running,
        max_queued=2 * options.callers,
        kv_cells=options.kv_cells,
        cache_bytes=options.cache_bytes,
    ) as model:
        soak = Soak(model, options.seed, options.pause, has_images=has_images)
        soak.fill(options.max_running, options.kv_cells)
        quiet = soak.gap_alone(options.max_running, options.kv_cells)
        lost = soak.run(options.callers, 60 * minutes)
        stats = settled(model)
    tally = soak.tally
    gaps = tally.gaps or [float("nan")]
    report = Report(
        what,
        minutes,
        dict(tally.came),
        tally.errors,
        lost,
        {"running": stats.running, "queued": stats.queued},
        growth(tally.bytes),
        fifths(tally.bytes),
        quiet,
        float(np.percentile(gaps, 99)),
        max(gaps),
    )
    print(report, file=sys.stderr if options.json else sys.stdout, flush=True)
    return report


def settled(model: edge_llama.Model) -> Any:
    """``Model.stats()`` once nothing runs, or ten seconds later."""
    ends = time.monotonic() + 10
    while ((stats := model.stats()).running or stats.queued) and time.monotonic() < ends:
        time.sleep(0.05)
    return stats


def fifths(samples: Sequence[float]) -> list[float]:
    """The median of each fifth of the time."""
    parts = np.array_split(np.array(samples), 5)
    return [float(np.median(each)) for each in parts if each.size]


def growth(samples: Sequence[float]) -> float:
    """From the second fifth of the time, when caches are full, to the last."""
    medians = fifths(samples)
    return medians[-1] / medians[min(1, len(medians) - 1)] - 1


def told(medians: Sequence[float]) -> str:
    """Bytes of each fifth, as megabytes."""
    return " ".join(f"{each / 2**20:.0f}" for each in medians)


def own_bytes() -> float:
    """Memory of this process alone: the weights, which are mapped, come and go with the system's page cache."""
    memory = psutil.Process().memory_info()
    return float(memory.rss - getattr(memory, "shared", 0))


class Soak:
    """Callers of a model, and what becomes of them."""

    def __init__(self, model: edge_llama.Model, seed: int, pause: float, *, has_images: bool) -> None:
        """``pause`` is the mean of a caller's seconds between requests."""
        self.tally = Tally()
        self._model, self._seed, self._pause, self._has_images = model, seed, pause, has_images
        tokenizer = model.tokenizer
        self._never = {token: -1e4 for token in range(tokenizer.n_vocab) if not is_whole(tokenizer, token)}
        rng = np.random.default_rng(seed)
        self._systems = [self._text(rng, 600) for _ in range(4)]
        # Drawn before the clock starts: how many callers wait with theirs is no memory of the engine's.
        sides = rng.choice(SIDES, _PICTURES) if has_images else []
        self._pictures = [edge_llama.Image.open(rng.integers(0, 256, (side, side, 3), np.uint8)) for side in sides]
        self._picture = itertools.count(_PICTURES // 2)  # the first are shown while nobody comes
        self._is_over = threading.Event()
        self._lock = threading.Lock()

    def fill(self, count: int, cells: int) -> None:
        """Have all cells in use at once, and the encoder at work: by then the engines have touched their memory."""
        rng = np.random.default_rng(self._seed)
        short: dict[str, Any] = {"max_tokens": 2, "logit_bias": self._never}
        if self._has_images:
            side = max(SIDES)
            picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            self._model.chat().send("", images=[picture], **short).result()
        texts = [self._text(rng, cells // count - 16) for _ in range(count)]
        for generation in [self._model.generate(text, **short) for text in texts]:
            generation.result()

    def gap_alone(self, count: int, cells: int) -> float:
        """Median seconds between tokens while ``count`` callers of the same kind write, and none comes or leaves.

        Their prompts are read before, and cut so that all have room in the ``cells``: else some would begin when
        others have ended.
        """
        most = cells // count - 2 * _QUIET_TOKENS
        waiting = set(range(count))
        gaps: list[float] = []

        def write(number: int, length: int) -> None:
            last = 0.0
            rng = np.random.default_rng([self._seed, 10**6 + number])
            for piece in self._begin(rng, length, picture=number, most=most):  # both times the same prompt
                now = time.perf_counter()
                if length > 1:
                    waiting.discard(number)
                    gaps.extend([now - last] if last and piece.token_ids else [])
                last = 0.0 if waiting else now

        for length in (1, _QUIET_TOKENS):
            threads = [threading.Thread(target=write, args=(number, length)) for number in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return statistics.median(gaps)

    def run(self, callers: int, seconds: float) -> int:
        """How many callers got nothing in the end."""
        threads = [threading.Thread(target=self._caller, args=(number,), daemon=True) for number in range(callers)]
        for thread in threads:
            thread.start()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.tally.bytes.append(own_bytes() - self._model.stats().cached_bytes)
            time.sleep(min(2, seconds / 20))
        self._is_over.set()
        ends = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        return sum(thread.is_alive() for thread in threads)

    def _caller(self, number: int) -> None:
        rng = np.random.default_rng([self._seed, number])
        while not self._is_over.wait(rng.exponential(self._pause)):
            how = str(rng.choice(LEAVING)) if rng.random() < 0.3 else "answered"
            try:
                problem = self._request(rng, how)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            with self._lock:
                self.tally.came[how] += 1
                if problem:
                    self.tally.errors.append(f"{how}: {problem}")

    def _request(self, rng: np.random.Generator, how: str) -> str:
        """Ask, and leave so; what is wrong with what came of it, or ''."""
        wait, length = float(rng.uniform(0, 15)), int(rng.integers(16, 129))
        try:
            deadline = max(wait, 0.01) if how == "deadline" else None
            generation = self._begin(rng, length, picture=next(self._picture), deadline=deadline)
            timer = threading.Timer(wait, generation.cancel)
            if how == "cancelled":
                timer.start()
            leaves_after = int(rng.integers(0, length)) if how in ("closed", "dropped") else length
            self._take(generation, leaves_after)
            timer.cancel()
            if how == "dropped":
                return ""
            if how == "closed":
                generation.close()
            answer = generation.result()
        except DeadlineError as error:
            return "" if how == "deadline" else str(error)
        return wrong(answer, how, length)

    def _take(self, generation: edge_llama.Generation, most: int) -> None:
        """Pieces up to so many tokens, and the gaps between them."""
        taken, last, gaps = 0, 0.0, []
        if most:
            for piece in generation:
                if piece.token_ids:
                    now = time.perf_counter()
                    gaps += [now - last] if last else []
                    last = now
                    taken += len(piece.token_ids)
                if taken >= most:
                    break
        with self._lock:
            self.tally.gaps += gaps

    def _begin(
        self, rng: np.random.Generator, length: int, *, picture: int, deadline: float | None = None, most: int = 4000
    ) -> edge_llama.Generation:
        """A request by ``rng``; the ``picture`` of this number is shown to every other one, if the model sees."""
        sampling: dict[str, Any] = {"max_tokens": length, "seed": int(rng.integers(2**31)), "deadline": deadline}
        sampling["logit_bias"] = self._never
        tokens = min(int(rng.integers(100, 4001)), most)
        if self._has_images and rng.random() < 0.5:
            images = [self._pictures[picture % len(self._pictures)]]
            return self._model.chat().send(self._text(rng, min(tokens, 1500)), images=images, **sampling)
        if tokens > 1000 and rng.random() < 0.5:
            chat = self._model.chat(system=self._systems[rng.integers(4)])
            return chat.send(self._text(rng, tokens - 700), **sampling)
        return self._model.generate(self._text(rng, tokens), **sampling)

    def _text(self, rng: np.random.Generator, tokens: int) -> str:
        """Words of a page in another order, of so many tokens."""
        tokenizer = self._model.tokenizer
        ids = tokenizer.encode(" ".join(rng.choice(WORDS, tokens)))[:tokens]
        return b"".join(map(tokenizer.piece, ids)).decode("utf-8", "ignore")


def is_whole(tokenizer: Any, token: int) -> bool:
    """Whether an answer goes on after the token, and it comes alone: what is part of a letter waits for the others.

    So every answer has its length, and the gaps between pieces are those between tokens.
    """
    try:
        return not tokenizer.is_end(token) and bool(tokenizer.piece(token).decode())
    except UnicodeDecodeError:
        return False


LEAVING = ("cancelled", "closed", "dropped", "deadline")
"""How callers leave; all but ``dropped`` see what came of it."""


def wrong(answer: edge_llama.Answer, how: str, length: int) -> str:
    """What an answer is that it shouldn't be, or ''."""
    if answer.finish_reason == "cancelled":
        return "" if how in ("cancelled", "closed") else "an answer that nobody cancelled was cancelled"
    if answer.finish_reason != "length" or len(answer.tokens) != length:
        return f"{len(answer.tokens)} tokens instead of {length}, ended by {answer.finish_reason}"
    return ""


def llama4() -> Path:
    """A Llama 4 with random weights, 4 experts and the widths of SmolLM2; its tiles are as large as real ones."""
    output = CACHE / "llama4-random"
    if output.is_dir():
        return output
    sys.path.insert(0, str(ROOT / "tests"))
    import llama4 as checkpoints  # noqa: PLC0415 - the tests' checkpoints, which need more

    widths = {"hidden_size": 576, "intermediate_size": 1536, "intermediate_size_mlp": 1536, "head_dim": 64}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 12}
    seen = {"hidden_size": 576, "intermediate_size": 2304, "num_attention_heads": 9, "num_hidden_layers": 6}
    seen |= {"image_size": 336, "projector_input_dim": 576, "projector_output_dim": 576, "vision_output_dim": 576}
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        checkpoint = checkpoints.scout(Path(folder) / "checkpoint", dtype="BF16", vision=seen, **widths, **heads)
        convert(checkpoint, output, quant="q4_k_m", vision_quant="f16")
    return output


if __name__ == "__main__":
    main()
