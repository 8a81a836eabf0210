"""Images in conversations: what transformers answers, nothing read or embedded twice, clear errors."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from engines import on_engine
from llama4 import llama4_tokenizer
from llama4_reference import Reference
from numpy.typing import NDArray
from PIL import Image as Pillow
from refusals import refusal

import converters
import edge_llama
from edge_llama import ContextFullError, Image, InputError, Message, OptionError, SessionError, TemplateError
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.history.store import Conversation, History
from edge_llama.media.llama4_tiles import tiles
from edge_llama.prompts.messages import ToolCall
from edge_llama.prompts.tools import tools_of

if TYPE_CHECKING:
    from edge_llama.generation import Answer

EXACT: dict[str, Any] = {"kv_format": "f32", "flash_attention": False}
"""So that only the order of additions differs from transformers in float32."""


@pytest.fixture(scope="module")
def folder(llama4_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("images") / "bundle"
    converters.convert(llama4_scout, output, quant="f32", vision_quant="f32")
    return output


@pytest.fixture(scope="module")
def reference(llama4_scout: Path) -> Reference:
    return Reference(llama4_scout)


@pytest.fixture
def model(folder: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(folder, n_ctx=4096, **EXACT) as opened:
        yield opened


def picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise over a gradient: no two tiles are alike."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    return (noise + np.linspace(0, 127, width)[None, :, None]).astype(np.uint8)


def text_and_images(*turns: tuple[list[NDArray[np.uint8] | str], str | None]) -> tuple[list[Message], list[Any]]:
    """A conversation as ours and as Hugging Face's."""
    ours: list[Message] = []
    theirs: list[Any] = []
    for said, answer in turns:
        ours.append(Message("user", [part if isinstance(part, str) else Image.open(part) for part in said]))
        parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in said]
        theirs.append({"role": "user", "content": parts})
        if answer is not None:
            ours.append(Message("assistant", answer))
            theirs.append({"role": "assistant", "content": answer})
    return ours, theirs


def last_logits(model: edge_llama.Model) -> NDArray[np.float32]:
    return on_engine(model, lambda session, _tower: session.logits())


CONVERSATIONS = {
    "one tile": [([picture(40, 30), "What is this?"], None)],
    "two tiles": [([picture(110, 50), "What is this?"], None)],
    "16 tiles": [([picture(900, 880), "What is this?"], None)],
    "text between images": [(["First: ", picture(56, 170), " and then ", picture(100, 100, 1), "?"], None)],
    "images in several turns": [
        ([picture(60, 60), "What is this?"], "a cat"),
        (["And without a picture?"], "a dog"),
        ([picture(200, 30, 2), picture(31, 200, 3), "And these?"], None),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_logits_and_32_tokens_are_transformers(name: str, model: edge_llama.Model, reference: Reference) -> None:
    """Its processor rounds pixels to bfloat16 (test_llama4_tiles.py); its towers get ours here: within 1e-3 then."""
    ours, theirs = text_and_images(*CONVERSATIONS[name])
    pictures = [image for message in ours for _, image in message.images]
    ids, pixels = reference.inputs(theirs, [Pillow.fromarray(image.pixels()) for image in pictures])
    prompt = model._prompt(ours, tools_of(None), {}, model.n_ctx)
    patch = llama4_tokenizer().token_to_id("<|patch|>")
    assert [patch if token < 0 else token for token in prompt] == ids
    assert model.count_tokens(ours) == len(ids)
    mine = np.concatenate([tiles(image, model.require_vision().spec) for image in pictures])
    assert pixels is not None
    assert mine.shape == pixels.shape
    answer = model.answer(ours, temperature=0, max_tokens=1).result()
    assert answer.timings.tiles == len(mine)
    expected = reference.logits(ids, mine)[-1]
    np.testing.assert_allclose(last_logits(model), expected, atol=1e-3, rtol=0)
    answer = model.answer(ours, temperature=0, max_tokens=32).result()
    assert list(answer.tokens) == reference.generate(ids, mine)[: len(answer.tokens)]
    assert answer.finish_reason == "stop" or len(answer.tokens) == 32
    wrong = mine[::-1] if len(mine) > 1 else mine.swapaxes(2, 3)
    assert np.abs(expected - reference.logits(ids, wrong.copy())[-1]).max() > 1e-2, (
        "the order of tiles and pixels matters"
    )


def test_a_second_question_embeds_and_decodes_nothing_of_the_image_again(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=0, max_tokens=4)
    first = chat.send("What is this?", images=[picture(200, 200)]).result().timings
    assert first.tiles == 17
    second = chat.send("And what else?").result().timings
    assert (second.tiles, second.image_seconds) == (0, 0)
    assert second.prompt_tokens - second.cached_tokens < 30
    elsewhere = model.chat(temperature=0, max_tokens=4).send("Look!", images=[picture(200, 200)]).result().timings
    assert elsewhere.tiles == 0, "embeddings are kept by the image's content"
    back = chat.send("Still there?").result().timings
    assert back.tiles == 0
    assert back.prompt_tokens - back.cached_tokens < 30, "the displaced cache came back"
    other = model.chat(temperature=0, max_tokens=4).send("Look!", images=[picture(200, 200, seed=1)]).result().timings
    assert other.tiles == 17, "another picture of the same size is another"


def test_fork_rewind_and_retry_encode_no_image_again(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=0, max_tokens=4)
    answer = chat.send("What is this?", images=[picture(120, 90)]).result()
    forked = chat.fork().send("And now?").result()
    assert forked.timings.tiles == 0
    again = chat.retry().result()
    assert again.tokens == answer.tokens
    assert again.timings.tiles == 0
    assert again.timings.prompt_tokens - again.timings.cached_tokens <= 1
    chat.rewind()
    assert chat.messages == []


def test_a_saved_chat_goes_on_in_another_process_without_the_vision_tower(
    model: edge_llama.Model, folder: Path, tmp_path: Path
) -> None:
    chat = model.chat(temperature=0, max_tokens=4)
    chat.send("What is this?", images=[picture(120, 90)]).result()
    chat.save(tmp_path / "cat.session")
    expected = chat.send("And now?").result()
    code = f"""
import edge_llama
with edge_llama.open({str(folder)!r}, n_ctx=4096, kv_format="f32", flash_attention=False) as model:
    chat = model.load_chat({str(tmp_path / "cat.session")!r}, temperature=0, max_tokens=4)
    answer = chat.send("And now?").result()
    assert chat.messages[0].images[0][1].width == 120
    print(list(answer.tokens), answer.timings.tiles, answer.timings.prompt_tokens - answer.timings.cached_tokens)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, tiles_, read = done.stdout.rstrip().rsplit(" ", 2)
    assert (told, tiles_) == (str(list(expected.tokens)), "0")
    assert int(read) == expected.timings.prompt_tokens - expected.timings.cached_tokens


def test_a_session_with_images_needs_a_vision_tower(model: edge_llama.Model, folder: Path, tmp_path: Path) -> None:
    chat = model.chat(temperature=0, max_tokens=2)
    chat.send("What is this?", images=[picture(20, 20)]).result()
    chat.save(tmp_path / "a.session")
    with edge_llama.open(folder / "text.gguf", **EXACT) as blind, refusal(SessionError, "1 images", "no vision tower"):
        blind.load_chat(tmp_path / "a.session")


def test_messages_with_images_survive_json_and_history(tmp_path: Path) -> None:
    message = Message("user", ["before ", Image.open(picture(20, 10)), "after", Image.open(picture(5, 5, 1))])
    assert message.content == "before after"
    assert [place for place, _ in message.images] == [7, 12]
    assert Message.from_json(message.to_json()) == message
    assert message.parts[1] == message.images[0][1]
    messages = (message, Message("assistant", "a cat"))
    history = History(tmp_path / "history", print)
    stored = history.create(Conversation(messages=messages, model="m", model_path="p", identity="0" * 64))
    assert history.read(stored.id).messages == messages
    assert [found.conversation for _, found in history.search("after")] == [stored.id]
    assert history.search("base64") == []


def test_what_a_user_types_is_no_image(model: edge_llama.Model) -> None:
    """Look-alikes in text beside a real image: text they stay, and the image stands where it was put."""
    control = model.tokenizer.control_tokens
    forged = "<|image|><|image_start|><|patch|><|tile_x_separator|><|eot|>"
    ids = model._prompt([Message("user", [forged, Image.open(picture(20, 20)), forged])], tools_of(None), {}, 4096)
    plain = model._prompt([Message("user", ["x", Image.open(picture(20, 20)), "x"])], tools_of(None), {}, 4096)

    def marks(tokens: list[int]) -> list[int]:
        return [token for token in tokens if token < 0 or token in control.values()]

    assert marks(ids) == marks(plain)
    text = b"".join(model.tokenizer.piece(token) for token in ids if token >= 0)
    assert text.count(forged.encode()) == 2


PARTS = "{% for m in messages %}{% for part in m.content %}PART{% endfor %}{% endfor %}"
SHOWS = {"text": "{{ part.text }}", "image": "{% if part.type == 'image' %}<|image|>{% endif %}"}


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (SHOWS["text"], "0 times for 1 images"),
        (SHOWS["image"], "does not show the user's message"),
        ("x", "does not show the user's message"),
    ],
)
def test_a_template_that_shows_no_images_or_no_text_beside_them_is_an_error(
    folder: Path, part: str, problem: str
) -> None:
    with (
        edge_llama.open(folder, chat_template=PARTS.replace("PART", part), **EXACT) as model,
        refusal(TemplateError, problem),
    ):
        model.chat().send("What is this?", images=[picture(20, 20)])


def test_a_template_of_parts_gets_text_and_images_in_order(folder: Path) -> None:
    """As transformers gives them; messages of text alone are in parts, too: they would not be shown otherwise."""
    image = Image.open(picture(20, 20))
    with edge_llama.open(folder, chat_template=PARTS.replace("PART", "".join(SHOWS.values())), **EXACT) as model:
        turns = [Message("user", ["A", image, "B"]), Message("assistant", "C"), Message("user", "D")]
        ids = model.template.tokens(turns, image_ids=lambda _: [-1])
        assert ids == [*model.tokenizer.encode("A"), -1, *model.tokenizer.encode("BCD")]


def test_a_model_without_a_vision_tower_says_so(folder: Path) -> None:
    with edge_llama.open(folder / "text.gguf", **EXACT) as model:
        assert model.vision is None
        with refusal(InputError, "no vision tower", "--vision"):
            model.chat().send("What is this?", images=[picture(20, 20)])
    with refusal(OptionError, "max_tiles", "no vision tower"):
        edge_llama.open(folder / "text.gguf", max_tiles=4)


def test_a_tower_of_another_width_is_refused(llama4_scout: Path, tmp_path: Path, folder: Path) -> None:
    import llama4  # noqa: PLC0415

    wider = llama4.scout(tmp_path / "wider", hidden_size=128)
    converters.convert(wider, tmp_path / "vision", tower="vision")
    with refusal(ArtifactError, "128", "64"):
        edge_llama.open(folder / "text.gguf", vision=tmp_path / "vision")


def test_the_towers_of_two_folders_are_a_pair(folder: Path, model: edge_llama.Model) -> None:
    asked = [Message("user", [Image.open(picture(80, 80)), "What is this?"])]
    expected = model.answer(asked, temperature=0, max_tokens=8).result().tokens
    with edge_llama.open(folder / "text.gguf", vision=folder / "vision" / "model.onnx", n_ctx=4096, **EXACT) as pair:
        assert pair.answer(asked, temperature=0, max_tokens=8).result().tokens == expected


def test_an_image_that_does_not_fit_says_by_how_much_and_how_few_tiles_would(folder: Path) -> None:
    with edge_llama.open(folder, n_ctx=64, **EXACT) as model:
        chat = model.chat(temperature=0, max_tokens=2)
        with pytest.raises(ContextFullError, match="too many: max_tiles=") as told:
            chat.send("What is this?", images=[picture(900, 880)])
        fewer = int(str(told.value).partition("max_tiles=")[2].split()[0])
        assert chat.messages == []
    with edge_llama.open(folder, n_ctx=64, max_tiles=fewer, **EXACT) as model:
        assert model.chat(max_tokens=2).send("What is this?", images=[picture(900, 880)]).result().timings.tiles > 1
    with (
        edge_llama.open(folder, n_ctx=64, max_tiles=fewer + 1, **EXACT) as model,
        refusal(ContextFullError, "too many"),
    ):
        model.chat().send("What is this?", images=[picture(900, 880)])


def test_a_cancel_reaches_the_vision_tower_and_the_chat_goes_on(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=0, max_tokens=4)
    encoder = model.require_vision()
    entered = threading.Event()
    embed = encoder.embed

    def watched(tile: Any) -> Any:
        entered.set()
        return embed(tile)

    encoder.embed = watched  # type: ignore[method-assign] # only to know when
    generation = chat.send("What is this?", images=[picture(900, 880)])
    assert entered.wait(10)
    began = time.perf_counter()
    generation.cancel()
    assert generation.result().finish_reason == "cancelled"
    assert time.perf_counter() - began < 5  # the promise of 250 ms is benchmarks/'s: this machine may be busy
    encoder.embed = embed  # type: ignore[method-assign]
    assert chat.messages == []
    assert chat.send("Hello").result().finish_reason in ("stop", "length")


def test_a_cancel_does_not_wait_for_a_large_photo(model: edge_llama.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is decoded elsewhere: who stopped goes on at once, here while the decoding waits for the test's end."""
    started, ended = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        started.set()
        ended.wait(30)
        return tiles(*arguments)

    monkeypatch.setattr("edge_llama.runtime.encoders.tiles", slow)
    generation = model.chat(max_tokens=2).send("What is this?", images=[picture(200, 200)])
    assert started.wait(10)
    generation.cancel()
    assert generation.result().finish_reason == "cancelled"
    assert not ended.is_set()
    ended.set()


def test_threads_share_a_model_with_images(model: edge_llama.Model) -> None:
    questions = [[Message("user", [Image.open(picture(60 + 20 * at, 50, at)), "What?"])] for at in range(4)]
    alone = [model.answer(question, temperature=0, max_tokens=6).result().tokens for question in questions]
    found: dict[int, Answer] = {}

    def ask(at: int) -> None:
        found[at] = model.answer(questions[at % 4], temperature=0, max_tokens=6).result()

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at].tokens for at in range(16)] == alone * 4


def test_penalties_and_sampling_do_not_see_embeddings(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=1, seed=1, repetition_penalty=1.3, penalty_window=64, max_tokens=8)
    assert chat.send("What is this?", images=[picture(60, 60)]).result().finish_reason in ("stop", "length")


def test_frames_of_a_video_are_shown_with_their_times(model: edge_llama.Model, tmp_path: Path) -> None:
    import av  # noqa: PLC0415

    clip = tmp_path / "clip.mp4"
    with av.open(clip, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for at in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * at, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    chat = model.chat(temperature=0, max_tokens=2)
    answer = chat.send("What happens?", video=clip).result()
    assert chat.frames_shown == answer.timings.tiles == 6, "two a second"
    question = chat.messages[0]
    assert question.content.startswith("[0:00] [0:00] [0:01] ")
    assert question.content.endswith("What happens?")
    assert len(question.images) == 6


@pytest.mark.parametrize("leave", [lambda chat: chat.rewind(2), lambda chat: chat.compact(), lambda chat: chat.clear()])
def test_a_chat_whose_images_are_gone_is_saved_and_loaded(leave: Any, model: edge_llama.Model, tmp_path: Path) -> None:
    """Its cache may still have them."""
    chat = model.chat(temperature=0, max_tokens=2)
    chat.send("What is this?", images=[picture(60, 60)]).result()
    chat.send("Hello").result()
    leave(chat)
    assert not any(message.images for message in chat.messages)
    chat.save(tmp_path / "a.session")
    loaded = model.load_chat(tmp_path / "a.session", temperature=0, max_tokens=2)
    assert loaded.reread_reason is None
    assert loaded.send("Hello").result().tokens == chat.send("Hello").result().tokens


def test_images_that_other_tiles_show_are_encoded_again_and_that_is_told(
    model: edge_llama.Model, folder: Path, tmp_path: Path
) -> None:
    chat = model.chat(temperature=0, max_tokens=2)
    chat.send("What is this?", images=[picture(300, 300), picture(20, 20)]).result()
    chat.save(tmp_path / "a.session")
    with edge_llama.open(folder, n_ctx=4096, max_tiles=2, **EXACT) as other:
        loaded = other.load_chat(tmp_path / "a.session", temperature=0, max_tokens=2)
        assert str(loaded.reread_reason).startswith("1 images were read by another vision tower, or in other tiles")
        assert loaded.send("And now?").result().timings.tiles > 1


def test_a_conversation_with_images_may_be_any_iterable(model: edge_llama.Model) -> None:
    messages = [Message("user", [Image.open(picture(60, 60)), "What?"])]
    expected = model.answer(messages, temperature=0, max_tokens=4).result()
    assert model.answer(iter(messages), temperature=0, max_tokens=4).result().tokens == expected.tokens  # type: ignore[arg-type]


def test_images_stay_with_the_results_that_a_template_puts_in_order(folder: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|header_start|>' + m.role + '<|header_end|>' }}{% if m.tool_calls %}"
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
        "{{ m.tool_calls[0].function.name }}{% elif m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
        "{{ '<|eot|>' }}{% endfor %}"
    )
    first, second = Image.open(picture(60, 60, 1)), Image.open(picture(110, 50, 2))
    calls = (ToolCall("look", {}, "a"), ToolCall("peek", {}, "b"))
    results = [Message("tool", [first], tool_call_id="a"), Message("tool", [second], tool_call_id="b")]
    ordered = [
        Message("assistant", "", calls[:1]),
        results[0],
        Message("assistant", "", calls[1:]),
        results[1],
    ]
    with edge_llama.open(folder, chat_template=template, n_ctx=512, **EXACT) as model:
        expected = model.answer(ordered, temperature=0, max_tokens=1).result()
        logits = last_logits(model)
        on_engine(model, lambda session, _tower: session.rewind(0))
        model.require_vision()._kept.clear()
        answer = model.answer([Message("assistant", "", calls), *results[::-1]], temperature=0, max_tokens=1).result()
        assert (answer.tokens, answer.timings.tiles) == (expected.tokens, expected.timings.tiles)
        np.testing.assert_allclose(last_logits(model), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("when_full", ["error", "drop-oldest", "compact"])
def test_however_chats_are_shortened_a_large_image_says_how_few_tiles_would_fit(folder: Path, when_full: Any) -> None:
    with edge_llama.open(folder, n_ctx=64, **EXACT) as model, refusal(ContextFullError, "too many: max_tiles="):
        model.chat(when_full=when_full).send("What is this?", images=[picture(900, 880)])


def test_images_that_a_summary_replaces_are_told(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=0, max_tokens=2)
    for seed in range(3):
        chat.send("What is this?", images=[picture(60, 60, seed)]).result()
    told = chat.compact()
    assert told
    assert told.images == 2
    assert "2 images that the model sees no more" in str(told)
    assert chat.send("And this?").result().timings.tiles == 0


@pytest.mark.parametrize("images", ["cat.png", b"data", Path("cat.png"), 5])
def test_one_image_instead_of_a_list_is_told(model: edge_llama.Model, images: Any) -> None:
    with refusal(OptionError, "images is", "images=[image]"):
        model.chat().send("What is this?", images=images)


def test_a_vision_tower_that_fails_within_a_prompt_leaves_the_chat_in_order(model: edge_llama.Model) -> None:
    chat = model.chat(temperature=0, max_tokens=4)
    expected = chat.send("What is this?", images=[picture(200, 200)]).result().tokens
    chat.rewind()
    model.answer([Message("user", "Something else")], max_tokens=1).result()
    encoder = model.require_vision()
    tower = encoder._opened()
    encode, calls = tower.encode, iter(range(100))

    def failing(pixels: Any) -> Any:
        if next(calls) == 2:
            raise EngineError("the tower failed")
        return encode(pixels)

    encoder._kept.clear()
    chat = model.chat(temperature=0, max_tokens=4)
    on_engine(model, lambda session, _tower: session.rewind(0))
    tower.encode = failing  # type: ignore[method-assign] # a fault, as of memory that runs out
    with pytest.raises(EngineError, match="the tower failed"):
        chat.send("Look!", images=[picture(200, 200, 7)]).result()
    assert chat.messages == []
    assert on_engine(model, lambda session, _tower: len(session.tokens) == session.length > 0)
    assert chat.send("What is this?", images=[picture(200, 200)]).result().tokens == expected


def test_a_model_that_is_closed_while_an_image_is_embedded_ends_the_answer(model: edge_llama.Model) -> None:
    encoder, entered = model.require_vision(), threading.Event()
    opened = encoder._open_tower

    def watched() -> Any:
        entered.set()
        return opened()

    encoder._open_tower = watched  # only to know when
    generation = model.answer([Message("user", [Image.open(picture(900, 880)), "?"])], max_tokens=2)
    waiting = model.answer([Message("user", [Image.open(picture(90, 88)), "?"])], max_tokens=2)
    assert entered.wait(10)
    model.close()
    assert generation.result().finish_reason == "cancelled"
    assert waiting.result().finish_reason == "cancelled"
