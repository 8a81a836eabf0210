"""Stop strings are found however the text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from edge_llama.sampling.stop_strings import StopStrings

text = st.text(alphabet="abc", max_size=30)


@given(text=text, stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3), data=st.data())
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    """Everything before the stop string that is complete first is shown, and nothing of it, ever."""
    finder, shown, at = StopStrings(stops), "", 0
    stopped = False
    while at < len(text) and not stopped:
        size = data.draw(st.integers(1, 5))
        part, stopped = finder.feed(text[at : at + size])
        shown += part
        at += size
    if not stopped:
        shown += finder.flush()
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert stopped == bool(found)
    assert shown == (text[: min(found)[1]] if found else text)
