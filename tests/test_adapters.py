"""Adapters beside a model: what they add, who gets which, and that nothing of one answers for another.

Tolerance: 1e-3 on logits that spread over a few units (measured: 5e-6, of a Qwen3 with layers as small), with an f32
model and cache: a merged matrix is rounded once more, and a product beside it is summed in another order.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from adapters import KINDS, numbers, trained
from engines import last_logits, logits_with
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from suite import shared

import converters
import edge_llama
from converters.sources import open_checkpoint
from converters.transforms.lora import merge
from edge_llama import Chat, Message, Model, OptionError

WHOLE = ("whole modules", "a whole network inside")
TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 500, 40)]
BOS = 1
"""The token that all prompts begin with, whatever adapters they are for."""
QUESTION = "What is the capital of Japan?"
Asked = Mapping[str, float] | list[str] | None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as ``Base`` and ``base.gguf`` (f32); adapters by their kinds, each with ``.gguf`` beside it."""

    def make(at: Path) -> None:
        base = checkpoints.llama3(at / "Base", dtype="F32", tied=False)
        converters.convert(base, at / "base.gguf", quant="f32")
        for number, (name, options) in enumerate(KINDS.items()):
            trained(base, at / name, seed=number, **options)
            if name not in WHOLE:
                converters.convert(at / name, at / f"{name}.gguf", base=base)

    return shared(tmp_path_factory, "adapters", make)


NAMES = {"legal": "every linear layer", "medical": "rsLoRA"}


def files(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{kind}.gguf" for name, kind in NAMES.items()}


def opened(folder: Path, **options: Any) -> Model:
    """The base with two adapters, in settings where parity is tight."""
    given: dict[str, Any] = {"n_ctx": 512, "kv_format": "f32", "adapters": files(folder), **options}
    return edge_llama.open(folder / "base.gguf", **given)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with opened(folder) as model:
        yield model


def logits(model: Model, asked: Asked) -> NDArray[np.float32]:
    return logits_with(model, TOKENS, asked)


def answered(model: Model, asked: Asked, prompt: str = "Once upon a time", **options: Any) -> tuple[int, ...]:
    given: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "adapters": asked, **options}
    return model.generate(prompt, **given).result().tokens


@pytest.mark.parametrize("name", [name for name in KINDS if name not in WHOLE])
def test_beside_the_base_it_answers_as_merged_into_it(name: str, folder: Path, tmp_path: Path) -> None:
    """Every kind of the suite that a GGUF adapter can express."""
    converters.convert(folder / "Base", tmp_path / "merged.gguf", quant="f32", lora=folder / name)
    merged = last_logits(tmp_path / "merged.gguf", TOKENS)
    with opened(folder, adapters={"it": folder / f"{name}.gguf"}) as model:
        alone, beside = logits(model, None), logits(model, ["it"])
    assert np.abs(beside - merged).max() < 1e-3
    assert np.abs(beside - alone).max() > 1e-2


def merged_by_numpy(folder: Path, output: Path, asked: Mapping[str, float]) -> Path:
    """The base's checkpoint plus so much of each adapter's difference, as a GGUF file."""
    base = load_file(folder / "Base" / "model.safetensors")
    total = {name: tensor.astype(np.float64) for name, tensor in base.items()}
    for name, weight in asked.items():
        for key, tensor in numbers(merge(open_checkpoint(folder / "Base"), folder / NAMES[name])).items():
            total[key] += weight * (tensor.astype(np.float64) - base[key])
    work = output.with_suffix("")
    work.mkdir()
    for file in (folder / "Base").iterdir():
        if file.name != "model.safetensors":
            (work / file.name).write_bytes(file.read_bytes())
    save_file({name: tensor.astype(np.float32) for name, tensor in total.items()}, work / "model.safetensors")
    converters.convert(work, output, quant="f32")
    return output


@pytest.mark.parametrize(
    "asked", [{"legal": 0.5}, {"legal": 1.0, "medical": 1.0}, {"legal": 0.25, "medical": -0.5}, {"medical": 2.0}]
)
def test_weights_and_several_at_once(asked: dict[str, float], model: Model, folder: Path, tmp_path: Path) -> None:
    expected = last_logits(merged_by_numpy(folder, tmp_path / "merged.gguf", asked), TOKENS)
    assert np.abs(logits(model, asked) - expected).max() < 1e-3


def test_what_is_asked_for_may_be_written_in_several_ways(model: Model) -> None:
    """Names alone are whole weights, what has none is not there, and the order is without meaning."""
    assert model.adapter_set(["legal", "legal"]) == model.adapter_set({"legal": 1})
    assert model.adapter_set({"legal": 0, "medical": 0.5}) == model.adapter_set({"medical": 0.5})
    assert model.adapter_set(["medical", "legal"]) == model.adapter_set({"legal": 1.0, "medical": 1.0})
    assert model.adapter_set(None) == model.adapter_set([]) == model.adapter_set({}) == ()


WRONG: dict[str, tuple[Any, str]] = {
    "an unknown name": (["tax"], "adapters: 'tax' is none of this model's; known: legal, medical"),
    "a text": ("legal", "adapters is 'legal', expected names or weights by name"),
    "a weight of text": ({"legal": "1"}, "the weight of 'legal' is '1', expected a number"),
    "a weight that is none": ({"legal": float("nan")}, "the weight of 'legal' is nan"),
    "a weight without end": ({"legal": float("inf")}, "the weight of 'legal' is inf"),
    "true": ({"legal": True}, "the weight of 'legal' is True"),
    "a number": ([3], "adapters: 3 is none of this model's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_means_nothing_is_a_typed_error_at_once(name: str, model: Model) -> None:
    asked, expected = WRONG[name]
    with pytest.raises(OptionError, match=expected):
        model.generate("Once", adapters=asked)
    with pytest.raises(OptionError, match=expected):
        model.chat(adapters=asked).send("Hello")


def test_switching_back_and_forth_is_what_a_fresh_model_gives(folder: Path) -> None:
    """Tokens and cached tokens: what was computed before is found again, and no one else's."""
    asked: list[Asked] = [None, ["legal"], {"legal": 0.5}, ["medical"], ["legal"], None, {"legal": 0.5}]
    fresh = {}
    for each in asked:
        with opened(folder) as model:
            fresh[repr(each)] = answered(model, each)
    assert len(set(fresh.values())) == 4
    with opened(folder) as model:
        assert [answered(model, each) for each in asked] == [fresh[repr(each)] for each in asked]


def test_two_callers_at_once_get_what_they_get_alone(folder: Path) -> None:
    """And so do eight, of four kinds, while others leave in the middle."""
    asked: list[Asked] = [None, ["legal"], ["medical"], {"legal": 0.5, "medical": 0.5}] * 2
    prompts = [f"Once upon a time number {number}" for number in range(8)]
    with opened(folder) as model:
        alone = [answered(model, each, prompt) for each, prompt in zip(asked, prompts, strict=True)]
    with opened(folder) as model, ThreadPoolExecutor(8) as pool:
        leaving = [model.generate("Once " * 30, adapters=each) for each in asked[:4]]
        found = pool.map(lambda one: answered(model, *one), zip(asked, prompts, strict=True))
        for generation in leaving:
            generation.close()
        assert list(found) == alone


def test_the_prompt_cache_shares_nothing_between_adapters(model: Model) -> None:
    """The same tokens, asked one after the other: each prefills all of them once."""
    prompt = "The same words for everybody. " * 6
    sets: list[Asked] = [None, ["legal"], {"legal": 0.5}, ["medical"], ["legal", "medical"]]

    def timings(each: Asked) -> tuple[int, int]:
        found = model.generate(prompt, adapters=each, temperature=0, max_tokens=2).result().timings
        return found.cached_tokens, found.prompt_tokens

    first, again = [timings(each) for each in sets], [timings(each) for each in sets]
    assert [cached for cached, _ in first] == [0] * 5
    assert [total - cached for cached, total in again] == [1] * 5


def say(chat: Chat, text: str, **options: Any) -> edge_llama.Answer:
    return chat.send(text, temperature=0, max_tokens=8, **options).result()


def test_a_chat_has_its_adapters_and_a_message_may_have_others(model: Model) -> None:
    """A fork and what was compacted keep them; what a switch costs can be asked for."""
    chat, other = model.chat(adapters=["legal"]), model.chat()
    first, base = say(chat, QUESTION), say(other, QUESTION)
    assert first.tokens != base.tokens
    again = say(chat, "And of Italy?")
    assert again.timings.cached_tokens >= first.timings.prompt_tokens
    fork = chat.fork()
    assert say(fork, "And of Egypt?").timings.cached_tokens >= again.timings.prompt_tokens
    messages = chat.messages
    kept, switched = (model.tokens_to_prefill(messages, adapters=[name]) for name in ("legal", "medical"))
    assert kept <= model.count_tokens(messages) - again.timings.prompt_tokens
    assert switched > again.timings.prompt_tokens
    assert say(chat, "And of Spain?", adapters=["medical"]).timings.cached_tokens <= BOS
    assert say(other, QUESTION, adapters=[]).timings.cached_tokens > 0


def test_a_session_goes_on_with_the_adapters_it_was_saved_with(folder: Path, tmp_path: Path) -> None:
    with opened(folder) as model:
        chat = model.chat(adapters={"legal": 0.5})
        first = say(chat, QUESTION)
        chat.save(tmp_path / "a.session")
        expected = say(chat, "And of Italy?").tokens
    with opened(folder, adapters={"renamed": files(folder)["legal"]}) as model:
        chat = model.load_chat(tmp_path / "a.session", adapters={"renamed": 0.5})
        assert chat.reread_reason is None
        answer = say(chat, "And of Italy?")
        assert answer.tokens == expected
        assert answer.timings.cached_tokens >= first.timings.prompt_tokens
        for asked in (None, ["renamed"]):
            chat = model.load_chat(tmp_path / "a.session", adapters=asked)
            assert chat.reread_reason
            assert "its KV cache was computed with adapters" in chat.reread_reason


def test_what_was_kept_on_disk_is_found_with_the_same_adapters_alone(folder: Path, tmp_path: Path) -> None:
    prompt = "Words that outlive their process. " * 5

    def cached(asked: Asked) -> int:
        with opened(folder, cache_dir=tmp_path / "cache") as model:
            return model.generate(prompt, adapters=asked, temperature=0, max_tokens=2).result().timings.cached_tokens

    assert cached(["legal"]) == 0
    assert cached(None) == 0
    assert cached(["legal"]) > 30
    assert cached({"legal": 0.5}) == 0


@pytest.mark.parametrize("name", ["legal", "medical"])
def test_in_a_process_of_its_own(name: str, model: Model, folder: Path, tmp_path: Path) -> None:
    expected = answered(model, {name: 0.5})
    with opened(folder, isolate=True) as isolated:
        assert list(isolated.adapters) == list(model.adapters)
        assert answered(isolated, {name: 0.5}) == expected
        assert answered(isolated, None) == answered(model, None)
        chat = isolated.chat(adapters=[name])
        said = say(chat, QUESTION).timings.prompt_tokens
        total = isolated.count_tokens(chat.messages)
        assert isolated.tokens_to_prefill(chat.messages, adapters=[name]) <= total - said
        assert isolated.tokens_to_prefill(chat.messages) >= total - BOS
        chat.save(tmp_path / "a.session")
        assert isolated.load_chat(tmp_path / "a.session", adapters=[name]).reread_reason is None
        assert isolated.load_chat(tmp_path / "a.session").reread_reason
        with pytest.raises(OptionError, match="'tax' is none of this model's"):
            isolated.generate("Once", adapters=["tax"])


def test_deterministic_answers_are_the_same_whatever_else_is_asked(folder: Path) -> None:
    """With one adapter; in which order several are added is llama.cpp's to choose."""

    def logprobs(model: Model, asked: Asked) -> Any:
        return model.generate("Once upon", adapters=asked, temperature=0, max_tokens=12, logprobs=2).result().logprobs

    with opened(folder, deterministic=True) as model:
        expected = logprobs(model, {"legal": 0.5})
    with opened(folder, deterministic=True) as model:
        for asked in (None, ["medical"], {"legal": 0.25}):
            logprobs(model, asked)
        assert logprobs(model, {"legal": 0.5}) == expected
        with pytest.raises(OptionError, match="2 at once, but the model was opened with deterministic=True"):
            model.generate("Once", adapters=["legal", "medical"])


def test_a_quantized_base_takes_them_too(folder: Path, tmp_path: Path) -> None:
    """What they add is not rounded with it: as far from the merged model as the base is from its own f32."""
    converters.convert(folder / "Base", tmp_path / "q8_0.gguf", quant="q8_0")
    converters.convert(folder / "Base", tmp_path / "merged.gguf", quant="f32", lora=folder / NAMES["legal"])
    merged, base = (last_logits(path, TOKENS) for path in (tmp_path / "merged.gguf", folder / "base.gguf"))
    with edge_llama.open(tmp_path / "q8_0.gguf", n_ctx=512, kv_format="f32", adapters=files(folder)) as model:
        far, lost = np.abs(logits(model, ["legal"]) - merged).max(), np.abs(logits(model, None) - base).max()
    assert far < 3 * lost


def test_what_takes_none_says_so(folder: Path, tmp_path: Path) -> None:
    converters.convert(folder / "Base", tmp_path / "onnx", to="onnx", quant="f32")
    with pytest.raises(OptionError, match=r"adapters: .* is run by onnxruntime, which takes none; .*--lora"):
        edge_llama.open(tmp_path / "onnx", adapters=files(folder))
    with pytest.raises(OptionError, match="adapters is for models that run here"):
        edge_llama.open("http://127.0.0.1:9/v1", tokenizer=folder / "Base", adapters=files(folder))
    expected = "'legal' is none of this model's; it was opened without any"
    with edge_llama.open(folder / "base.gguf", n_ctx=256) as model, pytest.raises(OptionError, match=expected):
        model.answer([Message("user", "Hello")], adapters=["legal"])
