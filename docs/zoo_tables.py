"""The tables of the page on detection, from the files that `python -m benchmarks.zoo report --results` wrote.

Held-out programs are judged when there are new ones, development programs more seldom: their figures may lie in a file
of their own, of other rules then.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from markdown_tables import table

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "zoo.json"
IMAGES = ROOT / "docs" / "images"
TITLES = {"held_out": "held-out programs", "dev": "development programs"}
NOT_YET = "not measured yet"

Row = dict[str, Any]


def files() -> list[Row]:
    """What was measured, the newest first; a file that adds no part is left out."""
    paths = (RESULT, RESULT.with_name("zoo_development.json"))
    told = [dict(json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.exists()]
    return [file for i, file in enumerate(told) if any(p in file and all(p not in f for f in told[:i]) for p in TITLES)]


def read() -> Row:
    """What was measured; nothing where nobody has judged yet."""
    merged: Row = {}
    for file in files():
        merged = {**file, **merged}
    return merged


def zoo(name: str) -> Any:
    """A module of the benchmark, which is no installed package."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"benchmarks.zoo.{name}")


def parts() -> list[tuple[str, Row]]:
    """The parts that were judged, held-out programs first, with what tables call them."""
    told = read()
    return [(title, told[part]) for part, title in TITLES.items() if part in told]


def missing() -> list[str]:
    """A line for each part that was not judged."""
    told = read()
    return [f"{title.capitalize()}: {NOT_YET}." for part, title in TITLES.items() if part not in told]


def percent(value: float) -> str:
    """A share as a person writes it."""
    return f"{100 * value:.1f}".removesuffix(".0") + " %"


def share(figure: Row | None) -> str:
    """Share, counts and Wilson's interval of 95 %."""
    if figure is None or not figure["of"]:
        return "–"
    spread = f"{100 * figure['low']:.0f}–{100 * figure['high']:.0f} %"
    return f"{percent(figure['share'])} ({figure['hits']} of {figure['of']}; {spread})"


def counts(figure: Row | None) -> str:
    """Counts alone."""
    return f"{figure['hits']} of {figure['of']}" if figure is not None and figure["of"] else "–"


def steps(value: float | None) -> str:
    """A number of steps."""
    return "–" if value is None else f"{value:g}"


# -- the whole -------------------------------------------------------------------------------------------------------


def vetting() -> str:
    """How many runs count."""
    said = [
        f"{_names(file)}: {told['counted']} of {told['judged']} judged runs count, {told['healthy_share']:.0%} of them "
        f"healthy, on {told['programs']} programs and {len(told['programs_by_failure'])} failures."
        for file in files()
        if (told := file["vetting"])
    ]
    if not said:
        return f"How many runs count is {NOT_YET}."
    return " ".join([*said, "The others are left out with their reason and their losses in the file of results."])


def _names(file: Row) -> str:
    return " and ".join(title for part, title in TITLES.items() if part in file).capitalize()


def headline() -> str:
    """The bars, and what was reached."""
    known = parts()
    rows = []
    for key, title, bar, is_floor in zoo("report").BARS:
        asked = "–" if bar is None else f"{'≥' if is_floor else '≤'} {percent(bar)}"
        cells = [title, asked]
        for _, part in known:
            figure = part["totals"].get(key)  # a file of before lacks some
            cells += [share(figure), met(figure, bar, is_floor) if figure else ""]
        rows.append(tuple(cells))
    for key, title, most in zoo("report").DELAYS:
        cells = [title, "–" if most is None else f"≤ {most:g}"]
        for _, part in known:
            value = part["totals"].get(key)
            cells += [steps(value), yes(value <= most) if None not in (most, value) else ""]
        rows.append(tuple(cells))
    heads = ["figure", "asked"]
    for title, _ in known:
        heads += [title, "met"]
    return "\n".join([*table(tuple(heads), rows), "", *missing()])


def first_looks() -> str:
    """What each set of held-out programs gave when it was judged for the first time."""
    looks, keys = _looks(), ("detected", "named_first", "accused")
    rows = [
        (look["date"], ", ".join(f"`{name}`" for name in look["programs"]), *(share(look["totals"][k]) for k in keys))
        for look in looks
    ]
    if len(looks) > 1:
        num = sum(len(look["programs"]) for look in looks)
        rows.append(("", f"**all {num}**", *(share(_together(look["totals"][k] for look in looks)) for k in keys)))
    heads = ("judged first", "held-out programs", "failing runs detected", "right cause first", "healthy runs accused")
    return "\n".join(table(heads, rows)) if rows else ""


def _looks() -> list[Row]:
    path = RESULT.with_name("zoo_first_looks.json")
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def _together(figures: Iterable[Row]) -> Row:
    """One figure of several sets, each run counted once."""
    told = list(figures)
    hits, of = (sum(figure[key] for figure in told) for key in ("hits", "of"))
    return dict(zoo("score").share(hits, of))


def met(figure: Row, bar: float | None, is_floor: bool) -> str:
    """Whether a figure reaches its bar; empty where there is none."""
    return "" if bar is None or figure["share"] is None else yes((figure["share"] >= bar) == is_floor)


def yes(is_met: bool) -> str:
    """A verdict that cannot be overlooked where it is bad."""
    return "yes" if is_met else "**no**"


def early() -> str:
    """Accusations before the fault, which no rate above counts."""
    lines = [
        f"- {title.capitalize()}: of {part['totals']['failing']} failing runs, "
        f"{part['totals']['accused_before_the_fault']} were accused of something before their fault began."
        for title, part in parts()
    ]
    return "\n".join(lines)


# -- by what, by whom ------------------------------------------------------------------------------------------------


def by_failure() -> str:
    """One line for each failure; the part that counts most in full, the other beside it by its counts."""
    known = parts()
    codes = sorted({code for _, part in known for code in part["by_failure"]})
    rows = [
        (f"`{code}`", *(cell for i, (_, part) in enumerate(known) for cell in _failure(part, code, i)))
        for code in codes
    ]
    heads = ["failure"]
    for i, (title, _) in enumerate(known):
        short = title.split()[0]
        heads += [f"detected, {short}", f"named first, {short}"]
        heads += [f"right when named first, {short}", "delay"] if i == 0 else []
    return "\n".join([*(table(tuple(heads), rows) if rows else []), "", *missing()])


def _failure(part: Row, code: str, place: int) -> list[str]:
    figures = part["by_failure"].get(code, {})
    if place:
        return [f"<small>{counts(figures.get(key))}</small>" for key in ("detected", "named_first")]
    right = part["precision"].get(code, {}).get("right")
    shares = [share(told) for told in (figures.get("detected"), figures.get("named_first"), right)]
    return [*shares, steps(figures.get("median_delay_steps"))]


def recipes() -> str:
    """Healthy recipes of which something urgent was said, and those of which nothing was."""
    lines = []
    for title, part in parts():
        figures = {name: totals["accused"] for name, totals in part["by_variant"].items()}
        accused = [f"`{name}` ({counts(figure)})" for name, figure in figures.items() if figure["hits"]]
        silent = [f"`{name}`" for name, figure in figures.items() if not figure["hits"]]
        told = ", ".join(accused) or "none", ", ".join(silent) or "none"
        lines.append(f"- {title.capitalize()}: accused {told[0]}; never accused {told[1]}.")
    return "\n".join([*lines, *(f"- {line}" for line in missing())])


def calibration() -> str:
    """How often a finding of each confidence is right."""
    rows = [
        (title, name, share(figures["right_cause"]), share(figures["on_failing_runs"]))
        for title, part in parts()
        for name, figures in part["calibration"].items()
    ]
    heads = ("programs", "confidence", "findings that name the cause", "findings on a failing run")
    return "\n".join([*(table(heads, rows) if rows else []), "", *missing()])


def rivals() -> str:
    """Others on the same traces."""
    keys = ("detected", "named_first", "accused", "before_non_finite")
    rows = []
    for title, part in parts():
        for name, figures in {"**this version**": part["totals"], **part["rivals"]}.items():
            delay = steps(figures["median_delay_steps"])
            rows.append((title, name, *(share(figures[key]) for key in keys), delay))
    heads = ("programs", "who", "detected", "cause named first", "healthy accused", "before the loss is NaN", "delay")
    return "\n".join([*(table(heads, rows) if rows else []), "", *missing()])


def pictures() -> str:
    """The confusion matrices that were drawn."""
    lines = [
        f"![What was said of each kind of run, {title}](images/zoo_confusion_{part}.png)"
        for part, title in TITLES.items()
        if part in read() and (IMAGES / f"zoo_confusion_{part}.png").exists()
    ]
    return "\n\n".join(lines) or f"The pictures are drawn with the figures: {NOT_YET}."


def machine() -> str:
    """What it ran on."""
    said = []
    for file in files():
        env, seconds = file["environment"], file["vetting"].get("train_s")
        trained = f" The judged runs took {seconds / 3600:.1f} hours of one core to train." if seconds else ""
        said.append(
            f"{_names(file)}: {env['processor']}, {env['cores']} cores, Python {env['python']}, PyTorch "
            f"{env['torch']}, {env['date']}, revision {env['revision']}.{trained}"
        )
    return "\n\n".join(said)


# -- for other pages -------------------------------------------------------------------------------------------------


def recall(code: str, *, key: str = "named_first") -> str:
    """Counts of a failure's runs, on held-out programs."""
    told = read().get("held_out")
    return NOT_YET if told is None else counts(told["by_failure"].get(code, {}).get(key))


def precision(code: str) -> str:
    """How often a code was right where it came first, on held-out programs."""
    told = read().get("held_out")
    return NOT_YET if told is None else counts(told["precision"].get(code, {}).get("right"))


def measured(code: str) -> list[str]:
    """Bullets for one rule: held-out programs, then, smaller, development programs."""
    told = read()
    ours, theirs = _of_rule(told.get("held_out"), code), _of_rule(told.get("dev"), code)
    small = f"<small>On development programs, where thresholds were set: {theirs}</small>"
    return [f"- **On held-out programs:** {ours}", f"- {small}"]


def _of_rule(part: Mapping[str, Any] | None, code: str) -> str:
    if part is None:
        return NOT_YET
    figures, first = part["by_failure"].get(code), part["precision"].get(code)
    found = "no run that counts fails in this way"
    if figures:
        found = f"detected {share(figures['detected'])}, named first {share(figures['named_first'])}"
    if not first:
        return f"{found}; never named first"
    wrong = ", ".join(f"`{truth}` ({number})" for truth, number in first["instead_of"].items())
    return f"{found}; right when named first {share(first['right'])}" + (f", else said of {wrong}" if wrong else "")


def readme() -> str:
    """README: held-out figures of this version and of others, and which bars were missed."""
    told = read().get("held_out")
    if told is None:
        return f"Detection on held-out programs: {NOT_YET}."
    everyone = {"**this version**": told["totals"], **told["rivals"]}
    keys = ("detected", "named_first", "accused")
    rows = [(name, *(_short(figures[key]) for key in keys)) for name, figures in everyone.items()]
    heads = ("who", "failing runs detected", "cause named first", "healthy runs accused")
    return "\n".join([*table(heads, rows), "", _missed(told["totals"]), *_all_looks()])


def _all_looks() -> list[str]:
    looks = _looks()
    if len(looks) < 2:
        return []
    words = (("detected", "detected"), ("named_first", "rightly named first"), ("accused", "healthy runs accused"))
    said = (f"{word} {_short(_together(look['totals'][key] for look in looks))}" for key, word in words)
    num = sum(len(look["programs"]) for look in looks)
    return ["", f"All {len(looks)} sets of programs, {num} in all, when nobody had seen them: {', '.join(said)}."]


def _short(figure: Row) -> str:
    return f"{percent(figure['share'])} of {figure['of']}" if figure["of"] else "–"


def _missed(figures: Row) -> str:
    bars = zoo("report").BARS
    wide = [(title, bar, is_floor, figures[key]) for key, title, bar, is_floor in bars if bar is not None]
    known = [told for told in wide if told[3]["share"] is not None]
    missed = [
        f"{title}: {percent(figure['share'])}, asked {'≥' if is_floor else '≤'} {percent(bar)}"
        for title, bar, is_floor, figure in known
        if (figure["share"] >= bar) != is_floor
    ]
    told = f"Missed of these: {'; '.join(missed)}." if missed else "None of these was missed."
    unknown = [title for title, _, _, figure in wide if figure["share"] is None]
    told += f" No run to judge by: {'; '.join(unknown)}." if unknown else ""
    return f"{len(wide)} bars on shares of runs were set beforehand, others on delay and confidence. {told}"


PARTS: dict[str, Callable[[], str]] = {
    "detection": readme,
    "zoo-vetting": vetting,
    "zoo-headline": headline,
    "zoo-early": early,
    "zoo-first-looks": first_looks,
    "zoo-by-failure": by_failure,
    "zoo-recipes": recipes,
    "zoo-calibration": calibration,
    "zoo-rivals": rivals,
    "zoo-pictures": pictures,
    "zoo-machine": machine,
}
