"""What watching costs: Thermoclaw and its rivals against one `clip_grad_norm_` and against a plain read of memory.

    python benchmarks/overhead.py                     # everything on the CPU, with the rivals this environment has
    python benchmarks/overhead.py --rival-python A/bin/python --cockpit-python B/bin/python
    python benchmarks/overhead.py --device cuda       # everything on the GPU, in one process
    python benchmarks/overhead.py --device cpu        # the same code at tiny sizes: a dry run of it

A is an environment with `thermoclaw==0.1.6`, B one with `cockpit-for-pytorch`, both with this environment's torch.

On the CPU each arm is a process of its own, and the arms take turns, one step each, so that all see the machine at the
same speed. A step is forward and backward (or fixed gradients, on the scaling axes), one `clip_grad_norm_` that is
timed and changes nothing, one plain read of as many bytes as gradients and parameters have, the optimizer's step, and
everything the instrument does around it. Costs are ratios to the clip and to the read in the same process.

Writes JSON with the environment and draws the charts. Names of the sections: see `cost/document.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from cost import document  # noqa: E402
from cost.machine import environment  # noqa: E402

RESULTS, IMAGES = HERE / "results", HERE.parent / "docs" / "images"


def write(results: dict[str, Any], path: Path) -> None:
    """The document as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def run_cpu(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the sections asked for; the others stay as they are in the file, each with its own environment."""
    plan = document.Plan(
        rival_python=args.rival_python,
        cockpit_python=args.cockpit_python,
        wandb=not args.without_wandb and importlib.util.find_spec("wandb") is not None,
        quick=args.quick or args.tiny,
        tiny=args.tiny,
    )
    names = args.sections or list(document.SECTIONS)
    results: dict[str, Any] = {}
    if set(names) != set(document.SECTIONS) and args.out.exists():
        results = json.loads(args.out.read_text())
    results |= {"environment": environment(), "quick": plan.quick}
    for name in names:
        start = time.perf_counter()
        rows = document.SECTIONS[name](plan)
        results[name] = rows
        results.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
        write(results, args.out)
        for row in rows:
            print(told(row))
    return results


def told(row: dict[str, Any]) -> str:
    """One row in words."""
    head = f"{row['model']:>20} {row['optimizer']:<14} {row['dtype']:<9} {row['threads']} threads  {row['arm']:<20}"
    if "error" in row:
        return f"{head} {row['error'].splitlines()[0][:100]}"
    if "points" in row:
        return f"{head} grew by {row['points'][-1]['rss_bytes']:,} bytes"
    return (
        f"{head} {row['cost_over_clip']:7.2f} × clip (mean {row['mean_cost_over_clip']:.2f})  {row['cost_ms']:.2f} ms"
    )


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="run the GPU part: on the GPU, or dry on the CPU")
    parser.add_argument("--sections", nargs="+", choices=document.SECTIONS, help="measure these alone (CPU)")
    parser.add_argument("--rival-python", help="python of an environment with thermoclaw 0.1.6")
    parser.add_argument("--cockpit-python", help="python of an environment with cockpit-for-pytorch")
    parser.add_argument("--without-wandb", action="store_true", help="leave wandb.watch out")
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps and less; marked in the file")
    parser.add_argument("--tiny", action="store_true", help="tiny models and two steps each: tests this script")
    parser.add_argument("--minutes", type=float, default=8.5, help="GPU part: begin nothing new after so long")
    parser.add_argument("--out", type=Path, help="the JSON file; by default under benchmarks/results")
    parser.add_argument("--images", type=Path, help="folder of the charts; by default docs/images for the default file")
    parser.add_argument("--draw", action="store_true", help="only draw the charts of --out again")
    args = parser.parse_args(argv)
    if args.images is None and args.out is None and args.device != "cpu":
        args.images = IMAGES
    if args.out is None:
        if args.device == "cpu" or args.tiny:
            parser.error("a dry run needs --out: it must not replace measured figures")
        args.out = RESULTS / f"overhead_{args.device or 'cpu'}.json"
    if args.draw:
        results = json.loads(args.out.read_text())
    elif args.device:
        from cost import device

        results = device.measure(args.device, minutes=args.minutes, save=lambda found: write(found, args.out))
    else:
        results = run_cpu(args)
    if args.images is not None:
        draw(results, args.images)
    return 0


def draw(results: dict[str, Any], folder: Path) -> None:
    """Draw the charts, where matplotlib is installed; the file can be drawn elsewhere with --draw."""
    try:
        from cost import charts
    except ImportError as error:
        print(f"no charts: {error}", file=sys.stderr)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in charts.draw(results, folder):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
