"""``fit``: what a model takes where, which recipe is the best that fits, and how many GPUs many users need."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama4
import pytest
import sparse_llama4
from ggufs import rewritten
from refusals import refusal

from edge_llama.backends.registry import open_artifact
from edge_llama.convert import convert, shapes
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.files.gguf import u32
from edge_llama.files.shape import TextShape
from edge_llama.fit import Asked, Fit, Machine, fit, fit_shape
from edge_llama.planning.fit import best
from edge_llama.planning.fleet import FleetAsked, plan_fleet
from edge_llama.planning.machine import KINDS, machine

CONFIGS = Path(__file__).parent.parent / "data" / "configs"
EDGE_LLAMA = str(Path(sys.executable).with_name("edge-llama"))
LAPTOP = Machine("laptop", 12 * 10**9, 16 * 10**9, bandwidth=89.6e9, flops=1.5e12)


def config(folder: Path, **content: Any) -> Path:
    """A config.json alone, in ``folder``."""
    path = folder / "config.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


LLAMA_1B: dict[str, Any] = json.loads((CONFIGS / "llama-3.2-1b.json").read_text("utf-8"))
LLAMA_70B = CONFIGS / "llama-3.3-70b.json"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([EDGE_LLAMA, "fit", *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_a_config_alone_gives_the_shapes_that_conversion_gives(llama3: Path, tmp_path: Path) -> None:
    whole = shapes(llama3, ("q4_k_m", "q8_0", "f16")).texts
    (tmp_path / "config.json").write_bytes((llama3 / "config.json").read_bytes())
    alone = shapes(tmp_path, ("q4_k_m", "q8_0", "f16")).texts
    for quant, shape in whole.items():
        planned = [(t.name, t.shape, t.format.name) for t in alone[quant].tensors]
        assert planned == [(t.name, t.shape, t.format.name) for t in shape.tensors]
        assert alone[quant].weight_bytes == shape.weight_bytes


def test_the_shape_of_a_file_is_that_which_was_planned(converted: Path, smollm2: Path) -> None:
    """A checkpoint's plan and the header of what it became agree in all that memory depends on."""
    planned, there = shapes(smollm2, ("q4_k_m",)).texts["q4_k_m"], open_artifact(converted).shape
    for name in TextShape.__dataclass_fields__:
        if name not in ("name", "tensors"):
            assert getattr(planned, name) == getattr(there, name), name
    assert {(t.name, t.nbytes) for t in planned.tensors} == {(t.name, t.nbytes) for t in there.tensors}


def test_a_billion_weights_take_what_they_are_known_to(tmp_path: Path) -> None:
    """Llama 3.2 1B: its published Q4_K_M file has 807,694,464 bytes, header included; KV is 32 KiB a token in f16."""
    planned = shapes(config(tmp_path, **LLAMA_1B), ("q4_k_m",)).texts["q4_k_m"]
    assert 795_000_000 < planned.weight_bytes < 807_694_464
    assert planned.kv_values_per_token * 2 == 32 << 10
    found = fit_shape(planned, None, LAPTOP, Asked(8192))
    assert found.fits
    assert found.terms["KV cache"] >= 8192 * (32 << 10)
    assert found.remaining == LAPTOP.memory - sum(found.terms.values())


def test_active_experts_are_not_taken_for_all() -> None:
    """Scout has 109 B weights, of which a token meets 17 B: memory counts the former, speed the latter."""
    planned = shapes(CONFIGS / "llama-4-scout.json", ("q4_k_m",)).texts["q4_k_m"]
    weights = sum(math.prod(tensor.shape) for tensor in planned.tensors)
    assert 107e9 < weights < 110e9
    assert 15e9 < planned.active_weights < 18e9
    assert planned.active_bytes < planned.weight_bytes / 5
    found = fit_shape(planned, None, machine("mac-64gb"), Asked(8192))
    assert not found.fits
    assert found.terms["weights"] >= planned.weight_bytes  # AMX's layout takes more


def test_the_vision_tower_counts() -> None:
    towers = shapes(CONFIGS / "llama-4-scout.json", ("q2_k",))
    assert towers.vision is not None
    assert 1.6e9 < towers.vision.weight_bytes < 1.9e9  # 0.86 B weights in f16
    with_it = fit_shape(towers.texts["q2_k"], towers.vision, LAPTOP, Asked(4096))
    without = fit_shape(towers.texts["q2_k"], None, LAPTOP, Asked(4096))
    assert with_it.needed - without.needed > towers.vision.weight_bytes
    assert with_it.image_tokens == 17 * 144


def test_the_best_recipe_is_the_largest_that_fits(tmp_path: Path) -> None:
    planned = shapes(config(tmp_path, **LLAMA_1B), ("q8_0", "q6_k", "q4_k_m", "q2_k")).texts
    small = Machine("small", 1_300_000_000, 2 * 10**9)
    found = {quant: fit_shape(shape, None, small, Asked(1024)) for quant, shape in planned.items()}
    assert [found[quant].fits for quant in ("q8_0", "q2_k")] == [False, True]
    chosen = best(found)
    assert chosen is not None
    assert found[chosen].fits
    assert all(not each.fits or each.terms["weights"] <= found[chosen].terms["weights"] for each in found.values())
    nowhere = {
        quant: fit_shape(shape, None, Machine("none", 10**8, 10**8), Asked()) for quant, shape in planned.items()
    }
    assert best(nowhere) is None
    assert all(each.largest_n_ctx == 0 for each in nowhere.values())


def test_the_largest_context_fits_and_one_step_more_does_not(packaged: Path) -> None:
    tight = Machine("tight", 300_000_000, 10**9)
    found = fit(packaged, tight, Asked(512))
    assert 512 < found.largest_n_ctx < found.shape.n_ctx_train
    assert fit(packaged, tight, Asked(found.largest_n_ctx)).fits
    assert not fit(packaged, tight, Asked(found.largest_n_ctx + 256)).fits


def test_speed_here_is_measured_and_elsewhere_a_bound(packaged: Path) -> None:
    here = fit(packaged, asked=Asked(2048)).speed
    assert here is not None
    assert here.is_measured
    assert here.answer > here.answer_at_end > 0
    bound = fit(packaged, machine("gpu-80gb"), Asked(2048)).speed
    assert bound is not None
    assert not bound.is_measured
    assert bound.answer > here.answer


def test_what_a_device_takes_is_told_apart_from_the_host(packaged: Path) -> None:
    found = fit(packaged, machine("gpu-24gb"), Asked(2048))
    assert "vocabulary" not in found.terms
    assert {"vocabulary", "engine", "embeddings"} <= set(found.host_terms)
    assert found.terms["compute"] >= 512 * found.shape.n_vocab * 4  # a device gives at once what is reserved


@pytest.mark.parametrize("name", KINDS)
def test_each_machine_that_is_offered_can_be_planned_for(name: str, packaged: Path) -> None:
    found = fit(packaged, machine(name))
    assert found.fits
    assert found.machine.memory < found.machine.total


def test_users_choose_how_many_gpus() -> None:
    """Llama 3.3 70B: 4 bits fit one GPU of 80 GB with few users; bf16 needs two for its weights alone."""
    shape = shapes(LLAMA_70B, ("bf16",)).texts["bf16"]
    few = plan_fleet(shape, 0, FleetAsked(users=4), "model")
    assert (few.tensor_parallel, few.pipeline_parallel, few.machines) == (1, 1, 1)
    assert 35e9 < few.weight_bytes < 42e9
    plain = plan_fleet(shape, 0, FleetAsked(users=4, quant="bf16"), "model")
    assert plain.weight_bytes == 2 * sum(math.prod(tensor.shape) for tensor in shape.tensors)
    assert plain.tensor_parallel == 4
    assert plain.command_line.startswith("vllm serve model --dtype bfloat16 --max-model-len 8192 --max-num-seqs 4")
    assert "--tensor-parallel-size 4" in plain.command_line
    many = plan_fleet(shape, 0, FleetAsked(users=128, n_ctx=16384), "model")
    assert many.gpus > 8
    assert f"--nnodes {many.machines}" in many.command_line
    assert many.kv_bytes == 128 * 16384 * 80 * 8 * 2 * 128 * 2


def test_a_size_divides_heads_kv_heads_and_groups(tmp_path: Path) -> None:
    """Three KV heads are shared by one GPU or three, never by two."""
    odd = {"num_attention_heads": 24, "num_key_value_heads": 3, "head_dim": 64}
    odd |= {"hidden_size": 1536, "intermediate_size": 6144}
    shape = shapes(config(tmp_path, **LLAMA_1B | odd), ("bf16",)).texts["bf16"]
    planned = plan_fleet(shape, 0, FleetAsked(gpu_bytes=5 * 10**9, users=16, group=64), "model")
    assert planned.tensor_parallel in (1, 3)
    assert planned.gpus > 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (FleetAsked(users=0), "--users is 0, expected 1 or more"),
        (FleetAsked(gpu_bytes=0), "--gpu is 0"),
        (FleetAsked(quant="q4_k_m"), "--quant q4_k_m: not for a fleet; known: w4a16, bf16, f16"),
        (FleetAsked(n_ctx=10**6), "--n-ctx 1,000,000 is more than the 131,072"),
        (FleetAsked(users=10**6), "do not fit 64 GPUs of 80,000,000,000"),
    ],
    ids=str,
)
def test_a_fleet_that_cannot_be_is_refused_with_the_numbers(asked: FleetAsked, said: str, tmp_path: Path) -> None:
    shape = shapes(config(tmp_path, **LLAMA_1B), ("bf16",)).texts["bf16"]
    with refusal(OptionError, said):
        plan_fleet(shape, 0, asked, "model")


def test_a_group_that_does_not_divide_names_the_nearest_that_does(tmp_path: Path) -> None:
    odd = LLAMA_1B | {"intermediate_size": 8256}  # 64 x 129
    shape = shapes(config(tmp_path, **odd), ("bf16",)).texts["bf16"]
    with refusal(OptionError, r"--group 128: blk\.0\.ffn_down\.weight has rows of 8,256; take 64"):
        plan_fleet(shape, 0, FleetAsked(group=128), "model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40, "intermediate_size": 1 << 40}, "describes [0-9,]+ weights|hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": -5}, "vocab_size"),
        ({"architectures": ["GPT2LMHeadModel"]}, "is not supported"),
        ({"hidden_size": None}, "hidden_size"),
    ],
    ids=str,
)
def test_a_config_of_absurd_sizes_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with refusal(CheckpointError, said):
        shapes(config(tmp_path, **LLAMA_1B | change))


def test_an_unknown_recipe_machine_or_context_is_refused(tmp_path: Path, packaged: Path) -> None:
    with refusal(OptionError, "--quant q9: unknown; known: "):
        shapes(config(tmp_path, **LLAMA_1B), ("q9",))
    with refusal(OptionError, "machine 'moon': unknown; known: here, "):
        machine("moon")
    with refusal(OptionError, "n_ctx is 9,999, the model was trained for 8,192; give a whole number from 2 to 8,192"):
        fit(packaged, LAPTOP, Asked(9999))


def test_zero_bytes_are_a_plan_that_fits_nothing(packaged: Path) -> None:
    found = fit(packaged, Machine("none", 0, 0), Asked(256))
    assert not found.fits
    assert found.remaining == -found.needed
    assert found.largest_n_ctx == 0


def test_the_command_line_tells_people_and_programs(packaged: Path, tmp_path: Path) -> None:
    told = run(str(packaged), "--on", "laptop-16gb", "--n-ctx", "2048")
    assert told.returncode == 0, told.stderr
    for part in ("weights", "KV cache", "together", "fits", "context 2,048 tokens", "answers"):
        assert part in told.stdout
    data = json.loads(run(str(config(tmp_path, **LLAMA_1B)), "--on", "phone-12gb", "--json").stdout)
    assert data["best"] == "q8_0"
    plan = data["plans"]["q4_k_m"]
    assert plan["needed"] == sum(plan["terms"].values())
    assert plan["fits"] is True
    assert 0 < plan["prompt_cache"] <= min(plan["terms"]["KV cache"], plan["remaining"])
    fleet = json.loads(run(str(tmp_path / "config.json"), "--fleet", "--users", "8", "--json").stdout)
    assert fleet["gpus"] == 1
    assert fleet["command"][:2] == ["vllm", "serve"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "cuda"), "device cuda: is not here, and what memory it has is not known"),
        (("--device", "toaster"), "toaster"),
        (("--memory", "much"), "--memory MUCH: expected a size such as 500M or 2G"),
        (("--bandwidth", "-1"), "--bandwidth -1.0: expected gigabytes a second"),
        (("--quant", "q4_k_m"), "is converted already"),
        (("--fleet",), "is converted for this engine"),
    ],
    ids=str,
)
def test_bad_options_are_one_line_and_exit_2(arguments: tuple[str, ...], said: str, packaged: Path) -> None:
    told = run(str(packaged), *arguments)
    assert told.returncode == 2
    assert said in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_a_device_that_is_not_here_is_planned_for_by_its_name(packaged: Path) -> None:
    data = json.loads(run(str(packaged), "--device", "cuda", "--memory", "24G", "--json").stdout)
    (plan,) = data["plans"].values()
    assert plan["device"] == "cuda"
    assert plan["memory"] == 24 * 10**9


def test_an_onnx_model_is_planned_for_with_the_cache_of_its_graph(onnx_folder: Path) -> None:
    (plan,) = json.loads(run(str(onnx_folder), "--json").stdout)["plans"].values()
    assert (plan["engine"], plan["kv_format"]) == ("onnxruntime", "f32")
    assert plan["terms"]["weights"] > 0
    assert plan["speed"] is None
    asked = run(str(onnx_folder), "--kv", "f16")
    assert (asked.returncode, asked.stderr.count("\n")) == (2, 1)
    assert "its graph decides that" in asked.stderr


def test_half_the_file_is_no_model(packaged: Path, tmp_path: Path) -> None:
    """A model that says of itself that it was trained for more is planned for more."""
    long = rewritten(packaged, tmp_path / "long.gguf", fields={"llama.context_length": u32(1 << 20)})
    found: Fit = fit(long, LAPTOP, Asked(1 << 18))
    assert found.terms["KV cache"] > 30 * 3 * 128 * 2 * (1 << 18)


def test_convert_takes_the_recipe_that_fits(llama3: Path, tmp_path: Path) -> None:
    """The suite's small model fits everywhere: it keeps the most bits."""
    done = subprocess.run(
        [EDGE_LLAMA, "convert", str(llama3), str(tmp_path / "fit.gguf"), "--quant", "fit"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "quant: q8_0, the recipe of the most bits that fits" in done.stderr
    assert "warning" not in done.stderr
    assert {tensor.format.name for tensor in open_artifact(tmp_path / "fit.gguf").tensors} == {"q8_0", "f32"}


def test_a_conversion_tells_that_its_output_will_not_fit_here(tmp_path: Path) -> None:
    """Scout's real sizes, on files with holes: no weight is read for a plan."""
    folder = sparse_llama4.text_tower(tmp_path / "scout", **sparse_llama4.SCOUT)
    command = [EDGE_LLAMA, "convert", str(folder), str(tmp_path / "scout.gguf"), "--quant", "q8_0", "--dry-run"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert re.search(r"warning: it needs 11\d,\d+,\d+,\d+ bytes to run with .* free here", told.stderr)


@pytest.mark.parametrize("family", ["llama3", "llama4"])
def test_the_weights_of_a_fleet_are_those_that_are_written(family: str, llama3: Path, tmp_path: Path) -> None:
    source = llama3 if family == "llama3" else llama4.text_only(tmp_path / "llama4", dtype="BF16")
    done = convert(source, tmp_path / "packed", to="safetensors", quant="w4a16", group=32)
    written = sum(file.stat().st_size for file in done.output.glob("*.safetensors"))
    shape = shapes(source, ("bf16",)).texts["bf16"]
    planned = plan_fleet(shape, 0, FleetAsked(users=1, n_ctx=64, group=32), "model").weight_bytes
    headers = 400 * 3 * len(shape.tensors) * max(1, shape.n_expert)
    assert planned - 0.01 * planned < written < planned + headers
