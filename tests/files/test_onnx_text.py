"""Text towers in ONNX: the numbers of transformers, however they are read, and everything that a GGUF file can do."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import onnx
import onnx_llama
import pytest
from onnx_llama import opened
from refusals import refusal
from texts import CONVERSATIONS

import converters
import edge_llama
from edge_llama.backends.base import AbortedError
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files import manifest

EXACT = 1e-3
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llama2": checkpoints.llama2,
    "llama3": lambda folder: checkpoints.llama3(folder, dtype="F32"),
    "smollm": checkpoints.smollm,
}


class Case:
    """A checkpoint, its ONNX folder, and transformers' model of it."""

    def __init__(self, source: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - torch takes seconds to load

        self.folder = folder
        self.reference = AutoModelForCausalLM.from_pretrained(source, dtype="float32")

    def logits(self, tokens: Sequence[int]) -> Any:
        """After each of the tokens, float32 ``(n, n_vocab)``."""
        import torch  # noqa: PLC0415

        with torch.no_grad():
            return self.reference(torch.tensor([tokens])).logits[0].numpy()


@pytest.fixture(scope="module", params=[(name, shared) for name in FAMILIES for shared in (True, False)], ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, shared = request.param
    folder = tmp_path_factory.mktemp(name)
    source = FAMILIES[name](folder / "source")
    return Case(source, onnx_llama.write(source, folder / "onnx", shared=shared, every_row=name == "smollm"))


@pytest.fixture(scope="module")
def model(onnx_folder: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(onnx_folder, n_ctx=2048, threads=1) as answering:
        yield answering


def test_logits_are_transformers_however_a_prompt_is_prefilled(case: Case, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, case.reference.config.vocab_size, 120).tolist()
    expected = case.logits(tokens)
    with opened(case.folder, n_batch=64) as tower:
        for size in (64, 33, 5, 1):
            tower.cut(0)
            for start in range(0, len(tokens), size):
                tower.decode(tokens[start : start + size])
                last = min(start + size, len(tokens)) - 1
                np.testing.assert_allclose(tower.logits(), expected[last], atol=EXACT, rtol=0)
        tower.cut(50)
        tower.decode(tokens[50:70])
        np.testing.assert_allclose(tower.logits(), expected[69], atol=EXACT, rtol=0)


def test_a_cache_goes_on_in_another_tower(case: Case, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, case.reference.config.vocab_size, 60).tolist()
    with opened(case.folder) as first, opened(case.folder, n_ctx=64) as second:
        first.decode(tokens[:40])
        kept = first.tower.save(0)
        assert kept.nbytes == first.tower.saved_bytes(0)
        second.decode(tokens[:7])
        second.tower.load(0, kept, 40)
        assert second.length == 40
        for tower in (first, second):
            tower.decode(tokens[40:])
        np.testing.assert_allclose(second.logits(), case.logits(tokens)[-1], atol=EXACT, rtol=0)
        assert np.array_equal(first.logits(), second.logits())
        with pytest.raises(EngineError, match="a cache of"):
            second.tower.load(0, kept, 39)
        assert second.length == 0
        second.decode(tokens)
        np.testing.assert_allclose(second.logits(), case.logits(tokens)[-1], atol=EXACT, rtol=0)


def messages(conversation: list[dict[str, str]]) -> list[edge_llama.Message]:
    return [edge_llama.Message(**message) for message in conversation]


def test_prompts_and_greedy_answers_are_transformers(case: Case) -> None:
    import torch  # noqa: PLC0415
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415

    is_llama2 = (case.folder / "tokenizer.model").exists()
    theirs = (PreTrainedTokenizerFast if is_llama2 else AutoTokenizer).from_pretrained(case.folder)
    with edge_llama.open(case.folder, n_ctx=1024, threads=1) as model:
        for conversation in CONVERSATIONS:
            prompt = theirs.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
            assert model.template.tokens(messages(conversation)) == prompt
            answer = model.answer(messages(conversation), temperature=0, max_tokens=12).result()
            generated = case.reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[
                0, len(prompt) :
            ]
            wanted = list(takewhile(lambda token: not model.tokenizer.is_end(token), generated.tolist()))
            assert list(answer.tokens) == wanted


def test_a_chat_is_stored_saved_and_resumed_without_prefilling_again(
    model: edge_llama.Model, onnx_folder: Path, tmp_path: Path
) -> None:
    chats = [model.chat(system=f"You are number {number}. {'Be kind. ' * 20}") for number in range(2)]
    for text_ in ("Hello", "And then?"):
        answers = [chat.send(text_, temperature=0, max_tokens=5).result() for chat in chats]
    assert all(answer.timings.cached_tokens > 60 for answer in answers)
    chats[0].save(tmp_path / "a.session")
    script = "import sys, edge_llama; m = edge_llama.open(sys.argv[1], **edge_llama.session_settings(sys.argv[2])); "
    script += "c = m.load_chat(sys.argv[2]); a = c.send('More', temperature=0, max_tokens=5).result(); "
    script += "print(c.reread_reason, a.timings.cached_tokens, *a.tokens)"
    command = [sys.executable, "-c", script, str(onnx_folder), str(tmp_path / "a.session")]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split()
    answer = chats[0].send("More", temperature=0, max_tokens=5).result()
    assert out[0] == "None"
    assert int(out[1]) == answer.timings.cached_tokens > 60
    assert tuple(map(int, out[2:])) == answer.tokens


def test_an_answer_fits_its_schema(model: edge_llama.Model) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    answer = model.chat().send("A number", json_schema=schema, max_tokens=200, seed=3).result()
    if answer.finish_reason == "stop":
        assert json.loads(answer.text)["n"] <= 99
    assert answer.text.lstrip().startswith("{")
    assert model.generate("It is", regex="(yes|no)", max_tokens=8).result().text in ("yes", "no")


def test_a_run_that_is_stopped_appended_nothing(onnx_folder: Path, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 900, 400).tolist()
    with opened(onnx_folder, n_ctx=1024) as tower:
        tower.decode(tokens[:10])
        timer = threading.Timer(0.02, tower.tower.abort)
        timer.start()

        def read() -> None:
            while True:
                tower.cut(10)
                tower.decode(tokens[10:])

        with pytest.raises(AbortedError):  # either within a run or before the next
            read()
        timer.join()
        assert tower.length == 10
        with pytest.raises(AbortedError):
            tower.decode(tokens[:1])
        tower.tower.resume()
        tower.decode(tokens[10:])
        stopped = tower.logits()
        tower.cut(0)
        tower.decode(tokens)
        np.testing.assert_allclose(stopped, tower.logits(), atol=EXACT, rtol=0)


def test_cancelling_a_long_prompt_leaves_a_model_that_answers(model: edge_llama.Model) -> None:
    before = model.generate("Once upon", temperature=0, max_tokens=6).result()
    long = model.generate("word " * 900, max_tokens=400)
    long.cancel()
    assert long.result().finish_reason == "cancelled"
    assert model.generate("Once upon", temperature=0, max_tokens=6).result().tokens == before.tokens


def test_embeddings_stand_where_tokens_would(onnx_folder: Path, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 900, 30).tolist()
    table = next(
        onnx.numpy_helper.to_array(tensor, str(onnx_folder))
        for tensor in onnx.load(onnx_folder / "model.onnx", load_external_data=False).graph.initializer
        if tensor.name == "model.embed_tokens.weight"
    )
    with opened(onnx_folder) as tower:
        tower.decode(tokens)
        whole = tower.logits()
        tower.cut(10)
        tower.decode_embeddings(table[tokens[10:20]])
        tower.decode(tokens[20:])
        np.testing.assert_allclose(tower.logits(), whole, atol=EXACT, rtol=0)
        for odd in (table[:3, :-1], table[:0], table[0]):
            with pytest.raises(EngineError, match="embeddings have the shape"):
                tower.decode_embeddings(odd)


def test_a_graph_that_takes_no_images_refuses_a_vision_tower(llama3: Path, bundle: Path, tmp_path: Path) -> None:
    folder = onnx_llama.write(llama3, tmp_path / "blind")
    with refusal(ArtifactError, "takes no images", folder):
        edge_llama.open(folder, vision=bundle, n_ctx=64)


def test_a_full_context_and_a_closed_tower_are_errors(onnx_folder: Path) -> None:
    with opened(onnx_folder, n_ctx=16) as tower, pytest.raises(EngineError, match="17 positions don't fit"):
        tower.decode([1] * 17)
    with pytest.raises(EngineError, match="closed"):
        tower.decode([1])


@pytest.fixture(scope="module")
def digits(llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama 4 that reads digits: both towers in ONNX (also of standard operators alone), and both in GGUF."""
    folder = tmp_path_factory.mktemp("digits")
    for name, options in (
        ("onnx", {"to": "onnx"}),
        ("portable", {"to": "onnx", "portable": True}),
        ("gguf", {"vision_to": "gguf"}),
    ):
        converters.convert(llama4_digits, folder / name, quant="f32", **options)
    return folder


@pytest.mark.parametrize(
    ("text_tower", "vision_tower"),
    [
        ("onnx", None),
        ("portable", None),
        ("onnx", "gguf/mmproj.gguf"),
        ("portable/model.onnx", "gguf/mmproj.gguf"),
        ("gguf/text.gguf", "onnx/vision/model.onnx"),
    ],
)
def test_towers_of_different_engines_see_together(text_tower: str, vision_tower: str | None, digits: Path) -> None:
    from llama4_training import dialogues  # noqa: PLC0415 - torch

    dialogue = dialogues("across", 1, np.random.default_rng(5), held_out=True, side=(56, 56))[0]
    vision = None if vision_tower is None else digits / vision_tower
    with edge_llama.open(digits / text_tower, vision=vision, n_ctx=512, threads=1) as model:
        chat = model.chat()
        for turn in dialogue.turns:
            pictures = [edge_llama.Image.open(picture) for picture in turn.pictures]
            answer = chat.send(turn.question, images=pictures, temperature=0, max_tokens=16).result()
            assert answer.text == turn.answer


def test_a_converted_folder_is_the_checkpoint(llama3: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    converters.convert(llama3, tmp_path / "onnx", to="onnx", quant="f32")
    manifest.verify(tmp_path / "onnx")
    tokens = rng.integers(0, 900, 50).tolist()
    with opened(tmp_path / "onnx", n_batch=32) as tower:
        tower.decode(tokens[:32])
        tower.decode(tokens[32:])
        expected = Case(llama3, tmp_path / "onnx").logits(tokens)[-1]
        np.testing.assert_allclose(tower.logits(), expected, atol=EXACT, rtol=0)
