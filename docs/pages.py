"""Run the code of pages, and write into them what it printed and drew.

    python docs/pages.py docs/quickstart.md docs/tutorials/*.md

A page's Python blocks run in order, in one namespace and an empty folder. What a page shows of them is made here:

- a text block under `<!-- output -->` is what the Python block before it printed;
- a picture `images/pages/NAME.png` is the file NAME.png that a block left in the folder.

`<!-- not run: reason -->` above a block leaves it out. The tests run all pages and compare what they print with what
the pages show: words must be the same, numbers may differ by a quarter, as processors and versions of Python move them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images" / "pages"

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>output|not run)(?:: (?P<reason>[^\n]*?))? -->\n+)?^```(?P<kind>\w+)[^\n]*\n(?P<body>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)
PICTURE = re.compile(r"!\[[^\]]*\]\((?:\.\./)?(?:docs/)?images/pages/([\w.-]+)\)")
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
NEAR = 0.25


class Block(NamedTuple):
    """A fenced block: its kind, first line in the page, text, mark above it, and where its text lies in the page."""

    kind: str
    line: int
    body: str
    mark: str
    reason: str
    span: tuple[int, int]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(
            found["kind"],
            text.count("\n", 0, found.start("body")),
            found["body"],
            found["mark"] or "",
            (found["reason"] or "").strip(),
            found.span("body"),
        )
        for found in BLOCK.finditer(text)
    ]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With another working folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """With torch's number of threads as it was, afterwards."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(text: str, folder: Path, *, name: str = "page") -> list[tuple[Block, str]]:
    """Run a page's Python blocks in a folder; each shown output with what was really printed."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed, shown = "", []
    with inside(folder), threads_kept():
        for block in blocks(text):
            if block.kind == "python" and block.mark != "not run":
                code = compile("\n" * block.line + block.body, name, "exec")
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(code, namespace)
                printed = out.getvalue()
            elif block.mark == "output":
                shown.append((block, printed))
    return shown


def numbers(text: str) -> list[float]:
    """The numbers in a text."""
    return [float(found.replace(",", "").replace("−", "-")) for found in NUMBER.findall(text)]


def same(shown: str, printed: str) -> bool:
    """Whether two texts have the same words and nearly the same numbers; lines may break elsewhere."""
    if NUMBER.sub("#", " ".join(shown.split())) != NUMBER.sub("#", " ".join(printed.split())):
        return False
    return all(
        abs(a - b) <= NEAR * max(abs(a), abs(b)) + 0.02 for a, b in zip(numbers(shown), numbers(printed), strict=True)
    )


def pictures(text: str) -> list[str]:
    """Names of the pictures that a page's own blocks draw."""
    return PICTURE.findall(text)


def shrink(source: Path, target: Path, *, num_colors: int = 128) -> None:
    """Copy a picture, the house's and its most frequent colors as they are, others as the nearest; a third in size."""
    import numpy as np
    from PIL import Image

    from thermoclaw.report import palette as house

    with Image.open(source) as picture:
        layer = picture.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    colors, place, count = np.unique(np.asarray(flat).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    own = {text for text in _texts(vars(house).values()) if re.fullmatch("#[0-9A-F]{6}", text)}
    kept = [list(bytes.fromhex(text[1:])) for text in sorted(own)]
    palette = np.array([*kept, *colors[np.argsort(-count, kind="stable")[: num_colors - len(kept)]]], dtype=np.uint8)
    distance = ((colors[:, None].astype(int) - palette.astype(int)) ** 2).sum(axis=2)
    small = Image.fromarray(distance.argmin(axis=1)[place.reshape(-1)].reshape(flat.size[::-1]).astype(np.uint8))
    small.putpalette(palette.tobytes())
    target.parent.mkdir(parents=True, exist_ok=True)
    small.save(target, optimize=True)


def _texts(values: Iterable[object]) -> Iterator[str]:
    """All texts in nested containers."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (tuple, dict)):
            yield from _texts(value.values() if isinstance(value, dict) else value)


def refresh(path: Path) -> None:
    """Write a page's outputs and pictures anew."""
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        for block, printed in reversed(run(text, Path(name), name=str(path))):
            text = text[: block.span[0]] + printed.rstrip() + "\n" + text[block.span[1] :]
        for picture in pictures(text):
            shrink(Path(name) / picture, IMAGES / picture)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Refresh the pages named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    os.environ.setdefault("MPLBACKEND", "Agg")
    for path in parser.parse_args().pages:
        refresh(path)
        print(f"{path}: up to date")


if __name__ == "__main__":
    main()
