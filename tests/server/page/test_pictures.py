"""Pictures for the model: by a button, dropped, pasted; refused kindly where they can't be used."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import llama4_answers
import numpy as np
import pytest
from browsing import COMPLETIONS, Tab, delta, end, stream
from PIL import Image
from serving import Served, serve

import converters
from edge_llama.server.pool import Pool
from edge_llama.server.settings import Limits, ServerSettings

GIVE = """
([way, name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type }));
  if (way === "paste") {
    const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
    document.querySelector("#prompt").dispatchEvent(event);
    return;
  }
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}
"""


RED = np.full((8, 8, 3), (200, 60, 30), np.uint8)


def png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]" = RED) -> bytes:
    written = BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def give(
    tab: Tab, way: str, name: str = "cat.png", media_type: str = "image/png", content: bytes | int = png()
) -> None:
    """Have the browser believe that this file was pasted or dropped; of a number: so many zeros."""
    tab.page.evaluate(GIVE, [way, name, media_type, content if isinstance(content, int) else list(content)])


@pytest.fixture(scope="module")
def unloaded(browser: object, converted: Path) -> Iterator[Served]:
    """A server whose model is not loaded yet: whether it sees pictures is not known."""
    limits = Limits(body_bytes=2 << 20, images=3)
    with serve(
        Pool([str(converted)], {"n_ctx": 2048, "threads": 1}, isolate=False), ServerSettings(limits=limits)
    ) as server:
        yield server


@pytest.fixture
def seeing(unloaded: Served, open_tab: Callable[..., Tab]) -> Tab:
    return open_tab(unloaded.url)


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_model_without_eyes_refuses_kindly(tab: Tab, way: str) -> None:
    give(tab, way)
    tab.page.wait_for_selector(".toast")
    assert "cat.png was not attached" in tab.toast.inner_text()
    assert "reads text only" in tab.toast.inner_text()
    assert tab.page.locator("#attachments li").count() == 0
    assert tab.page.locator("#drop").is_hidden()
    assert tab.page.locator("#attach").is_hidden()


@pytest.mark.parametrize("way", ["paste", "drop", "button"])
def test_pictures_are_sent_as_they_are_and_kept(seeing: Tab, way: str) -> None:
    body = stream(delta(content="A red square."), end("stop"))
    seeing.page.route(f"**{COMPLETIONS}", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    if way == "button":
        seeing.page.set_input_files("#attach-file", {"name": "cat.png", "mimeType": "image/png", "buffer": png()})
    else:
        give(seeing, way)
    seeing.page.wait_for_selector("#attachments img")
    seeing.ask("What is it?")
    (message,) = seeing.sent[0]["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert seeing.page.locator("#attachments li").count() == 0
    seeing.page.reload()
    seeing.page.wait_for_selector("article.user img")
    assert seeing.page.evaluate("document.querySelector('article.user img').decode().then(() => true)")
    seeing.ask("And now?")
    assert seeing.sent[1]["messages"][0] == message


def test_a_picture_can_be_taken_back(seeing: Tab) -> None:
    give(seeing, "paste")
    give(seeing, "paste", "dog.png")
    seeing.page.get_by_label("Remove cat.png").click()
    assert seeing.page.locator("#attachments img").evaluate_all("all => all.map(each => each.alt)") == ["dog.png"]


@pytest.mark.parametrize(
    ("name", "media_type", "size", "why"),
    [
        ("notes.pdf", "application/pdf", 10, "it is no PNG, JPEG, WebP, GIF, BMP or AVIF picture"),
        ("page.svg", "image/svg+xml", 10, "it is no PNG"),
        ("big.png", "image/png", 2 << 20, "it has 2.1 MB, and this conversation has room for 1.6 MB more"),
    ],
)
def test_what_cant_be_sent_is_refused_with_the_reason(
    seeing: Tab, name: str, media_type: str, size: int, why: str
) -> None:
    give(seeing, "drop", name, media_type, size)
    seeing.page.wait_for_selector(".toast")
    assert f"{name} was not attached: {why}" in seeing.toast.inner_text()
    assert seeing.page.locator("#attachments li").count() == 0


def test_more_pictures_than_a_request_may_have_are_refused(seeing: Tab) -> None:
    for each in range(4):
        give(seeing, "paste", f"{each}.png")
    assert "3.png was not attached: a conversation may have 3 pictures" in seeing.toast.inner_text()
    assert seeing.page.locator("#attachments li").count() == 3


def test_text_that_is_copied_with_its_picture_is_text(seeing: Tab) -> None:
    seeing.page.evaluate(
        """() => {
          const data = new DataTransfer();
          data.setData("text/plain", "a cell");
          data.items.add(new File([new Uint8Array(9)], "cell.png", { type: "image/png" }));
          const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
          document.querySelector("#prompt").dispatchEvent(event);
          window.wasPrevented = event.defaultPrevented;
        }"""
    )
    assert not seeing.page.evaluate("window.wasPrevented")  # the browser puts the text in
    assert seeing.page.locator("#attachments li").count() == 0


def test_pictures_go_into_a_file_and_come_back(seeing: Tab, tmp_path: Path, open_tab: Callable[..., Tab]) -> None:
    body = stream(delta(content="Red."), end("stop"))
    seeing.page.route(f"**{COMPLETIONS}", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    give(seeing, "paste")
    seeing.ask("What is it?")
    with seeing.page.expect_download() as waiting:
        seeing.page.click("#export")
    waiting.value.save_as(tmp_path / "all.json")
    other = open_tab(seeing.url)
    other.page.set_input_files("#import-file", tmp_path / "all.json")
    other.page.locator("#conversations .row").click()
    other.page.wait_for_selector("article.user img")
    assert other.page.evaluate("document.querySelector('article.user img').decode().then(() => true)")


@pytest.fixture(scope="module")
def digits(browser: object, llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose model reads digits in pictures."""
    folder = tmp_path_factory.mktemp("digits") / "model"
    converters.convert(llama4_digits, folder, quant="f32", vision_quant="f32")
    with serve(Pool([str(folder)], {"n_ctx": 2048, "threads": 1}, isolate=False)) as server:
        yield server


def test_a_model_with_eyes_reads_what_was_pasted(digits: Served, open_tab: Callable[..., Tab]) -> None:
    model = digits.model
    tab = open_tab(digits.url)
    assert "text and pictures" in tab.page.inner_text("#facts")
    tab.settings(temperature=0, max_tokens=32)
    for question in llama4_answers.questions(4):
        tab.page.click("#new-chat")
        for picture in question.turn.pictures:
            give(tab, "paste", content=png(picture))
        assert tab.ask(question.turn.question) == llama4_answers.ours(model, question).strip()
