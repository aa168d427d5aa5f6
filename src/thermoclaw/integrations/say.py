"""Text on whatever terminal there is."""

from __future__ import annotations

from collections.abc import Callable


def say(text: str, write: Callable[[str], object] = print) -> None:
    """Print a text; what the terminal cannot show becomes a question mark.

    Args:
        text: to print.
        write: prints it, or raises UnicodeError.

    Example:
        >>> say("η = 0.1", lambda text: print(text.encode("ascii").decode()))
        ? = 0.1
    """
    try:
        write(text)
    except UnicodeError:
        write(text.encode("ascii", "replace").decode())
