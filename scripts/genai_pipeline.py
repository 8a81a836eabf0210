"""onnxruntime-genai on a text tower in stages: greedy tokens after prompts. It runs in an environment of its own.

Standard input has JSON: a ``folder``, the ``provider`` of its graphs in integers (cpu or qnn), ``prompts`` as token
ids, how many tokens to ``count`` after each, and an ``unused`` token, which is in none of them. Standard output gets
the tokens, a list for each prompt. It imports nothing of edge-llama.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai


def main() -> None:
    job, answers = json.load(sys.stdin), os.dup(1)
    os.dup2(2, 1)  # what native code prints is no answer
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        shutil.copytree(job["folder"], folder)
        configure(folder / "genai_config.json", job["provider"], job["unused"])
        model = genai.Model(str(folder))
        found = [greedy(model, ids, job["count"]) for ids in job["prompts"]]
    with os.fdopen(answers, "w") as out:
        json.dump(found, out)


def configure(file: Path, provider: str, unused: int) -> None:
    """Name the provider, and other special tokens.

    In the first window genai takes every ``pad_token_id`` for padding, which in ChatML may be what ends a message, and
    it stops at ``eos_token_id``: neither shall come.
    """
    config = json.loads(file.read_text("utf-8"))
    config["model"] |= {"pad_token_id": unused, "eos_token_id": unused}
    # Or else the CPU's provider rounds activations of 16 bits to 8.
    options: dict[str, Any] = {"session.qdq_matmulnbits_accuracy_level": "1"}
    if provider == "qnn":
        options |= {"session.disable_cpu_ep_fallback": "1", "provider_options": [{"QNN": registered_qnn()}]}
    (stages,) = config["model"]["decoder"]["pipeline"]
    for name in ("prompt", "token"):
        stages[name]["session_options"] |= options
    file.write_text(json.dumps(config), "utf-8")


def registered_qnn() -> dict[str, str]:
    """Options of QNN's provider, which genai knows from here on: on x86-64 it emulates an HTP of this kind."""
    import onnxruntime_qnn  # noqa: PLC0415 - the CPU needs none

    genai.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"}
    return {**backend, "htp_arch": "75", "soc_model": "0"}


def greedy(model: Any, ids: Sequence[int], count: int) -> list[int]:
    """``count`` tokens after a prompt; its caches can't be taken back, so each prompt has a generator of its own."""
    params = genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, repetition_penalty=1.0)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(ids, np.int32))
    found: list[int] = []
    while len(found) < count:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


if __name__ == "__main__":
    main()
