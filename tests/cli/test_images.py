"""Pictures on the command line: one answer, and a chat in a terminal, by the small Llama 4 that reads digits."""

import json
import os
import re
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from terminals import Terminal

import converters
from edge_llama.cli.chat_session.pictures import dropped, unquoted
from edge_llama.history.store import History

Cli = Callable[..., subprocess.CompletedProcess[str]]
WHICH = "Which digits are these?"


@pytest.fixture(scope="module")
def model(llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cli") / "digits"
    converters.convert(llama4_digits, output, quant="q8_0")
    return output


@pytest.fixture(scope="module")
def picture() -> Path:
    """The README's: a five and a four."""
    return Path(__file__).parent.parent.parent / "docs" / "digits.png"


@pytest.fixture(scope="module")
def halves(picture: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Its digits apart, the first with a space in its name."""
    folder = tmp_path_factory.mktemp("halves")
    pixels = np.asarray(Pillow.open(picture))
    paths = [folder / "the five.png", folder / "four.png"]
    for path, half in zip(paths, np.hsplit(pixels, 2), strict=True):
        Pillow.fromarray(half).save(path)
    return paths


def test_one_answer_about_a_picture(cli: Cli, model: Path, picture: Path) -> None:
    done = cli("run", model, WHICH, "--image", picture, "--temperature", 0)
    assert (done.returncode, done.stdout) == (0, "left 5, right 4\n"), done.stderr


def test_pictures_stand_in_their_order(called: Cli, model: Path, halves: list[Path]) -> None:
    first = called("run", model, WHICH, "--image", halves[0], "--image", halves[1], "--temperature", 0, "--json")
    said = json.loads(first.stdout)
    assert said["text"] == "first 5, second 4"
    assert said["timings"]["tiles"] > 2
    fewer = called("run", model, WHICH, "--image", halves[0], "--image", halves[1], "--max-tiles", 1, "--json")
    assert json.loads(fewer.stdout)["timings"]["tiles"] == 2, "one for each picture"
    second = called("run", model, WHICH, "--image", halves[1], "--image", halves[0], "--temperature", 0)
    assert second.stdout == "first 4, second 5\n"


def test_a_text_model_with_another_files_vision_tower(cli: Cli, model: Path, picture: Path) -> None:
    done = cli("run", model / "text.gguf", WHICH, "--vision", model, "--image", picture, "--temperature", 0)
    assert done.stdout == "left 5, right 4\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "nix.png"], "nix.png"),
        (["--image", "https://example.org/a.png"], "example.org"),
        (["--image", __file__], "test_images.py"),
        (["--image", "PICTURE", "--raw"], "--raw"),
        (["--image", "PICTURE", "--n-ctx", "32"], "--max-tiles"),
        (["--image", "PICTURE", "--max-tiles", "17"], "max_tiles is 17"),
        (["--image", "PICTURE", "--vision", "nix.gguf"], "nix.gguf"),
        (["--video", __file__], "test_images.py"),
    ],
)
def test_what_can_t_be_shown_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, called: Cli, model: Path, picture: Path
) -> None:
    done = called("run", model, WHICH, *(str(picture) if word == "PICTURE" else word for word in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("edge-llama: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_model_without_vision_says_how_it_would_have_it(called: Cli, picture: Path) -> None:
    done = called("run", WHICH, "--image", picture)
    assert done.returncode == 2
    assert "no vision tower" in done.stderr
    assert "--vision FILE" in done.stderr


def test_frames_of_a_clip_are_counted(called: Cli, model: Path, tmp_path: Path) -> None:
    import av  # noqa: PLC0415

    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    done = called("run", model, "What happens?", "--video", tmp_path / "clip.mp4", "--max-tokens", 2)
    assert done.returncode == 0, done.stderr
    assert "4 frames" in done.stderr


def test_without_pyav_a_clip_says_what_to_install(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "av.py").write_text('raise ImportError("not installed")')
    search = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = cli("run", model, "What happens?", "--video", __file__, env={"PYTHONPATH": search})
    assert done.returncode == 2
    assert done.stderr.endswith('pip install "edge-llama[video]"\n'), done.stderr


def test_a_picture_waits_when_the_message_does_not_fit_and_what_was_shown_is_loaded_again(
    terminal: Callable[..., Terminal], cli: Cli, model: Path, halves: list[Path], tmp_path: Path
) -> None:
    env = {"EDGE_LLAMA_HISTORY": str(tmp_path / "history")}
    chat = terminal("chat", model, "--temperature", 0, "--n-ctx", 512, env=env)
    chat.see(r"/help shows the commands(?m:(.|\n)*^>)\Z")
    assert "112 x 112 pixels" in chat.ask(f"/image '{halves[0]}'"), "dropped after the command"
    assert "the context holds 512" in chat.ask("word " * 600)
    assert re.search(r" [1-9]\d? of 512 tokens", chat.ask(f"{halves[1]} {WHICH}") + chat.ask("/context"))
    saved = tmp_path / "saved"
    assert "saved" in chat.ask(f"/save {saved}")
    chat.enter("/exit")
    assert chat.exit_code() == 0
    question, answer = History(tmp_path / "history", print).latest().messages
    assert (len(question.images), answer.content) == (2, "first 5, second 4"), "the first picture had waited"
    entry = History(tmp_path / "history", print).latest().id
    shown = json.loads(cli("history", "show", entry, "--json", env=env).stdout)["messages"][0]["content"]
    assert [part["type"] for part in shown] == ["image_url", "image_url", "text"]
    again = terminal("chat", model, "--temperature", 0, "--continue", env=env)
    again.see(r"/help shows the commands(?m:(.|\n)*^>)\Z")
    assert "first 5, second 4" in again.ask("/retry")
    assert "2 messages" in again.ask(f"/load {saved}")
    assert "first 5, second 4" in again.ask("/retry")


def test_a_chat_shows_pictures_drops_them_and_keeps_them(
    terminal: Callable[..., Terminal], cli: Cli, model: Path, halves: list[Path], picture: Path, tmp_path: Path
) -> None:
    chat = terminal("chat", model, "--temperature", 0, env={"EDGE_LLAMA_HISTORY": str(tmp_path)})
    chat.see(r"/help shows the commands(?m:(.|\n)*^>)\Z")
    assert "no such" in chat.ask("/image nix.png").lower()
    assert "224 x 112 pixels" in chat.ask(f"/image {picture}")
    assert "shows nothing" in chat.ask("/image -")
    assert "112 x 112 pixels" in chat.ask(f"'{halves[0]}'")
    dropped_with_text = chat.ask(f"{halves[1]} {WHICH}")
    assert "first 5, second 4" in dropped_with_text.replace("\n", " ")
    assert "taken back" in chat.ask("/undo")
    assert "224 x 112 pixels" in chat.ask(f"/image {picture}")
    assert "left 5, right 4" in chat.ask(WHICH)
    chat.enter("/exit")
    assert chat.exit_code() == 0
    question, _answer = History(tmp_path, print).latest().messages  # what was undone is another conversation
    assert [image.width for _, image in question.images] == [224]
    told: list[str] = []
    history = History(tmp_path, told.append)
    assert [found.role for _, found in history.search("left")] == ["assistant"]
    shown = cli("history", "show", history.latest().id, env={"EDGE_LLAMA_HISTORY": str(tmp_path)})
    assert f"> [image of 224 x 112 pixels] {WHICH}" in shown.stdout


def test_a_path_after_a_command_may_be_dropped_too(halves: list[Path]) -> None:
    five = halves[0]
    for written in (str(five), f"'{five}'", str(five).replace(" ", "\\ "), f"file://{urllib.parse.quote(str(five))}"):
        assert unquoted(written) == str(five)
    assert unquoted("'not there yet.png'") == "not there yet.png"
    for other in ("", "~/a b.png", "-", "x" * 5000, "a\0b"):
        assert unquoted(other) == other


def test_paths_are_known_as_terminals_drop_them(halves: list[Path]) -> None:
    five, four = halves
    escaped, url = str(five).replace(" ", "\\ "), f"file://{urllib.parse.quote(str(five))}"
    for written in (f"'{five}'", f'"{five}"', escaped, url):
        assert dropped(written) == ([five], "")
        assert dropped(f"{written} {four}  What are these? ") == ([five, four], "What are these?")
    for text in ("What is in four.png?", "/help", f"/nowhere{four}", str(Path(__file__)), "", f"Look: {four}"):
        assert dropped(text) == ([], text)
