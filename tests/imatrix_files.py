"""Importance matrices that ``llama-imatrix`` wrote of small models: what ours must equal.

``data/imatrix`` is what ``PYTHONPATH=.:tests:benchmarks python tests/imatrix_files.py tests/data/imatrix`` wrote, with
the program built from the source of the installed llama-cpp-python (minutes, once); the tests need no program.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import llama4

import converters

FOLDER = Path(__file__).parent / "data" / "imatrix"
N_CTX = 128
_SIZES = {"hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 64, "head_dim": 8}
SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank. ",
    "On 24 March 1989 the tanker ran aground; 11 million gallons were lost! ",
    "def area(width: float, height: float) -> float:\n    return width * height\n\n",
    "Der Zug nach Straßburg fährt um 17:45 Uhr von Gleis 3 ab. ",
)


def text() -> str:
    """Some 600 tokens for the small tokenizers."""
    return "".join(SENTENCES[(number * number + number // 3) % len(SENTENCES)] for number in range(20))


def mixture(path: Path) -> Path:
    """A small Llama 4 in float32: each token goes to two of four experts, and through a shared one."""
    with TemporaryDirectory() as folder:
        source = llama4.text_only(Path(folder) / "source", num_experts_per_tok=2, **_SIZES)
        converters.convert(source, path, quant="f32", tower="text")
    return path


def main(output: Path) -> None:
    """Write what the program makes of both models, in both of its forms."""
    from peers import program, program_environment  # noqa: PLC0415 - of the benchmarks; builds llama.cpp's programs

    output.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text(text(), "utf-8")
        models = {"dense": FOLDER.parent / "small_talk.gguf", "mixture": mixture(Path(folder) / "mixture.gguf")}
        for name, model in models.items():
            for form in ("gguf", "dat"):
                written = output.absolute() / f"{name}.{form}"
                options = ["-m", model, "-f", "text.txt", "-o", written, "-c", N_CTX, "--output-format", form]
                command = [program("llama-imatrix"), *options, "--no-ppl", "-t", 1, "-ngl", 0]
                environment = {**os.environ, **program_environment()}
                subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
