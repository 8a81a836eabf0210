"""What llama-perplexity printed of a small model, carried in ``data/llama_perplexity.json``, and what it was given.

``PYTHONPATH=tests:benchmarks python tests/perplexity_numbers.py`` writes that file anew: it builds the program from the
installed llama-cpp-python's source, in minutes.
"""

import json
import random
import re
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import ggufs

DATA = Path(__file__).parent / "data"
CARRIED = DATA / "llama_perplexity.json"
N_CTX = 64
_LINE = re.compile(r"^\s*(?P<name>[^:]*\S)\s*:\s*(?P<value>-?[\d.]+|-?nan)(?: ± *(?P<error>[\d.]+|-?nan))?\s*%?\s*$")


def text() -> str:
    """Sentences that small_talk's model half knows: about 900 tokens of it."""
    chosen = random.Random(24)
    places = (("Japan", "Tokyo"), ("Italy", "Rome"), ("Egypt", "Cairo"), ("France", "Paris"))
    lines = []
    for _ in range(60):
        country, city = chosen.choice(places)
        lines.append(
            chosen.choice(
                (
                    f"The capital of {country} is {city}.",
                    f"He likes long walks by the sea in {country}.",
                    "Hello! How can I help you?",
                    f"You asked for {chosen.randint(1, 99)} stones, rivers and apples.",
                )
            )
        )
    return "\n".join(lines) + "\n"


def files(folder: Path) -> tuple[Path, Path, Path]:
    """The text, the reference in f32 and the model in Q4_0."""
    source, written = DATA / "small_talk.gguf", folder / "text.txt"
    written.write_text(text(), "utf-8", newline="\n")
    base, model = folder / "f32.gguf", folder / "q4_0.gguf"
    return written, ggufs.all_in(source, base, "f32"), ggufs.all_in(source, model, "q4_0")


def printed(output: str) -> dict[str, list[float]]:
    """Each statistic of the program's output: its value, and its error if it has one."""
    found = {}
    for line in output.partition("Perplexity statistics")[2].splitlines():
        if match := _LINE.match(line):
            numbers = [match["value"], match["error"]]
            found[" ".join(match["name"].split())] = [float(number) for number in numbers if number is not None]
    return found


def run(program: Path, environment: dict[str, str], given: tuple[Path, Path, Path], *options: str) -> str:
    """What the program prints of the model against the base; its file of logits lies beside the model."""
    written, base, model = given
    logits = model.with_suffix(".logits")
    common = [str(program), "-f", str(written), "--kl-divergence-base", str(logits), *options]
    for more in (["-m", str(base)], ["-m", str(model), "--kl-divergence"]):
        done = subprocess.run([*common, *more], env=environment, capture_output=True, text=True, check=True)
    logits.unlink()
    return done.stdout + done.stderr


def main() -> None:
    import peers  # noqa: PLC0415 - of benchmarks/

    with tempfile.TemporaryDirectory() as folder:
        program = peers.program("llama-perplexity")
        options = ("-c", str(N_CTX), "-b", str(N_CTX), "-ub", str(N_CTX), "-fa", "off", "-t", "1")
        found = printed(run(program, peers.program_environment(), files(Path(folder)), *options))
    assert len(found) > 30, found
    carried = {"llama-cpp-python": version("llama-cpp-python"), "printed": found}
    CARRIED.write_text(json.dumps(carried, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
