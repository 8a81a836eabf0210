"""How much of a prompt goes into a step follows what steps took."""

import pytest

from edge_llama.runtime.step_budget import StepBudget


def test_where_nobody_is_answered_a_prompt_takes_the_whole_batch() -> None:
    budget = StepBudget()
    budget.measured(0, 512, 1.0)
    assert budget.tokens(0) is None


def test_before_anything_was_measured_it_is_small() -> None:
    budget = StepBudget()
    assert budget.tokens(1) == budget.tokens(8) == 16
    budget.measured(3, 0, 0.05)
    assert budget.tokens(3) == 16, "what a prompt's token costs is not known yet"


def test_a_step_with_a_prompt_takes_twice_as_long_as_one_without() -> None:
    budget = StepBudget()
    budget.measured(0, 500, 0.5)
    budget.measured(4, 0, 0.08)
    assert budget.tokens(4) == 80
    budget.measured(8, 0, 0.12)
    assert budget.tokens(8) == 120
    assert budget.tokens(7) == 120, "as with the nearest number that was measured"
    assert budget.tokens(5) == 80


def test_it_is_twice_as_long_as_steps_with_those_that_wait_will_take() -> None:
    budget = StepBudget()
    budget.measured(0, 500, 0.5)
    budget.measured(1, 0, 0.02)
    budget.measured(8, 0, 0.08)
    assert budget.tokens(1) == 20
    assert budget.tokens(1, waiting=7) == 140
    assert budget.tokens(8, waiting=3) == 80


def test_it_is_never_less_than_what_a_batch_costs_anyhow() -> None:
    budget = StepBudget()
    budget.measured(0, 500, 5.0)
    budget.measured(1, 0, 0.01)
    assert budget.tokens(1) == 16


def test_the_answers_share_of_a_step_is_not_the_prompts() -> None:
    budget = StepBudget()
    budget.measured(4, 0, 0.1)
    budget.measured(4, 100, 0.2)
    assert budget.tokens(4) == pytest.approx(100, abs=1)


def test_a_few_tokens_beside_answers_say_little_and_change_nothing() -> None:
    budget = StepBudget()
    budget.measured(0, 500, 0.5)
    budget.measured(4, 0, 0.08)
    budget.measured(4, 15, 5.0)
    assert budget.tokens(4) == 80


def test_it_follows_a_machine_that_gets_slower_and_forgets_one_bad_step() -> None:
    budget = StepBudget()
    budget.measured(0, 500, 0.5)
    for _ in range(30):
        budget.measured(4, 0, 0.1)
    budget.measured(4, 0, 1.0)
    assert budget.tokens(4) == pytest.approx(280, abs=2)
    for _ in range(30):
        budget.measured(4, 0, 0.1)
    assert budget.tokens(4) == pytest.approx(100, abs=2)
    for _ in range(30):
        budget.measured(0, 500, 1.0)
    assert budget.tokens(4) == pytest.approx(50, abs=2)
