"""The table of facts: the first place that says something decides, and what differs is told."""

import facts_page

from converters.facts import FACTS, Fact, find, notes, value_at

FACT = Fact("size", ("a.json: x.y", "b.txt", "c.json: x"), "", "")


def test_the_first_place_that_says_something_decides() -> None:
    found = find(FACT, {"a.json": {"x": {"y": None}}, "b.txt": 5, "c.json": {"x": 5}})
    assert found is not None
    assert (found.value, found.place, found.others, found.note) == (5, "b.txt", {}, "")
    assert find(FACT, {"a.json": {"x": 3}, "c.json": {}}) is None


def test_what_differs_is_told_with_its_place() -> None:
    found = find(FACT, {"a.json": {"x": {"y": [1, 2]}}, "b.txt": "t" * 100, "c.json": {"x": [1, 2]}})
    assert notes((FACT, found), (FACT, None)) == {"size": "by a.json: x.y ([1, 2]); b.txt differs and is not used"}


def test_a_place_within_what_is_no_object_says_nothing() -> None:
    for content in (None, 3, "x", [{"x": 1}], {"x": 2}):
        assert value_at({"a.json": content}, "a.json: x.y") is None


def test_the_page_lists_the_table() -> None:
    assert facts_page.on_page() == facts_page.listed(), "tests/facts_page.py writes it anew"


def test_topics_and_places_are_named_once() -> None:
    assert len({fact.topic for fact in FACTS}) == len(FACTS)
    for fact in FACTS:
        assert len(set(fact.places)) == len(fact.places) > 0, fact.topic
