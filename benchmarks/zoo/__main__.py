"""The command line of the zoo.

    python -m benchmarks.zoo list                       what there is
    python -m benchmarks.zoo run --jobs 2               train what is missing, keep traces
    python -m benchmarks.zoo run --rival-python A       and thermoclaw 0.1.6 on the same cases, in its environment
    python -m benchmarks.zoo judge --jobs 2             today's rules on development programs
    python -m benchmarks.zoo judge --held-out           … and on those that no threshold saw
    python -m benchmarks.zoo report                     tables, JSON and pictures of what was judged
    python -m benchmarks.zoo causal --jobs 2            what was told to change something, again, with that change made

`--only PATTERN` takes a shell pattern or a part of a name such as "gpt.plain" or "*.rate_jumps.*"; `--quick` takes a
few cases. Traces and results lie in `--out`, by default in the user's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.zoo.store import Store

PARTS = {"dev": "development programs", "held_out": "held-out programs"}


def parser() -> argparse.ArgumentParser:
    """Of the arguments."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    top.add_argument("action", choices=("list", "run", "judge", "report", "causal"))
    top.add_argument("--only", default="*", help="shell pattern, or a part of a case's name")
    top.add_argument("--quick", action="store_true", help="a few cases only")
    top.add_argument("--jobs", type=int, default=1, help="processes")
    top.add_argument("--out", type=Path, help="folder of traces and results")
    top.add_argument("--again", action="store_true", help="run: also what is there already")
    top.add_argument("--dev", action="store_true", help="development programs only (judge does so by itself)")
    top.add_argument("--held-out", action="store_true", help="held-out programs only")
    top.add_argument("--no-replay", action="store_true", help="judge: skip the live checks")
    top.add_argument("--rival-python", help="run: python of an environment with thermoclaw==0.1.6")
    top.add_argument("--first-looks", type=Path, help="report: keep held-out figures there, if these programs are new")
    top.add_argument("--traces", type=Path, help="causal: folder of the traces, by default that of --out")
    top.add_argument("--results", type=Path, help="report, causal: also write the JSON here")
    top.add_argument(
        "--images", type=Path, help="report, causal: folder of the pictures, by default beside the results"
    )
    return top


def part_of(args: argparse.Namespace, default: str) -> str:
    """Which programs were asked for."""
    if args.dev and args.held_out:
        return "all"
    return "dev" if args.dev else "held_out" if args.held_out else default


def list_cases(args: argparse.Namespace) -> int:
    """Print the cases and what they cover."""
    from benchmarks.zoo.cases import chosen

    cases = chosen(only=args.only, quick=args.quick, part=part_of(args, "all"))
    for case in cases:
        print(case.name)
    healthy = sum(case.fault is None for case in cases)
    codes = Counter(fault.code for case in cases if (fault := case.fault_is()))
    programs = {case.program for case in cases}
    print(f"\n{len(cases)} cases, {healthy} healthy, {len(programs)} programs, {len(codes)} failures", file=sys.stderr)
    return 0


def run(args: argparse.Namespace) -> int:
    """Train what is missing."""
    from benchmarks.zoo.cases import chosen
    from benchmarks.zoo.run import run_all

    store, started = Store(args.out), time.perf_counter()
    cases = chosen(only=args.only, quick=args.quick, part=part_of(args, "all"))
    old = store.stale(case.name for case in cases)
    if old and not args.again:
        print(f"{len(old)} traces were made by other code than today's; --again makes them anew", file=sys.stderr)
    broken = run_all(cases, store, jobs=args.jobs, again=args.again)
    for name, error in broken:
        print(f"{name}: {error}", file=sys.stderr)
    if args.rival_python:
        run_rival(args.rival_python, [case.name for case in cases], store, jobs=args.jobs)
    print(f"{len(cases)} cases, {len(broken)} broke, {time.perf_counter() - started:.0f} s, traces in {store.folder}")
    return 1 if broken else 0


def run_rival(python: str, names: list[str], store: Store, *, jobs: int) -> None:
    """Thermoclaw 0.1.6 on the same cases, as so many processes of its environment."""
    root = Path(__file__).resolve().parents[2]
    missing = [name for name in names if not store.outcome_path(name, "old").exists()]
    command = [python, "-m", "benchmarks.zoo.old_thermoclaw", str(store.folder)]
    parts = [missing[i::jobs] for i in range(jobs) if missing[i::jobs]]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # or it would import this one
    workers = [subprocess.Popen([*command, *part], cwd=root, env=plain, stdout=subprocess.DEVNULL) for part in parts]
    for worker in workers:
        worker.wait()


def judge(args: argparse.Namespace) -> int:
    """Diagnose the traces; held-out ones only when asked."""
    from benchmarks.zoo.cases import chosen
    from benchmarks.zoo.judge import judge_all

    store, part = Store(args.out), part_of(args, "dev")
    cases = [c for c in chosen(only=args.only, quick=args.quick, part=part) if store.has(c.name)]
    verdicts = judge_all([c.name for c in cases], store, jobs=args.jobs, replay=not args.no_replay)
    for name in PARTS:
        told = {c.name: verdicts[c.name] for c in cases if c.is_held_out == (name == "held_out")}
        if told:
            store.write(f"verdicts.{name}.json", told)
    args.dev, args.held_out = part in ("dev", "all"), part in ("held_out", "all")
    return report(args)


def report(args: argparse.Namespace) -> int:
    """Figures, tables and pictures of the parts that were judged."""
    from benchmarks.zoo.first_looks import add_first_look
    from benchmarks.zoo.report import as_text, document

    store, part = Store(args.out), part_of(args, "all")
    verdicts = {}
    for name in PARTS if part == "all" else (part,):
        path = store.folder / f"verdicts.{name}.json"
        verdicts |= json.loads(path.read_text()) if path.exists() else {}
    if not verdicts:
        print(f"nothing was judged yet in {store.folder}: run, then judge", file=sys.stderr)
        return 1
    told = document(known_outcomes(store), verdicts)
    told["environment"] = environment()
    paths = [store.write("zoo.json", told)]
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(told, indent=1) + "\n")
        paths.append(args.results)
    if args.first_looks and add_first_look(args.first_looks, told):
        paths.append(args.first_looks)
    text = as_text(told)
    (store.folder / "zoo.md").write_text(text)
    paths += [store.folder / "zoo.md", *draw(told, args.images or store.folder)]
    print(text)
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0


def causal(args: argparse.Namespace) -> int:
    """Train again with the advice taken; figures, JSON and a picture."""
    from benchmarks.zoo.cases import chosen
    from benchmarks.zoo.causal import KIND, try_all
    from benchmarks.zoo.causal_report import as_text, document
    from benchmarks.zoo.vet import verdict as vetted

    store, started = Store(args.out), time.perf_counter()
    traces = Store(args.traces) if args.traces else store
    outcomes = known_outcomes(traces)
    cases = chosen(only=args.only, quick=args.quick, part=part_of(args, "all"))
    cases = [case for case in cases if case.name in outcomes and vetted(case.name, outcomes)[0]]
    broken = try_all(cases, store, traces, jobs=args.jobs)
    for name, error in broken:
        print(f"{name}: {error}", file=sys.stderr)
    results = {c.name: in_its_part(told) for c in cases if (told := store.outcome(c.name, KIND)) is not None}
    told = {**document(results, outcomes), "environment": environment()}
    paths = [store.write("causal.json", told)]
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(told, indent=1) + "\n")
        paths.append(args.results)
    print(as_text(told))
    paths += draw_causal(told, args.images or store.folder)
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    print(f"{len(cases)} cases, {len(broken)} broke, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 1 if broken else 0


def known_outcomes(store: Store) -> dict[str, dict]:
    """Of all runs that were made."""
    paths = (store.folder / "traces").glob("*.outcome.json")
    return {path.name.removesuffix(".outcome.json"): in_its_part(json.loads(path.read_text())) for path in paths}


def in_its_part(told: dict) -> dict:
    """What was written of a run, with its program held out or not as it is today."""
    from benchmarks.zoo.programs import HELD_OUT

    return {**told, "held_out": told["program"] in {program.name for program in HELD_OUT}}


def draw_causal(told: dict, folder: Path) -> list[Path]:
    """Pairs of losses, where matplotlib is installed and there are some."""
    if not any(told.get(part, {}).get("rows") for part in PARTS):
        return []
    try:
        from benchmarks.zoo.causal_picture import draw_pairs
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return []
    return [draw_pairs(told, folder / "causal.png")]


def draw(told: dict, folder: Path) -> list[Path]:
    """The confusion matrices, where matplotlib is installed."""
    try:
        from benchmarks.zoo.pictures import draw_confusion
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
        return []
    return [
        draw_confusion(told[part]["confusion"], folder / f"zoo_confusion_{part}.png", title=f"What was said, {title}")
        for part, title in PARTS.items()
        if part in told
    ]


def environment() -> dict:
    """Versions and machine, as the cost benchmark tells them."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from cost.machine import environment as told

    return told()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    args = parser().parse_args(arguments)
    actions = {"list": list_cases, "run": run, "judge": judge, "report": report, "causal": causal}
    return actions[args.action](args)


if __name__ == "__main__":
    sys.exit(main())
