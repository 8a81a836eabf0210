"""How ``tests/data/old_files`` was written: by the code of commit 2b7ee22, the last before the packages got rooms.

    git worktree add OLD 2b7ee22
    PYTHONPATH=OLD:OLD/tests python -P tests/old_files.py tests/data/old_files

``-P`` keeps this folder's own modules out of the way. Most goes through the command line, as a user's files came about;
only chats that are saved and the conversion that stops half-way are called. Paths of the machine that it ran on are
taken out of what is kept of the cache folder. ``test_old_files.py`` opens the files with today's code.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

PLAIN = {"HF_HUB_OFFLINE": "1", "EDGE_LLAMA_HISTORY": "off", "EDGE_LLAMA_PREPACKED": "0", "GOMP_SPINCOUNT": "3000"}
CAPITAL, DIGITS = "What is the capital of Japan?", "Which digits are these?"
MAX_TOKENS = 12
SHORT = ("--temperature", "0", "--max-tokens", str(MAX_TOKENS), "--n-ctx", "512")


def main(output: str) -> None:
    out = Path(output).absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        models(out, work)
        sessions(out)
        history(out, work)
        cache(out, work)
        unfinished(out)


def models(out: Path, work: Path) -> None:
    """A small Llama 3 in the three forms of a text model, a bundle with two towers, a tower alone, ranges of one."""
    import checkpoints  # noqa: PLC0415 - needs tokenizers

    digits = Path(checkpoints.__file__).parent / "data" / "llama4_digits"
    shape = checkpoints.Shape(hidden=64, ffn=96, layers=2, heads=2, kv_heads=1)
    published = checkpoints.llama3(work / "Llama-3.2-tiny-Instruct", shape=shape, rope_scaling=False)
    config = json.loads((published / "config.json").read_text())
    checkpoints.write_json(published / "config.json", **{**config, "max_position_embeddings": 2048})
    edge_llama("convert", published, out / "llama3", "--to", "safetensors")
    edge_llama("convert", out / "llama3", out / "llama3-q4_k_m.gguf")
    edge_llama("convert", out / "llama3", out / "llama3-int4", "--to", "onnx")
    edge_llama("convert", digits, out / "digits", "--quant", "q4_0", "--vision-quant", "int4")
    edge_llama("convert", digits, out / "digits-mmproj.gguf", "--tower", "vision", "--vision-quant", "q8_0")
    edge_llama("convert", digits, work / "exact", "--tower", "vision", "--vision-quant", "f32")
    edge_llama("calibrate", work / "exact", out / "ranges.json", "--image", picture())


def sessions(out: Path) -> None:
    """A chat of each model, saved; the third has a picture."""
    import edge_llama  # noqa: PLC0415 - the old one

    asked = {"llama3-q4_k_m.gguf": CAPITAL, "llama3-int4": CAPITAL, "digits": DIGITS}
    for name, question in asked.items():
        with edge_llama.open(out / name, n_ctx=512) as model:
            chat = model.chat(system=None if question == DIGITS else "Answer briefly.")
            images = [picture()] if question == DIGITS else []
            chat.send(question, images=images, temperature=0, max_tokens=MAX_TOKENS).result()
            chat.save(out / f"{Path(name).stem}.session")


def history(out: Path, work: Path) -> None:
    """A conversation of two exchanges in two runs of ``chat``, and one that no KV cache is kept of."""
    kept = {"EDGE_LLAMA_HISTORY": str(out / "history")}
    model = shutil.copy(out / "llama3-q4_k_m.gguf", work)
    edge_llama("chat", model, *SHORT, stdin="Tell me of llamas.\n", env=kept)
    (left,) = (out / "history" / "kv").iterdir()
    left.unlink()
    edge_llama("chat", model, *SHORT, stdin=f"{CAPITAL}\n", env=kept)
    edge_llama("chat", "--continue", *SHORT, stdin="And of Egypt?\n", env=kept)
    (out / "history" / "history.db.lock").unlink(missing_ok=True)


def cache(out: Path, work: Path) -> None:
    """What was found out about this machine and these files, a file of each kind."""
    find_out(out, strangers(out, work), work / "cache")
    (out / "cache").mkdir()
    for kind in (work / "cache").iterdir():
        written = without_paths(json.loads(min(kind.iterdir()).read_text("utf-8")))
        (out / "cache" / f"{kind.name}.json").write_text(json.dumps(written, indent=1) + "\n", "utf-8")


def find_out(models: Path, foreign: Path, folder: Path) -> None:
    """Have every kind of finding kept in the cache ``folder``."""
    kept = {"EDGE_LLAMA_CACHE": str(folder)}
    edge_llama("chat", foreign / "llama3.gguf", *SHORT, stdin="Hi\n", env=kept)
    edge_llama("run", foreign / "llama3", "Hi", *SHORT, env=kept)
    for vision in (foreign / "mmproj.gguf", foreign / "digits"):
        edge_llama("run", models / "digits", DIGITS, "--vision", vision, "--image", picture(), *SHORT, env=kept)


def strangers(out: Path, work: Path) -> Path:
    """The models as if another program had written them: what edge-llama wrote itself is not tried out."""
    from ggufs import rewritten  # noqa: PLC0415

    foreign = work / "foreign"
    foreign.mkdir()
    unsigned = {"edge_llama.sha256": None, "edge_llama.tensor_sha256": None, "edge_llama.certificate": None}
    rewritten(out / "llama3-q4_k_m.gguf", foreign / "llama3.gguf", fields=unsigned)
    rewritten(out / "digits-mmproj.gguf", foreign / "mmproj.gguf", fields=unsigned)
    shutil.copytree(out / "llama3-int4", foreign / "llama3", ignore=shutil.ignore_patterns("edge-llama.json"))
    shutil.copytree(out / "digits", foreign / "digits")
    manifest = json.loads((foreign / "digits" / "edge-llama.json").read_text("utf-8"))
    del manifest["seal"]
    (foreign / "digits" / "edge-llama.json").write_text(json.dumps(manifest), "utf-8")
    return foreign


def without_paths(finding: object) -> object:
    """The finding without the folders of this machine."""
    spec = find_spec("llama_cpp")
    assert spec
    assert spec.origin
    folder = json.dumps(str(Path(spec.origin).parent))
    return json.loads(json.dumps(finding).replace(folder, '"llama_cpp"'))


def unfinished(out: Path) -> None:
    """A conversion that was stopped when half of it was written."""
    import converters  # noqa: PLC0415 - the old ones

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    try:
        converters.convert(out / "llama3", out / "llama3-q8_0.gguf", quant="q8_0", on_progress=stop, threads=1)
    except KeyboardInterrupt:
        shutil.copytree(out / ".llama3-q8_0.gguf.partial", out / "unfinished")
        shutil.rmtree(out / ".llama3-q8_0.gguf.partial")
    (out / "unfinished" / "lock").unlink(missing_ok=True)


def picture() -> Path:
    """Two handwritten digits, a five and a four."""
    return Path(__file__).parent.parent / "docs" / "digits.png"


def edge_llama(
    *arguments: object, stdin: str = "", env: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run the command line of the code on PYTHONPATH, else of the installed one; AssertionError if it fails."""
    command = [sys.executable, "-P", "-c", "from edge_llama.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(
        command, input=stdin, text=True, check=False, env={**os.environ, **PLAIN, **env}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done


if __name__ == "__main__":
    main(*sys.argv[1:])
