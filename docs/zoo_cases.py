"""The parts of the page on detection that say what the zoo does: programs, faults, what counts. From its code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from markdown_tables import plain, table
from zoo_tables import counts, parts, percent, share, zoo

from thermoclaw.diagnosis import looks


def definitions() -> str:
    """What counts, from the code that counts."""
    return "\n".join(f"- **{name}** {text}" for name, text in (*_what_runs(), *_what_counts(), *_what_is_right()))


def _what_runs() -> list[tuple[str, str]]:
    told = zoo("cases")
    cases = told.all_cases()
    healthy = [case for case in cases if case.fault is None]
    failing = [case for case in cases if case.fault is not None]
    recipes, kinds = len({case.variant for case in healthy}), len({case.fault for case in failing})
    programs, held_out = ({c.program for c in cases}, {c.program for c in cases if c.is_held_out})
    text = (
        f"are {len(cases)} cases on {len(programs)} programs, {len(held_out)} of them held out: {len(healthy)} healthy "
        f"ones in {recipes} recipes, {len(failing)} with one of {kinds} faults; {len(told.SEEDS)} seeds."
    )
    return [("Runs", text)]


def _what_counts() -> list[tuple[str, str]]:
    rules = zoo("vet")
    fault = (
        "if the clean training or validation loss ends worse than its control's by "
        f"{percent(rules.HURTS_GAIN)} of what the control gained ({percent(rules.HURTS_TWICE)} where it is also more "
        f"than double) and by more than {rules.HURTS_SPREAD:g} times what the plain program's seeds differ by. Its "
        "control must count as healthy."
    )
    healthy = (
        "if its loss falls as far as its recipe asks for and its validation loss does not end more than "
        f"{percent(rules.RISES)} of its gain above its best."
    )
    return [("A fault counts", fault), ("A healthy run counts", healthy)]


def _what_is_right() -> list[tuple[str, str]]:
    score = zoo("score")
    detected = (
        "is a failing run with a finding of HIGH or MEDIUM confidence that became certain after the fault began; it is "
        "*named* if the first such finding has the fault's code, or one of the synonyms [listed below](#the-faults)."
    )
    in_time = (
        f"is within {percent(score.SHARE)} of the run or {score.STEPS} steps of the first faulty one, whichever is "
        "sooner."
    )
    live = (
        f"means that alarms are replayed as they would have come: the rules look every {looks.CHECK_EARLY} steps "
        f"up to step {looks.EARLY} and every {looks.CHECK_LATER} from then on (a thirty-second of longer runs), and at "
        "once where a loss is suddenly twice the largest of the last eight, each time at the rows up to "
        "there. On an accelerator rows are heard a block later, and sudden losses not at once: told beside it."
    )
    return [
        ("Detected", detected),
        ("Accused", "is a healthy run with any finding of HIGH or MEDIUM confidence, at any step."),
        ("In time", in_time),
        ("Live", live),
    ]


def by_program() -> str:
    """One line for each program: what it is, whether it was held out, its figures."""
    figures = {name: told for _, part in parts() for name, told in part["by_program"].items()}
    cases = Counter((case.program, case.fault is None) for case in zoo("cases").all_cases())
    held_out = {program.name for program in zoo("programs").HELD_OUT}
    programs, rows = zoo("programs").PROGRAMS, []
    for name in sorted(programs, key=lambda name: name not in held_out):
        told = figures.get(name, {})
        where = "held out" if name in held_out else "development"
        made = f"{cases[name, False]} / {cases[name, True]}"
        cells = (share(told.get(key)) for key in ("detected", "named_first", "accused"))
        rows.append((f"`{name}`", plain(programs[name].title), where, made, *cells))
    heads = ("program", "what it is", "part", "failing / healthy runs", "detected", "named first", "healthy accused")
    return "\n".join(table(heads, rows))


def faults() -> str:
    """One line for each fault: what is done, what it must be called, what it was."""
    known = parts()
    rows = []
    for name, fault in sorted(zoo("faults").FAULTS.items(), key=lambda item: (item[1].code, item[0])):
        what = " ".join((fault.change.__doc__ or "").split("\n\n")[0].split())
        cells = [name.replace("_", " "), plain(what), ", ".join(f"`{code}`" for code in fault.codes), fault.begins]
        cells += [counts(part["by_fault"].get(name, {}).get("named_first")) for _, part in known]
        rows.append(tuple(cells))
    heads = ("fault", "what is done", "right answers", "begins", *(f"named first, {title}" for title, _ in known))
    return "\n".join(table(heads, rows))


PARTS: dict[str, Callable[[], str]] = {
    "zoo-definitions": definitions,
    "zoo-by-program": by_program,
    "zoo-faults": faults,
}
