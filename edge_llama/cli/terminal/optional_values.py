"""Options that may stand without their value, which typer has no way to say."""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import typer.core

from edge_llama.files.artifact import BUILT_IN
from edge_llama.planning.options import ALL

LAST = ""
"""What --continue means without an id."""


class OptionalValue(NamedTuple):
    """What an option means alone, and whether the word after it may be its value."""

    alone: str
    may_be_value: Callable[[str], bool]


def _may_be_id(text: str) -> bool:
    return not text.startswith("-") and not set(text) & set("./\\") and text != BUILT_IN


OPTIONAL: Mapping[str, OptionalValue] = {
    "--continue": OptionalValue(LAST, _may_be_id),
    "--cpu-moe": OptionalValue(ALL, lambda text: text == ALL or (text.isascii() and text.isdigit())),
}


class Verb(typer.core.TyperCommand):
    """A verb, where these options may stand without their value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give such an option its value where an option, another argument or nothing follows it."""
        given: list[str] = []
        for arg, following in zip_longest(args, args[1:]):
            given.append(arg)
            option = OPTIONAL.get(arg)
            if option is None or "--" in given:  # after which there are no options
                continue
            if following is None or not option.may_be_value(following):
                given.append(option.alone)
        return super().parse_args(ctx, given)
