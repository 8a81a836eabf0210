"""openvino-genai's ContinuousBatchingPipeline in a process of its own: the jobs that concurrency.py gives it.

It runs in the package's own environment: it imports nothing else that isn't Python's.
"""

import json
import sys
import threading
import time
from functools import partial
from typing import Any

import openvino_genai
from jobs import Answer, serve


def main() -> None:
    job = json.loads(sys.argv[1])
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = job["callers"]
    scheduler.enable_prefix_caching = True
    scheduler.cache_size = 2  # GB
    properties = {"INFERENCE_NUM_THREADS": job["threads"]}
    pipeline = openvino_genai.ContinuousBatchingPipeline(job["model"], scheduler, "CPU", properties)
    serve({"ask": partial(ask, Stepper(pipeline))}, {})


class Stepper:
    """Takes the pipeline's steps in a thread, as long as anybody waits for them."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.stepped = threading.Condition()
        self._numbers = iter(range(10**9))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self.stepped:
                self.stepped.wait_for(self.pipeline.has_non_finished_requests)
            self.pipeline.step()
            with self.stepped:
                self.stepped.notify_all()

    def add(self, prompt: str, count: int) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        with self.stepped:
            handle = self.pipeline.add_request(next(self._numbers), prompt, config)
            self.stepped.notify_all()
        return handle


def ask(stepper: Stepper, system: str, question: str, count: int) -> Answer:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    started = time.perf_counter()
    prompt = stepper.pipeline.get_tokenizer().apply_chat_template(messages, True)
    handle = stepper.add(prompt, count)
    first, tokens = 0.0, 0
    while tokens < count:
        with stepper.stepped:
            stepper.stepped.wait_for(handle.can_read)
        for output in handle.read().values():
            tokens += len(output.generated_ids)
        first = first or time.perf_counter() - started
    return {"first": first, "tokens": tokens, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
