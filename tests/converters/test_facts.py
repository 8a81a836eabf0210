"""The table of facts: the first place that says something decides, and what differs is told."""

from pathlib import Path

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


def _page() -> str:
    """The table as docs/facts.md has it."""
    rows = ["| fact | places, the first decides | rule | by |", "|---|---|---|---|"]
    for fact in FACTS:
        places = "<br>".join(f"{number}. {place}" for number, place in enumerate(fact.places, 1))
        rows.append(f"| {fact.topic} | {places} | {fact.rule} | {fact.source} |")
    return "\n".join(rows).replace("*", r"\*").replace("_", r"\_").replace("<|", r"&lt;\|").replace("|>", r"\|&gt;")


def test_the_page_lists_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "facts.md"
    listed = page.read_text("utf-8").partition("<!-- facts -->\n")[2].partition("\n<!-- /facts -->")[0]
    assert listed == _page()


def test_topics_and_places_are_named_once() -> None:
    assert len({fact.topic for fact in FACTS}) == len(FACTS)
    for fact in FACTS:
        assert len(set(fact.places)) == len(fact.places) > 0, fact.topic
