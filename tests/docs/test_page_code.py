"""What is taken for code on a page, and what comments above it say of it."""

from pathlib import Path

import pytest
from page_code import Block, Command, blocks

PAGE = """
<!-- not run: it needs a GPU -->
```console
$ one
```

Words, after which the comment is over.

<!-- not run "edge-llama chat": someone types -->
<!-- output varies: by the machine -->

```console
$ edge-llama chat
> hello
$ edge-llama run M   # really
It
runs.
```

```python
print("```")
```

````text
```python
no code of the page
```
````
"""


@pytest.fixture
def found(tmp_path: Path) -> list[Block]:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    return list(blocks(page))


def test_blocks_are_told_apart(found: list[Block]) -> None:
    assert [block.language for block in found] == ["console", "console", "python", "text"]
    assert found[2].code == 'print("```")\n'
    assert PAGE.splitlines()[found[2].line - 1] == 'print("```")'
    assert "no code of the page" in found[3].code


def test_comments_speak_of_the_block_below_alone(found: list[Block]) -> None:
    first, second, python, _ = found
    assert first.why("not run") == "it needs a GPU"
    assert second.why("not run") is None
    assert second.why("not run", "edge-llama chat") == "someone types"
    assert second.why("not run", "edge-llama run M") is None
    assert second.why("output varies", "edge-llama run M") == "by the machine"
    assert python.comments == ()


def test_commands_have_what_they_print(found: list[Block]) -> None:
    one, two = found[1].commands()
    assert one == Command(13, "edge-llama chat", "> hello")
    assert two == Command(15, "edge-llama run M   # really", "It\nruns.")
