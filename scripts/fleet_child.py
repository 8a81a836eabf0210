"""What vLLM makes of token ids, in an environment of its own: fleet.py gives it a job and reads what it writes.

    python fleet_child.py JOB.json

The job: the folder ``model``, its ``dtype``, ``texts`` of token ids, and the file ``output`` for, of each text, the
log-probability and the rank of each token from the second on, by teacher forcing.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - its workers import this file

    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    settings = {"max_model_len": 512, "max_num_seqs": 16, "seed": 0, "enforce_eager": True}
    engine = LLM(model=job["model"], dtype=job["dtype"], skip_tokenizer_init=True, **settings)
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    given = [{"prompt_token_ids": ids} for ids in job["texts"]]
    found = engine.generate(given, asked, use_tqdm=False)
    told = [
        [_of(place, token) for place, token in zip(each.prompt_logprobs[1:], ids[1:], strict=True)]
        for each, ids in zip(found, job["texts"], strict=True)
    ]
    Path(job["output"]).write_text(json.dumps(told), "utf-8")


def _of(place: Any, token: int) -> tuple[float, int]:
    return float(place[token].logprob), int(place[token].rank)


if __name__ == "__main__":
    main()
