"""The table of facts: the first place that says something decides, and what differs is told."""

from converters.facts import Fact, find, notes, value_at

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
