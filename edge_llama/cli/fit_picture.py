"""What ``edge-llama fit`` shows people: a bar for each term, a table of recipes, and the command for a fleet."""

import sys
from collections.abc import Mapping

from edge_llama.errors import printable
from edge_llama.planning.fit import Fit, Speed, best
from edge_llama.planning.fleet import FleetPlan

_WIDTH = 40
_PARTS = " ▏▎▍▌▋▊▉█"
"""Eighths of a character."""


def show(found: Mapping[str, Fit]) -> None:
    """One model with its terms; of several recipes a table before it."""
    chosen = best(found)
    lines = _table(found, chosen) if len(found) > 1 else []
    name = chosen or min(found, key=lambda each: found[each].terms["weights"])
    print("\n".join(printable(line) for line in (*lines, *_picture(name, found[name]))))  # noqa: T201


def _table(found: Mapping[str, Fit], chosen: str | None) -> list[str]:
    lines = [
        f"{'recipe':<10}{'weights':>12}{'needed':>12}{'remaining':>12}{'context':>10}{'prompt/s':>10}{'answer/s':>10}"
    ]
    for name, each in found.items():
        mark = "  <- the best that fits" if name == chosen else "" if each.fits else "  does not fit"
        speeds = "".join(f"{_rate(each.speed, which):>10}" for which in ("prompt", "answer"))
        sizes = (each.terms["weights"], each.needed, each.remaining)
        lines.append(f"{name:<10}{''.join(f'{mb(size):>12}' for size in sizes)}{each.n_ctx:>10,}{speeds}{mark}")
    return [*lines, ""]


def _picture(name: str, each: Fit) -> list[str]:
    where = each.machine
    lines = [
        f"{each.shape.name} in {name}, {each.shape.engine} on {where.name} ({where.device}): {mb(where.memory)} for "
        f"it, KV cache {each.setting.kv_format}, flash attention {'on' if each.setting.flash_attention else 'off'}"
    ]
    whole = max(where.memory, each.needed, 1)
    for term, nbytes in sorted(each.terms.items(), key=lambda item: -item[1]):
        lines.append(f"  {term:<16}{mb(nbytes):>12}  {_bar(nbytes / whole)}")
    verdict = f"fits, {mb(each.remaining)} remain" if each.fits else f"does not fit, {mb(-each.remaining)} are lacking"
    lines.append(f"  {'together':<16}{mb(each.needed):>12}  {_bar(each.needed / whole)} {verdict}")
    lines += [f"  {term:<16}{mb(nbytes):>12}  in the host's memory" for term, nbytes in each.host_terms.items()]
    if each.prompt_cache:
        lines.append(
            f"  {'prompt cache':<16}{mb(each.prompt_cache):>12}  may be taken beside, for conversations that are idle"
        )
    lines.append(
        f"context {each.n_ctx:,} tokens; at most {each.largest_n_ctx:,} fit ({each.shape.n_ctx_train:,} trained)"
    )
    if not each.fits and each.shape.n_expert and not where.is_apart:
        active = mb(each.shape.active_bytes)
        lines.append(
            f"mapped (--mmap) it runs: of the {active} that a token needs {mb(each.from_disk)} come from the disk"
        )
    if each.image_tokens:
        lines.append(f"an image takes up to {each.image_tokens:,} tokens of it")
    lines += _speeds(each)
    return lines


def _speeds(each: Fit) -> list[str]:
    speed = each.speed
    if speed is None:
        return ["how fast it is can't be told beforehand"]
    how = "as stand-ins were measured here" if speed.is_measured else "no machine of this kind is faster"
    return [
        f"prompts {speed.prompt:,.0f} tokens/s, answers {speed.answer:,.1f}, with a full context "
        f"{speed.answer_at_end:,.1f} ({how})"
    ]


def _rate(speed: Speed | None, which: str) -> str:
    return "" if speed is None else f"{getattr(speed, which):,.1f}"


def _bar(share: float) -> str:
    """``share`` of the whole width, in eighths of a character; plain where the stream has no such."""
    eighths = round(min(max(share, 0.0), 1.0) * _WIDTH * 8)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * (eighths // 8)
    return _PARTS[-1] * (eighths // 8) + _PARTS[eighths % 8].strip()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def mb(nbytes: int) -> str:
    """Megabytes, as disks count."""
    return f"{nbytes / 1e6:,.1f} MB" if abs(nbytes) < 10e9 else f"{nbytes / 1e9:,.2f} GB"


def fleet(planned: FleetPlan) -> str:
    """How many GPUs, why, and the command."""
    shared = f"tensor parallel {planned.tensor_parallel}, pipeline parallel {planned.pipeline_parallel}"
    lines = [
        f"{_count(planned.gpus, 'GPU')} in {_count(planned.machines, 'machine')}: {shared}",
        f"weights {mb(planned.weight_bytes)}, KV cache of all users {mb(planned.kv_bytes)}: {mb(planned.gpu_bytes)} of "
        f"{mb(planned.room)} on each",
        planned.command_line,
        *planned.notes,
    ]
    return "\n".join(map(printable, lines))
