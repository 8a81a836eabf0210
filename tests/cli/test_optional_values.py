"""Options that may stand without their value."""

from typing import Annotated, Any

import pytest
import typer

from edge_llama.cli.terminal.optional_values import Verb


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--cpu-moe", ("all", None, [])),
        ("--cpu-moe 10 model.gguf", ("10", None, ["model.gguf"])),
        ("--cpu-moe model.gguf hello", ("all", None, ["model.gguf", "hello"])),
        ("--cpu-moe --continue", ("all", "", [])),
        ("model.gguf --continue 17 --cpu-moe=3", ("3", "17", ["model.gguf"])),
        ("-- --cpu-moe", (None, None, ["--cpu-moe"])),
    ],
)
def test_what_follows_is_their_value_or_is_not(line: str, said: tuple[Any, ...]) -> None:
    app, heard = typer.Typer(), list[tuple[Any, ...]]()

    @app.command(cls=Verb)
    def verb(
        words: Annotated[list[str] | None, typer.Argument()] = None,
        cpu_moe: str | None = None,
        continue_: Annotated[str | None, typer.Option("--continue")] = None,
    ) -> None:
        heard.append((cpu_moe, continue_, list(words or [])))

    app(line.split(), standalone_mode=False)
    assert heard == [said]
