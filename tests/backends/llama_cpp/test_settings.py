"""Settings: given ones count, measured ones are remembered, and the default holds unless another is clearly faster."""

from pathlib import Path

import pytest

import edge_llama
from edge_llama import OptionError
from edge_llama.backends.llama_cpp import tune
from edge_llama.backends.llama_cpp.settings import Figure, Setting, choose, fastest
from edge_llama.backends.registry import open_artifact
from edge_llama.files.artifact import Artifact

OFF, ON, SMALL = Setting(), Setting(flash_attention=True), Setting(n_batch=128)


@pytest.fixture
def artifact(packaged: Path) -> Artifact:
    return open_artifact(packaged)


def figures(*times: tuple[Setting, float, float]) -> list[Figure]:
    return [Figure(setting, 1024, read, write) for setting, read, write in times]


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ([(OFF, 10, 10), (ON, 10, 8)], ON),  # clearly faster at writing
        ([(OFF, 10, 10), (ON, 5, 20)], OFF),  # slower at writing, however fast it reads
        ([(OFF, 10, 10), (ON, 10, 9.5)], OFF),  # too little to tell from noise
        ([(OFF, 10, 10), (SMALL, 5, 10.5)], SMALL),  # writes as fast, reads far faster
        ([(OFF, 10, 10), (SMALL, 9, 10)], OFF),
        ([(OFF, 10, 10), (ON, 10, 8), (SMALL, 1, 10)], ON),
    ],
)
def test_writing_decides_and_a_small_difference_does_not(
    measured: list[tuple[Setting, float, float]], chosen: Setting
) -> None:
    assert fastest(figures(*measured)) == chosen


def test_every_setting_is_measured_on_the_models_own_heads(artifact: Artifact) -> None:
    measured = tune.measure(artifact)
    assert {figure.setting for figure in measured} >= {OFF, ON, SMALL}
    assert all(figure.depth == 1024 and figure.prefill > 0 and figure.decode > 0 for figure in measured)


def test_what_was_measured_is_remembered_for_the_file_wherever_it_lies(
    artifact: Artifact, packaged: Path, empty_cache: Path, tmp_path: Path
) -> None:
    first = choose(artifact, tune=True)
    assert first.reason == "measured"
    assert len(first.figures) >= 3
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(packaged.read_bytes())
    assert choose(open_artifact(copy), tune=True) == first


def test_another_model_is_measured_by_itself(artifact: Artifact, converted: Path, empty_cache: Path) -> None:
    assert choose(artifact, tune=True).figures != choose(open_artifact(converted), tune=True).figures


def test_without_tuning_nothing_outside_the_call_decides(artifact: Artifact, empty_cache: Path) -> None:
    choice = choose(artifact)
    assert (choice.setting, choice.reason, choice.figures) == (OFF, "the default", ())
    assert not empty_cache.exists()


def test_what_is_given_is_taken_and_the_rest_is_measured(artifact: Artifact) -> None:
    choice = choose(artifact, flash_attention=True, tune=True)
    assert choice.setting.flash_attention
    assert choice.reason == "as asked, else measured"
    every = choose(artifact, flash_attention=True, kv_format="f32", n_batch=64, tune=True)
    assert every.setting == Setting(flash_attention=True, kv_format="f32", n_batch=64)
    assert (every.reason, every.figures) == ("as asked", ())


def test_a_quantized_cache_turns_flash_attention_on_which_it_needs(artifact: Artifact) -> None:
    for name in ("q8_0", "q4_0"):
        assert choose(artifact, kv_format=name, tune=True).setting == Setting(flash_attention=True, kv_format=name)
        with pytest.raises(OptionError, match="needs flash attention"):
            choose(artifact, kv_format=name, flash_attention=False)


def test_an_unknown_format_lists_the_known(artifact: Artifact) -> None:
    with pytest.raises(OptionError, match="f16, f32, q8_0, q4_0"):
        choose(artifact, kv_format="q5_0")


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_format": "q8_0"},
        {"kv_format": "q4_0"},
        {"kv_format": "f32"},
        {"flash_attention": True},
        {"n_batch": 32},
        {"tune": True},
    ],
)
def test_a_model_opened_with_any_setting_answers(converted: Path, settings: dict[str, object]) -> None:
    with edge_llama.open(converted, n_ctx=256, **settings) as model:  # type: ignore[arg-type]
        assert "Tokyo" in model.chat().send("What is the capital of Japan?", temperature=0).result().text
        wanted = {name: value for name, value in settings.items() if name != "tune"}
        assert {name: getattr(model.choice.setting, name) for name in wanted} == wanted


@pytest.mark.parametrize("bad", [0, -1, 1 << 20, 1.5, True])
def test_a_batch_that_is_no_size_is_an_error(converted: Path, bad: object) -> None:
    with pytest.raises(OptionError, match="n_batch is"):
        edge_llama.open(converted, n_batch=bad)  # type: ignore[arg-type]
