"""Tiles, their pixels and the tokens around them are the reference's, for images of any size."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama4_pictures import metas_plan, metas_tiles, transformers_plan, transformers_text, transformers_tiles
from llama4_reference import processor
from numpy.typing import NDArray
from PIL import Image as Pillow
from refusals import refusal

from edge_llama.errors import ArtifactError, OptionError
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.media.images import Image
from edge_llama.media.llama4_tiles import Grid, count_tokens, grid, resized, tiles, token_plan

SCOUT = VisionSpec(tile=336, max_tiles=16, tokens_per_tile=144, n_embd=5120)
LEVEL = 2 / 255
"""One of the 256 levels, normalised: what torchvision's integer resizing and Pillow's differ by at most."""
BFLOAT16 = 2**-8
"""What transformers' rounding to bfloat16 moves a normalised level by, at most: half a unit in the last place of
level / 255 (2^-9 from 0.5 on; below, that and the subtraction's are less together), doubled by the division by 0.5."""

sides = st.one_of(st.integers(1, 6000), st.integers(1, 18).map(lambda tiles: tiles * 336), st.integers(1, 700))


def spec(side: int, max_tiles: int) -> VisionSpec:
    return VisionSpec(side, max_tiles, tokens_per_tile=(side // 28) ** 2, n_embd=8)


def as_text(plan: tuple[str | int, ...]) -> str:
    return "".join("<|patch|>" * step if isinstance(step, int) else step for step in plan)


@settings(max_examples=400, deadline=None)
@given(width=sides, height=sides, max_tiles=st.integers(1, 16), side=st.sampled_from([336, 336, 84, 28]))
@example(1, 1, 16, 336)
@example(1, 6000, 16, 336)
@example(6000, 1, 16, 336)
@example(6000, 6000, 16, 336)
@example(336, 336, 1, 336)
@example(337, 336, 16, 336)
@example(335, 337, 16, 336)
@example(85, 84, 16, 84)
@example(1344, 1344, 16, 336)
@example(1345, 1344, 16, 336)
@example(5376, 336, 16, 336)
@example(5377, 335, 16, 336)
@example(2351, 1009, 13, 336)
def test_canvas_size_order_and_tokens_are_the_references(width: int, height: int, max_tiles: int, side: int) -> None:
    known = spec(side, max_tiles)
    canvas = grid(width, height, known)
    ours = (canvas.rows, canvas.columns), resized(width, height, canvas, side), canvas.count
    assert ours == transformers_plan(width, height, side, max_tiles)
    plan = token_plan(canvas, known)
    assert as_text(plan) == transformers_text(canvas.rows, canvas.columns, known.tokens_per_tile)
    assert sum(isinstance(step, int) for step in plan) == canvas.count
    assert grid(width, height, spec(side, 16), max_tiles) == canvas


@settings(max_examples=400, deadline=None)
@given(width=sides, height=sides, max_tiles=st.integers(1, 16), side=st.sampled_from([336, 84, 28]))
@example(1541, 3216, 16, 336)
@example(654, 654, 16, 28)
def test_metas_own_code_agrees_but_for_a_pixel(width: int, height: int, max_tiles: int, side: int) -> None:
    """About every canvas. Its size differs by one pixel of one side in 1 of 8,000 (at 336): it computes in float64."""
    canvas = grid(width, height, spec(side, max_tiles))
    theirs, size = metas_plan(width, height, side, max_tiles)
    assert (canvas.rows, canvas.columns) == theirs
    assert sum(abs(a - b) for a, b in zip(size, resized(width, height, canvas, side), strict=True)) <= 1


@pytest.fixture(scope="module")
def pictures() -> list[tuple[NDArray[np.uint8], int, int]]:
    """Pixels, a tile's side, a limit: noise and soft shapes, of odd sizes, enlarged and shrunk, one of them large."""
    rng = np.random.default_rng(6)
    sizes = [(1, 1), (1, 300), (300, 1), (28, 28), (85, 84), (29, 57), (600, 200), (43, 419), (500, 499), (640, 480)]
    sizes += [tuple(int(side) for side in np.exp(rng.uniform(0, np.log(700), 2))) for _ in range(20)]
    found = []
    for index, (width, height) in enumerate(sizes):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        soft = Pillow.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).resize((width, height))
        side = (28, 56, 84)[index % 3]
        found += [(noise, side, 1 + index % 16), (np.asarray(soft), side, 16 - index % 16)]
    return [*found, (rng.integers(0, 256, (1500, 2100, 3), dtype=np.uint8), 336, 16)]


def test_pixels_are_those_of_metas_own_code(pictures: list[tuple[NDArray[np.uint8], int, int]]) -> None:
    """Which resizes by Pillow as well: where it resizes to the same size, no level differs."""
    compared = 0
    for pixels, side, most in pictures:
        height, width, _ = pixels.shape
        known = spec(side, most)
        if metas_plan(width, height, side, most)[1] == resized(width, height, grid(width, height, known), side):
            ours = tiles(Image.open(pixels), known)
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, metas_tiles(Pillow.fromarray(pixels), side, most), rtol=0, atol=1e-6)
            compared += 1
    assert compared > 0.9 * len(pictures)


def test_pixels_are_within_a_level_of_transformers(pictures: list[tuple[NDArray[np.uint8], int, int]]) -> None:
    differing = []
    for pixels, side, most in pictures:
        ours, picture = tiles(Image.open(pixels), spec(side, most)), Pillow.fromarray(pixels)
        exact = transformers_tiles(picture, side, most, in_float32=True)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=LEVEL + 1e-6)
        np.testing.assert_allclose(ours, transformers_tiles(picture, side, most), rtol=0, atol=LEVEL + BFLOAT16)
        differing.append((np.abs(ours - exact) > 1e-6).mean())
    assert np.median(differing) < 0.01  # noise in slim images has most: up to 0.2
    assert np.mean(differing) < 0.03


def test_rounding_to_bfloat16_explains_what_is_left() -> None:
    """All 256 levels, in an image that is neither resized nor padded: within the bound, which is as tight as can be."""
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    ours = tiles(Image.open(levels), VisionSpec(16, 1, 1, 1))
    difference = np.abs(ours - transformers_tiles(Pillow.fromarray(levels), 16, 1)).max()
    assert 0.9 * BFLOAT16 < difference <= BFLOAT16
    np.testing.assert_array_equal(ours[0, 0].ravel(), (np.arange(256) / 255 * 2 - 1).astype(np.float32))


def test_each_tile_is_its_part_of_the_picture() -> None:
    """Rows before columns, the padding black, the whole picture last: told by colours, without a reference."""
    colours = np.arange(6, dtype=np.uint8) * 40 + 10
    pixels = np.kron(colours.reshape(2, 3, 1), np.ones((28, 28, 3), np.uint8))[:50]
    found = tiles(Image.open(pixels), spec(28, 16))
    assert found.shape == (7, 3, 28, 28)
    np.testing.assert_allclose(found[:6, :, :22].reshape(6, -1).T[0], colours / 255 * 2 - 1, atol=1e-6)
    assert np.ptp(found[:3].reshape(3, -1), axis=1).max() == 0
    assert (found[3:6, :, 22:] == -1).all()
    assert (np.diff(found[6, 0, 14]) >= -1e-6).all()


def test_a_smaller_limit_is_the_references_with_that_limit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    counts = []
    for most in range(1, 17):
        ours = tiles(Image.open(pixels), spec(28, 16), most)
        np.testing.assert_allclose(
            ours, transformers_tiles(Pillow.fromarray(pixels), 28, most, in_float32=True), rtol=0, atol=LEVEL + 1e-6
        )
        counts.append(len(ours))
    assert counts[0] == 1
    assert len(set(counts)) > 4


def test_mean_and_std_are_each_channels() -> None:
    known = VisionSpec(8, 1, 1, 1, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = np.full((8, 8, 3), (255, 51, 0), np.uint8)
    expected = [(1 - 0.1) / 0.4, (0.2 - 0.2) / 0.5, (0 - 0.3) / 0.6]
    np.testing.assert_allclose(tiles(Image.open(pixels), known)[0, :, 3, 3], expected, atol=1e-6)


def test_the_processors_prompt_is_the_plans(llama4_scout: Path) -> None:
    """Image, prompt and tiles through all of transformers' processor, with the tokenizer of a checkpoint."""
    reference = processor(llama4_scout)
    known = VisionSpec(56, 16, 4, 8)
    for width, height in [(56, 56), (30, 200), (300, 170), (1, 1)]:
        picture = Pillow.new("RGB", (width, height), "red")
        found = reference(text=["<|image|>"], images=[[picture]], add_special_tokens=False, return_tensors="pt")
        plan = token_plan(grid(width, height, known), known)
        ids = [reference.tokenizer.convert_tokens_to_ids(token) for token in re.findall(r"<\|.*?\|>", as_text(plan))]
        assert found["input_ids"][0].tolist() == ids
        assert count_tokens(plan) == len(ids)


def test_known_counts() -> None:
    """One tile is 147 tokens; the most that an image takes is 16 tiles and the global one."""
    assert count_tokens(token_plan(Grid(1, 1), SCOUT)) == 147
    assert token_plan(Grid(1, 1), SCOUT) == ("<|image_start|>", "<|image|>", 144, "<|image_end|>")
    assert count_tokens(token_plan(Grid(4, 4), SCOUT)) == 17 * 144 + 4 * 4 + 3


@pytest.mark.parametrize("most", [0, -1, 17])
def test_a_limit_that_the_model_does_not_know_is_refused(most: int) -> None:
    with refusal(OptionError, "max_tiles", most, 16):
        grid(10, 10, SCOUT, most)


def test_a_spec_survives_json() -> None:
    known = VisionSpec(28, 4, 1, 64, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert VisionSpec.from_json(known.to_json()) == known
    assert known.to_json()["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile", 0),
        ("tile", 1.5),
        ("tile", True),
        ("max_tiles", 257),
        ("n_embd", "64"),
        ("tokens_per_tile", -1),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", None),
        ("std", [0, 1, 1]),
        ("unknown", 1),
    ],
)
def test_a_damaged_spec_is_refused_by_its_field(name: str, value: object) -> None:
    with refusal(ArtifactError, name if name != "unknown" else "fields"):
        VisionSpec.from_json(SCOUT.to_json() | {name: value})
    with refusal(ArtifactError, "fields"):
        VisionSpec.from_json({key: value for key, value in SCOUT.to_json().items() if key != "tile"})
