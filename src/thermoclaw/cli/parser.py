"""The parser of the command line, whose errors say what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argparse parser that suggests the nearest command or option. Options are not to be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what was wrong and what may have been meant; exits with 2."""
        super().error(message + self._suggestion(message))

    def _suggestion(self, message: str) -> str:
        unknown = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        wrong = re.search(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if unknown:
            found = difflib.get_close_matches(unknown[1], sorted(set(_options(self))), n=1)
        elif wrong:
            found = difflib.get_close_matches(wrong[1], list(commands_of(self)), n=1)
        elif message.endswith("required: COMMAND"):
            return "; thermoclaw --help lists them"
        else:
            return ""
        return f"; did you mean {found[0]}?" if found else ""


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The long options of one command."""
    return {name: action for action in parser._actions for name in action.option_strings if name.startswith("--")}


def positionals_of(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """The arguments of one command that are told by their places."""
    return [a for a in parser._actions if not a.option_strings and not isinstance(a, argparse._SubParsersAction)]


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from options_of(parser)
    for command in commands_of(parser).values():
        yield from _options(command)
