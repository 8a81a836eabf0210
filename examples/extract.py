"""A folder of texts becomes JSON Lines that fit a JSON schema: a line for each text, in the order of their names.

    python examples/extract.py FOLDER SCHEMA.json OUTPUT.jsonl [--model MODEL]

Stop it at any moment, even by kill -9, and run it again: texts that have their line are not read to the model again,
and a line that was half-written is taken back. A text that can't be answered (too long, no UTF-8) gets a line with
``error`` in place of ``data``; ``--retry`` has these done once more.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import edge_llama

SYSTEM = "You read a text and answer with JSON that holds what the text says."
SUFFIXES = {".txt", ".md"}
AT_ONCE = 8
"""Texts that the model has at a time: it answers so many together (``max_running``)."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the folder; ``digest`` is the SHA-256 of its bytes in hex."""

    name: str
    data: bytes
    digest: str


def texts(folder: Path) -> list[Text]:
    """The texts below ``folder``, by their names."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return [
        Text(path.relative_to(folder).as_posix(), data := path.read_bytes(), hashlib.sha256(data).hexdigest())
        for path in paths
    ]


class Output:
    """The JSON Lines that are there, and that come. One process at a time writes it."""

    def __init__(self, path: Path, schema: dict[str, Any]) -> None:
        self._path = path
        self._schema = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:16]

    def lines(self) -> list[dict[str, Any]]:
        """What is there. Bytes behind the last end of a line are what a killed process had begun: they are cut off."""
        if not self._path.exists():
            return []
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            print(f"{self._path}: a half-written line is taken back", file=sys.stderr)
            os.truncate(self._path, len(whole))
        return [self._line(number, line) for number, line in enumerate(whole.splitlines(), 1)]

    def _line(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not {"file", "sha256", "schema"} <= found.keys():
            sys.exit(f"{self._path}: line {number} is none that this program wrote; name another output")
        if found["schema"] != self._schema:
            sys.exit(f"{self._path}: line {number} was written by another schema; name another output")
        return found

    def append(self, text: Text, **found: Any) -> None:
        """Write a line, and have it on the disk before the next begins."""
        line = {"file": text.name, "sha256": text.digest, "schema": self._schema, **found}
        with self._path.open("ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


Begun = edge_llama.Generation | edge_llama.InputError


def begin(model: edge_llama.Model, text: Text, schema: dict[str, Any], max_tokens: int) -> Begun:
    """Have the model begin with a text, or why it can't."""
    try:
        said = text.data.decode()
        chat = model.chat(system=SYSTEM)
        return chat.send(said, json_schema=schema, temperature=0, max_tokens=max_tokens)
    except UnicodeDecodeError as error:
        return edge_llama.InputError(f"byte {error.start:,} is no UTF-8", remedy="save it as UTF-8")
    except edge_llama.ContextFullError as error:
        return error


def finished(begun: Begun) -> dict[str, Any]:
    """``data``, or ``error`` where there is none."""
    if isinstance(begun, edge_llama.InputError):
        return {"error": str(begun)}
    answer = begun.result()
    if answer.finish_reason != "stop":  # max_tokens, or the context, ended before the JSON did
        return {"error": f"not whole after {len(answer.tokens):,} tokens: give more (--max-tokens)"}
    return {"data": json.loads(answer.text)}


def answered(
    model: edge_llama.Model, todo: Sequence[Text], schema: dict[str, Any], max_tokens: int
) -> Iterator[tuple[Text, dict[str, Any]]]:
    """Each text with what came of it, in order; the next ones are being answered meanwhile."""
    begun: deque[tuple[Text, Begun]] = deque()
    for text in todo:
        begun.append((text, begin(model, text, schema, max_tokens)))
        if len(begun) == AT_ONCE:
            first, answer = begun.popleft()
            yield first, finished(answer)
    for text, answer in begun:
        yield text, finished(answer)


def extract(arguments: argparse.Namespace) -> int:
    """Do what is left to do; how many texts have no data."""
    schema = json.loads(arguments.schema.read_text("utf-8"))
    output = Output(arguments.output, schema)
    lines = output.lines()
    done = {(line["file"], line["sha256"]) for line in lines if not (arguments.retry and "error" in line)}
    found = texts(arguments.folder)
    todo = [text for text in found if (text.name, text.digest) not in done]
    print(f"{len(found):,} texts, {len(found) - len(todo):,} done before", file=sys.stderr)
    failed = 0
    if todo:
        with edge_llama.open(arguments.model) as model:
            for text, came in answered(model, todo, schema, arguments.max_tokens):
                output.append(text, **came)
                failed += "error" in came
                print(f"{text.name}: {came.get('error', 'done')}", file=sys.stderr)
    return failed


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with texts: .txt and .md, in folders below too")
    parser.add_argument("schema", type=Path, help="a JSON schema")
    parser.add_argument("output", type=Path, help="JSON Lines; what is there stays")
    parser.add_argument("--model", help="a file, a folder or a name (default: the built-in model)")
    parser.add_argument("--max-tokens", type=int, default=300, help="of an answer (default: 300)")
    parser.add_argument("--retry", action="store_true", help="do texts again that got an error")
    arguments = parser.parse_args()
    try:
        with FileLock(f"{arguments.output}.lock", timeout=0):
            sys.exit(1 if extract(arguments) else 0)
    except Timeout:
        sys.exit(f"{arguments.output}: another run is writing it; wait for its end")
    except KeyboardInterrupt:
        sys.exit(130)
    except (edge_llama.EdgeLlamaError, OSError, ValueError) as error:
        sys.exit(f"extract: {error}")


if __name__ == "__main__":
    main()
