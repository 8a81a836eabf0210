"""Text towers for NPUs on the CPU: the same answers however a text is read, and whatever was there before."""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from one_sequence import OneSequence
from onnx_llama import edited
from refusals import refusal
from static_text import N_CTX as CONTEXT
from static_text import WINDOW, in_integers

import edge_llama
from edge_llama.backends.base import AbortedError, Rows
from edge_llama.backends.onnxruntime.static import StaticTower
from edge_llama.backends.onnxruntime.static_rows import Inputs, StaticRows
from edge_llama.backends.towers import locate
from edge_llama.errors import ArtifactError, EngineError, OptionError
from edge_llama.files import manifest
from edge_llama.files.formats import FORMATS
from edge_llama.files.onnx_static import StaticArtifact, read_static

QUESTION = "What is the capital of Japan?"
CITIES = {"Italy": "Rome", "Egypt": "Cairo", "France": "Paris"}
NEAR = 0.05
"""Largest difference of logits where other graphs read the same text.

They add in another order, and a sum at the edge of a step becomes the next integer.
"""


@contextmanager
def opened(folder: Path, n_batch: int = 512) -> Iterator[OneSequence]:
    """Its tower alone, in the thread that asks."""
    artifact = read_static(locate(folder))
    with closing(StaticTower(artifact, n_ctx=artifact.n_ctx_train, threads=1, n_batch=n_batch)) as tower:
        yield OneSequence(tower)


def read(tower: OneSequence, tokens: Sequence[int], size: int = WINDOW) -> NDArray[np.float32]:
    """The logits after what is there and ``tokens``, so many at once."""
    for start in range(0, len(tokens), size):
        tower.decode(tokens[start : start + size])
    return tower.logits()


def greedy(tower: OneSequence, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        found.append(int(tower.logits().argmax()))
        tower.decode(found[-1:])
    return found


@pytest.fixture(scope="module")
def model(static_folder: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(static_folder, threads=1) as answering:
        yield answering


@pytest.fixture(scope="module")
def prompt(model: edge_llama.Model) -> list[int]:
    """Of more than two windows, with an answer that was learned."""
    messages = [
        message
        for where, city in CITIES.items()
        for message in (
            edge_llama.Message("user", f"What is the capital of {where}?"),
            edge_llama.Message("assistant", f"The capital of {where} is {city}."),
        )
    ]
    messages.append(edge_llama.Message("user", QUESTION))
    tokens = model.template.tokens(messages)
    assert 2 * WINDOW < len(tokens) < CONTEXT - WINDOW - 16
    return tokens


@pytest.fixture(scope="module")
def whole(model: edge_llama.Model, prompt: list[int]) -> list[int]:
    """As many tokens as the context holds."""
    return (prompt * CONTEXT)[:CONTEXT]


def test_what_is_known_before_it_is_opened(static_folder: Path) -> None:
    found = read_static(locate(static_folder))
    assert locate(static_folder).name == "prompt.onnx"
    assert (found.window, found.context, found.n_ctx_train, found.begins) == (WINDOW, CONTEXT, CONTEXT, 1)
    assert (found.form, found.engine, found.kv_format.block_bytes) == ("ONNX for NPUs", "onnxruntime", 1)
    assert found.kv_values_per_token == 2 * 2 * found.n_layer * found.n_kv_heads * found.head_dim
    assert found.takes_embeddings
    assert not found.gives_hidden_states
    assert [file.name for file in found.files[:3]] == ["prompt.onnx", "token.onnx", "inputs.onnx"]
    assert len(set(found.files)) == len(found.files)
    assert set(found.graph.tensors) <= set(found.tensors)
    assert found.weight_bytes == sum(file.stat().st_size for file in found.files)
    with pytest.raises(OptionError, match="expected a whole number from 2 to 256"):
        edge_llama.open(static_folder, n_ctx=CONTEXT + 1)


def test_it_answers_as_it_was_trained(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=0)
    assert chat.send(QUESTION).result().text == "The capital of Japan is Tokyo."
    again = chat.send("And of Italy?").result()
    assert again.text == "The capital of Italy is Rome."
    assert again.timings.cached_tokens > 20
    assert model.tokenizer.bos == 1


@pytest.mark.parametrize("size", [20, 7, 2, 1])
def test_an_answer_does_not_depend_on_how_a_prompt_is_read(size: int, static_folder: Path, prompt: list[int]) -> None:
    with opened(static_folder) as tower:
        expected = read(tower, prompt)
        answer = greedy(tower, 6)
        tower.cut(0)
        np.testing.assert_allclose(read(tower, prompt, size), expected, atol=NEAR, rtol=0)
        assert tower.length == len(prompt)
        assert greedy(tower, 6) == answer
        tower.cut(len(prompt) // 2)
        found = read(tower, prompt[len(prompt) // 2 :], size)
        np.testing.assert_allclose(found, expected, atol=NEAR, rtol=0)
        assert greedy(tower, 6) == answer


def test_what_was_cut_off_is_not_seen(static_folder: Path, whole: list[int], prompt: list[int]) -> None:
    with opened(static_folder) as tower:
        expected = read(tower, prompt)
        tower.cut(0)
        read(tower, [1, *whole[:0:-1]])
        tower.cut(0)
        assert np.array_equal(read(tower, prompt), expected)


def test_the_first_token_is_within_the_graphs(static_folder: Path, prompt: list[int]) -> None:
    with opened(static_folder) as tower:
        expected = tower.decode(prompt[:9]).values.copy()
        tower.cut(0)
        assert np.isfinite(tower.decode(prompt[:1]).values).all()  # of a text of one token, too
        assert tower.length == 1
        assert np.array_equal(tower.decode(prompt[1:9]).values, expected)
        tower.cut(1)
        assert np.array_equal(tower.decode(prompt[1:9]).values, expected)
        tower.cut(0)
        assert tower.tower.decode([Rows(0, prompt[:1], needs_logits=False)]) == []
        assert np.array_equal(tower.decode(prompt[1:9]).values, expected)


def test_a_text_that_begins_otherwise_is_refused(static_folder: Path, prompt: list[int]) -> None:
    told = "begins with token 5, but this file was made for texts that begin with token 1; begin with that"
    with opened(static_folder) as tower:
        for tokens in ([5, 6], [5]):
            with pytest.raises(EngineError, match=told):
                tower.decode(tokens)
        with pytest.raises(EngineError, match="begins with an embedding"):
            tower.decode_embeddings(np.zeros((2, tower.tower.n_embd), np.float32))
        assert tower.length == 0
        tower.decode(prompt[:WINDOW])
        tower.decode([5, 6])


def test_plain_text_gets_its_first_token(model: edge_llama.Model, static_folder: Path) -> None:
    text = "The capital of Japan is"
    answer = model.generate(text, temperature=0, max_tokens=4).result()
    with opened(static_folder) as tower:
        read(tower, [1, *model.tokenizer.encode(text)])
        expected = greedy(tower, 4)
    assert list(answer.tokens) == expected[: len(answer.tokens)]
    assert answer.tokens


@pytest.mark.parametrize("size", [WINDOW, 1])
def test_a_context_is_read_to_its_end(size: int, static_folder: Path, whole: list[int]) -> None:
    """Beyond the window's room, too, where tokens are read one by one."""
    with opened(static_folder) as tower:
        read(tower, whole[:-WINDOW], size)
        before = tower.logits()
        last = read(tower, whole[-WINDOW:], size)
        assert tower.length == CONTEXT
        with pytest.raises(EngineError, match="257 positions don't fit the context of 256"):
            tower.decode([5])
        tower.cut(CONTEXT - WINDOW)
        np.testing.assert_allclose(read(tower, whole[-WINDOW:], 5), last, atol=NEAR, rtol=0)
        tower.cut(CONTEXT - 2 * WINDOW)
        found = read(tower, whole[CONTEXT - 2 * WINDOW : -WINDOW], 9)
        np.testing.assert_allclose(found, before, atol=NEAR, rtol=0)


def test_a_cache_goes_on_in_another_tower(static_folder: Path, prompt: list[int]) -> None:
    with opened(static_folder) as first, opened(static_folder) as second:
        read(first, prompt)
        kept = first.tower.save(0)
        artifact = read_static(locate(static_folder))
        values = 2 * artifact.n_layer * artifact.n_kv_heads * artifact.head_dim
        assert kept.nbytes == first.tower.saved_bytes(0) == values * (len(prompt) - 1)
        read(second, prompt[:7])
        second.tower.load(0, kept, len(prompt))
        assert second.length == len(prompt)
        assert np.array_equal(second.tower.save(0), kept)
        for tokens in ([9], [7, 8, 9], list(range(5, 5 + WINDOW))):
            assert np.array_equal(first.decode(tokens).values, second.decode(tokens).values)
        with pytest.raises(EngineError, match="a cache of"):
            second.tower.load(0, kept, len(prompt) - 1)
        assert second.length == 0
        second.tower.load(0, np.empty(0, np.uint8), 1)
        assert second.length == 1


def test_a_chat_is_saved_and_resumed_without_reading_it_again(
    model: edge_llama.Model, static_folder: Path, tmp_path: Path
) -> None:
    chat = model.chat(temperature=0)
    chat.send(QUESTION).result()
    chat.save(tmp_path / "a.session")
    with edge_llama.open(static_folder, **edge_llama.session_settings(tmp_path / "a.session")) as other:
        resumed = other.load_chat(tmp_path / "a.session", temperature=0)
        answer = resumed.send("And of Italy?").result()
        assert resumed.reread_reason is None
        assert answer.timings.cached_tokens > 20
    assert chat.send("And of Italy?").result().tokens == answer.tokens


def test_a_run_that_is_stopped_appended_nothing(static_folder: Path, prompt: list[int]) -> None:
    with opened(static_folder) as tower:
        tower.decode(prompt[:10])
        timer = threading.Timer(0.05, tower.tower.abort)
        timer.start()

        def read_on() -> None:
            while True:
                tower.cut(10)
                tower.decode(prompt[10:30])

        with pytest.raises(AbortedError):  # either within a run or before the next
            read_on()
        timer.join()
        assert tower.length == 10
        for tokens in (prompt[10:11], prompt[10:12]):
            with pytest.raises(AbortedError):
                tower.decode(tokens)
        tower.tower.resume()
        stopped = read(tower, prompt[10:30])
        tower.cut(0)
        tower.decode(prompt[:10])
        assert np.array_equal(read(tower, prompt[10:30]), stopped)


def embedded(folder: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The rows that stand for tokens, by the graph that runs before the others."""
    session = onnxruntime.InferenceSession(folder / "inputs.onnx", providers=["CPUExecutionProvider"])
    given = {
        "input_ids": np.array([tokens], np.int32),
        "attention_mask": np.ones((1, CONTEXT), np.int32),
        "position_ids": np.arange(len(tokens), dtype=np.int32)[None],
    }
    (rows,) = session.run(["embeds"], given)
    return rows[0]


def test_embeddings_stand_where_tokens_would(static_folder: Path, prompt: list[int]) -> None:
    rows = embedded(static_folder, prompt)
    with opened(static_folder) as tower:
        parts = [(0, 10), (10, 20), (20, 21), (21, 30)]
        for start, stop in parts:
            tower.decode(prompt[start:stop])
        expected = tower.logits()
        tower.cut(10)
        for start, stop in parts[1:3]:
            tower.decode_embeddings(rows[start:stop])
        tower.decode(prompt[21:30])
        assert np.array_equal(tower.logits(), expected)
        for odd in (rows[:3, :-1], rows[:0], rows[0], rows[: WINDOW + 1]):
            with pytest.raises(EngineError, match="embeddings have the shape"):
                tower.decode_embeddings(odd)


def test_it_gives_no_hidden_states_and_nothing_after_it_is_closed(static_folder: Path) -> None:
    with opened(static_folder, n_batch=8) as tower:
        assert tower.tower.n_batch == 8
        with pytest.raises(EngineError, match="the graph has no output hidden_states"):
            tower.tower.embedder(16)
    with pytest.raises(EngineError, match="closed"):
        tower.decode([1])


class Still:
    """A session that computes nothing."""

    def io_binding(self) -> "Still":
        return self

    def get_input_memory_infos(self) -> Sequence[Any]:
        return []

    get_inputs = get_outputs = get_input_memory_infos

    def bind_input(self, *_: object) -> None:
        pass

    bind_output = run_with_iobinding = bind_input


@pytest.mark.parametrize("begins", [None, 1])
@pytest.mark.parametrize("count", [1, 4])
def test_a_row_sees_what_is_before_it_and_itself(count: int, begins: int | None) -> None:
    """By the mask's columns: position 0 if it is within the graph, earlier positions, the graph's own rows."""
    context, within = 12, int(begins is not None)
    artifact: Any = SimpleNamespace(
        context=context,
        begins=begins,
        n_embd=2,
        head_dim=2,
        n_kv_heads=1,
        n_layer=1,
        stored=FORMATS["i8"],
        names=SimpleNamespace(past=("k", "v"), present=("new_k", "new_v"), logits="logits"),
    )
    rows = StaticRows(artifact, [Still()], count, np.zeros((1, 1, 3), np.float32))
    assert rows.room == context - count
    for start in range(within, rows.room + within + 1):
        for filled in range(1, count + 1):
            values = np.ones((filled, 2), np.float32)
            rows.run(Inputs(values, values[:, :1], values[:, :1]), start, None)
            seen, pads = rows._mask[0, 0] == 0, count - filled
            for row in range(pads, count):
                own = {within + rows.room + other for other in range(pads, row + 1)}
                assert set(np.flatnonzero(seen[row])) == {*range(start), *own}
            for row in range(pads):
                assert [*np.flatnonzero(seen[row])] == [0 if within else rows.room + row]
    if within and count == 1:  # its logits are those of what the graph knows of it
        rows.run(Inputs(values, values[:, :1], values[:, :1]), 0, None)
        assert [*np.flatnonzero(rows._mask == 0)] == [0]


def model_field(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["model"].update(fields)


def decoder(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["model"]["decoder"].update(fields)


def within(part: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["model"]["decoder"][part].update(fields)


def stage(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["model"]["decoder"]["pipeline"][0][name].update(fields)


def without(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def without_token(content: dict[str, Any]) -> None:
    del content["model"]["decoder"]["pipeline"][0]["token"]


def exchanged(content: dict[str, Any]) -> None:
    stages = content["model"]["decoder"]["pipeline"][0]
    names = [stages[name]["filename"] for name in ("token", "prompt")]
    stages["prompt"]["filename"], stages["token"]["filename"] = names


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no stages": (without("model", "decoder", "pipeline"), r"model\.decoder\.pipeline is missing"),
    "stages of text": (decoder(pipeline="all"), r"pipeline is 'all', expected a list"),
    "a stage that is none": (decoder(pipeline=[3]), "pipeline has 3, expected objects with stages"),
    "no stage of tokens": (
        without_token,
        "pipeline has 1 stages for both, 1 for prompts and 0 for tokens, expected one",
    ),
    "a stage for nothing": (
        stage("token", run_on_token_gen=False),
        r"pipeline\.token is for neither prompts nor tokens",
    ),
    "a stage elsewhere": (
        stage("prompt", filename="../prompt.onnx"),
        r"pipeline\.prompt\.filename is '../prompt.onnx', expected a file in",
    ),
    "a stage that is not there": (stage("inputs", filename="other.onnx"), "other.onnx: cannot be read"),
    "stages exchanged": (exchanged, r"window_size is 32, but .*token\.onnx has the input 'embeds' as f32 \[1, 1, "),
    "another window": (within("sliding_window", window_size=16), r"window_size is 16, but .* as f32 \[1, 32, "),
    "a window of more than half": (
        within("sliding_window", window_size=129),
        r"sliding_window\.window_size is 129, expected 1 to 128",
    ),
    "a window of text": (within("sliding_window", window_size="32"), "window_size is '32', expected a whole number"),
    "no window": (without("model", "decoder", "sliding_window"), r"sliding_window\.window_size is missing"),
    "a shorter context": (model_field(context_length=200), r"context_length is 200, but .* 'mask' as f32 .*, 257\]"),
    "a longer context": (model_field(context_length=512), "context_length is 512, but"),
    "a context of nothing": (model_field(context_length=0), "context_length is 0, expected 1 to"),
    "no first token": (without("model", "bos_token_id"), r"bos_token_id is \[\], expected the token that"),
    "two first tokens": (model_field(bos_token_id=[1, 2]), r"bos_token_id is \[1, 2\], expected the token that"),
    "a first token beyond": (model_field(bos_token_id=10**6), "bos_token_id has 1000000, expected token ids"),
    "other heads": (
        decoder(num_key_value_heads=99),
        r"the input 'past_keys_0' as u8 \[.*\], expected u8 \[99, 1, .*\] by genai_config.json",
    ),
    "an odd width": (decoder(head_size=15), "head_size is 15, expected an even number"),
    "another width": (decoder(head_size=12), r"the output 'cos' as f32 .*expected f32 \[1, 1, \?, 6\]"),
    "other embeddings": (decoder(hidden_size=64), r"the output 'embeds' as f32 .*expected f32 \[1, \?, 64\]"),
    "another vocabulary": (model_field(vocab_size=99_999), r"the output 'logits' .*expected f32 \[1, 1, 99999\]"),
    "a layer more": (
        decoder(num_hidden_layers=3),
        "no inputs 'past_keys_2' in prompt.onnx, which genai_config.json names",
    ),
    "a layer less": (decoder(num_hidden_layers=1), "has the input 'past_keys_1', which this version does not know"),
    "names without a layer": (within("inputs", past_key_names="past"), "past_key_names is 'past', expected a name"),
    "other ids": (within("inputs", input_ids="ids"), "no input 'ids', which genai_config.json names"),
    "other positions": (within("inputs", position_ids="places"), "no input 'places', which genai_config.json names"),
}


@pytest.fixture
def copied(static_folder: Path, tmp_path: Path) -> Path:
    """The folder without its hashes, to be damaged."""
    folder = Path(shutil.copytree(static_folder, tmp_path / "copied"))
    (folder / manifest.NAME).unlink()
    return folder


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_told_by_its_field(name: str, copied: Path) -> None:
    change, told = BAD[name]
    edited(copied / "genai_config.json", change)
    with refusal(ArtifactError, told, copied):
        edge_llama.open(copied, threads=1)


def test_stages_may_come_one_by_one(copied: Path, model: edge_llama.Model) -> None:
    """And a folder of another program, which has no hashes, is tried by a child."""

    def apart(content: dict[str, Any]) -> None:
        fields = content["model"]["decoder"]
        fields["pipeline"] = [{name: stage} for name, stage in fields["pipeline"][0].items()]

    edited(copied / "genai_config.json", apart)
    with edge_llama.open(copied, threads=1) as other:
        assert isinstance(other.artifact, StaticArtifact)
        text = "The capital of Japan is"
        found, expected = (each.generate(text, temperature=0, max_tokens=4).result() for each in (other, model))
        assert found.tokens == expected.tokens


def test_every_graph_is_verified(static_folder: Path, tmp_path: Path) -> None:
    manifest.verify(static_folder)
    folder = Path(shutil.copytree(static_folder, tmp_path / "copied"))
    raw = bytearray((folder / "token.onnx").read_bytes())
    raw[-1] ^= 1
    (folder / "token.onnx").write_bytes(raw)
    with refusal(ArtifactError, "is not as it was written", folder / "token.onnx"):
        edge_llama.open(folder, threads=1)


def test_a_tokenizer_that_adds_no_first_token_is_told(copied: Path) -> None:
    edited(copied / "tokenizer_config.json", lambda content: content.update(add_bos_token=True))
    assert read_static(locate(copied)).warnings == ()
    edited(copied / "tokenizer_config.json", lambda content: content.update(add_bos_token=False))
    (told,) = read_static(locate(copied)).warnings
    assert told.startswith("every text begins with <|im_start|>, which the tokenizer does not ask for")


def test_layers_in_several_graphs_give_the_same(
    small_talk: Path, static_folder: Path, prompt: list[int], tmp_path: Path
) -> None:
    """Bit for bit: what goes from one graph to the next was rounded there."""
    folder = in_integers(small_talk, tmp_path, max_shard_bytes=1)
    artifact = read_static(locate(folder))
    assert [graph.path.name for graph in artifact.prompts] == ["prompt_1.onnx", "prompt_2.onnx"]
    assert [graph.path.name for graph in artifact.tokens] == ["token_1.onnx", "token_2.onnx"]
    found = []
    for each in (static_folder, folder):
        with opened(each) as tower:
            found.append([read(tower, prompt[:30]), read(tower, prompt[30:31])])
            kept = tower.tower.save(0)
            tower.cut(10)
            tower.tower.load(0, kept, 31)
            found[-1].append(read(tower, prompt[31:32]))
    assert all(map(np.array_equal, *found))
