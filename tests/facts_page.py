"""docs/facts.md lists the table of facts: ``PYTHONPATH=.:tests python tests/facts_page.py`` writes it there anew."""

from pathlib import Path

from converters.facts import FACTS, Fact

PAGE = Path(__file__).resolve().parent.parent / "docs" / "facts.md"
BEGIN, END = "<!-- facts: tests/facts_page.py -->\n", "<!-- /facts -->\n"


def listed() -> str:
    """What the page shall list."""
    return "\n".join(_section(fact) for fact in FACTS)


def _section(fact: Fact) -> str:
    topic = f"`{fact.topic}`" if "*" in fact.topic else fact.topic.capitalize()
    places = "".join(f"{number}. `{place}`\n" for number, place in enumerate(fact.places, 1))
    return f"### {topic}\n\n{places}\n{fact.rule}\n\n<sub>{fact.source}</sub>\n"


def on_page() -> str:
    """What the page lists."""
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.replace(BEGIN + on_page() + END, BEGIN + listed() + END), "utf-8")
