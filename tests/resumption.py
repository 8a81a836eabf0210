"""A process that resumes a saved chat: its logits, and what llama.cpp counts. Run by test_session_file.py."""

import sys
from pathlib import Path

import numpy as np
from engines import decoded, logits_along

import edge_llama
from edge_llama.generation import generate
from edge_llama.sampling.params import SamplingParams


def main(model_path: str, session: str, given: str, out: str) -> None:
    with edge_llama.open(model_path, **edge_llama.session_settings(session)) as model:
        chat = model.load_chat(session)
        assert chat.reread_reason is None, chat.reread_reason
        arrays = np.load(given)
        logits = logits_along(model, arrays["next"].tolist())
        counts = decoded(model)
        chat = model.load_chat(session)
        params = SamplingParams(temperature=1.0, seed=11, max_tokens=8)
        continued = generate(model._engine, arrays["tokens"].tolist(), params, owner=chat.cache_owner).result()
        continued_counts = decoded(model)
        chat = model.load_chat(session)
        answer = chat.send("And what did I ask first?", temperature=0, max_tokens=8).result()
        np.savez(
            Path(out),
            logits=logits,
            counts=counts,
            continued=continued.tokens,
            continued_counts=continued_counts,
            answer=answer.tokens,
            answer_counts=decoded(model),
            prompt_and_cached=[answer.timings.prompt_tokens, answer.timings.cached_tokens],
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
