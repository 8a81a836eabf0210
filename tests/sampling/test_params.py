"""Sampling options are checked."""

import math

import numpy as np
import pytest

from edge_llama.errors import OptionError
from edge_llama.sampling.params import SamplingParams


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_p": 1.1},
        {"min_p": -1},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"seed": 2**32 - 1},
        {"max_tokens": 0},
        {"stop": [""]},
        {"stop": "text"},
        {"stop": ["\ud800"]},
        {"stop": 5},
        {"stop": b"text"},
        {"temperature": 10**400},
        {"temperature": -(10**5000)},
        {"temperature": 1e39},
        {"temperature": 1e-39},
        {"temperature": np.float32("nan")},
        {"temperature": np.bool_(True)},
        {"top_k": 10**400},
        {"top_k": np.float64(3)},
        {"seed": np.int64(-1)},
        {"frequency_penalty": math.nan},
        {"presence_penalty": 101},
        {"logprobs": 21},
        {"logprobs": -1},
        {"logprobs": True},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"5": 1.0}},
        {"logit_bias": {5: math.inf}},
        {"logit_bias": {5: "much"}},
        {"logit_bias": [5]},
        {"regex": b"a"},
        {"grammar": "\ud800"},
    ],
)
def test_a_value_outside_its_range_is_an_error_that_names_it(bad: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(bad)).replace("_", ".")):
        SamplingParams(**bad)


def test_two_forms_at_once_are_an_error_that_names_both() -> None:
    with pytest.raises(OptionError, match="json_schema and regex were given"):
        SamplingParams(json_schema={}, regex="a")


def test_biases_are_kept_as_they_were_given() -> None:
    biases = {np.int64(5): np.float32(0.5)}
    params = SamplingParams(logit_bias=biases)
    biases.clear()
    assert params.logit_bias == {5: 0.5}


def test_numbers_of_numpy_are_kept_as_pythons() -> None:
    given = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), top_p=np.int8(1), seed=np.uint32(2**32 - 2))
    assert given == SamplingParams(temperature=0.5, top_k=3, top_p=1.0, seed=2**32 - 2)
    assert [type(value) for value in (given.temperature, given.top_k, given.top_p, given.seed)] == [
        float,
        int,
        float,
        int,
    ]


def test_stop_strings_may_come_from_any_iterable() -> None:
    assert SamplingParams(stop=(text for text in "ab")).stop == ("a", "b")
    assert SamplingParams(stop=["a"]).stop == ("a",)
    assert SamplingParams(stop=None).stop == ()


def test_stop_strings_are_not_too_many() -> None:
    assert len(SamplingParams(stop=map(str, range(64))).stop) == 64
    with pytest.raises(OptionError, match="stop has 65 strings, expected at most 64"):
        SamplingParams(stop=map(str, range(65)))
