"""Make the pictures and the figures that README and documentation show.

    python docs/pictures.py                 # runs the demo from three seeds (about ten minutes on two cores)
    python docs/pictures.py --demo FOLDER   # takes them from a demo that was run before with --seeds 3

    python docs/pictures.py --figures       # only puts the measured figures into README.md
    python docs/pictures.py --map           # only draws the map of layers that loggers send

Writes docs/images/*.png, benchmarks/results/demo.json and the tables of README.md. The charts of the cost are drawn by
`benchmarks/overhead.py`; `--draw` makes it draw those of a measured file again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from generate import PARTS  # beside this script
from pages import shrink

FIGURES = re.compile(r"<!-- figures: (\w+) -->")
ROOT = Path(__file__).resolve().parent.parent
PICTURES = {
    "dashboard.png": "dashboard.png",
    "comparison.png": "comparison.png",
    "entropy_split.png": "entropy_split.png",
}


def collect(folder: Path) -> None:
    """Copy the first seed's pictures and the table of all seeds."""
    results = json.loads((folder / "results.json").read_text())
    if not results["passed"]:
        raise SystemExit(f"the demo in {folder} did not show what it claims; nothing was copied")
    first = folder / f"seed-{results['seeds'][0]['seed']}"
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    for source, target in PICTURES.items():
        shrink((first if first.is_dir() else folder) / source, images / target)
    target = ROOT / "benchmarks" / "results" / "demo.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n")


def put_figures() -> None:
    """Write the tables of README.md anew from the measured files."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name in FIGURES.findall(text):
        part = f"<!-- figures: {name} -->"
        start = text.index(part) + len(part)
        text = text[:start] + "\n\n" + PARTS[name]() + "\n\n" + text[text.index("<!-- end -->", start) :]
    readme.write_text(text)


def draw_map() -> None:
    """The map that the example of the loggers sends from a run whose weight decay is too high."""
    with tempfile.TemporaryDirectory() as name:
        example = ROOT / "examples" / "loggers.py"
        subprocess.run([sys.executable, str(example), "--weight-decay", "0.5", "--folder", name], check=True)
        shrink(Path(name) / "digits_r_map.png", ROOT / "docs" / "images" / "layer_map.png")


def main() -> None:
    """Run the demo, or take one that was run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder of a demo that was run before")
    parser.add_argument("--figures", action="store_true", help="only put the measured figures into README.md")
    parser.add_argument("--map", action="store_true", help="only draw the map of layers that loggers send")
    args = parser.parse_args()
    if args.map:
        draw_map()
        return
    if args.figures:
        put_figures()
        return
    if args.demo is not None:
        collect(args.demo)
        put_figures()
        return
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-m", "thermoclaw", "demo", "--seeds", "3", "--out", name], check=True)
        collect(Path(name))
        put_figures()


if __name__ == "__main__":
    main()
