"""The verdict in one glance, and each finding as the page tells it. No dependency."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.evidence import meaning
from thermoclaw.record import Record
from thermoclaw.report.html.quantities import SHOWN, of_finding
from thermoclaw.wording import number, one_line, short_name

LONG = 240
CHIPS = 8  # layers of a finding that are named at once
_WORDS = {"HIGH": "act", "MEDIUM": "look", "LOW": "note"}


@dataclass(frozen=True)
class Verdict:
    """The four answers.

    Attributes:
        state: "bad", "doubtful", "good" or "unknown".
        word: the state for people.
        headline: is it healthy?
        where: in which layers.
        since: from which step.
        action: what to do.
    """

    state: str
    word: str
    headline: str
    where: str
    since: str
    action: str


def verdict(record: Record, findings: Sequence[Finding]) -> Verdict:
    """Is it healthy, where is it not, since when, and what is there to do."""
    if not len(record):
        todo = "Call observer.step() after optimizer.step(), and let the run make some steps."
        return Verdict("unknown", "Nothing measured", "No optimizer step was measured yet", "–", "–", todo)
    urgent = [finding for finding in findings if finding.confidence != "LOW"]
    if not urgent:
        headline = "No rule found anything wrong" if not findings else f"Nothing to act on; {_count(findings, 'note')}"
        looked = f"All {len(record.layers):,} layers" if len(record.layers) > 1 else "Its one layer"
        if record.meta.get("failed"):
            return Verdict(
                "unknown",
                "Incomplete",
                "Measuring stopped early after an internal error",
                looked,
                f"Up to step {record.num_steps:,}",
                "See the log of the run for the error; the steps before it showed nothing wrong.",
            )
        return Verdict("good", "Healthy", headline, looked, f"Steps 1 to {record.num_steps:,}", "Go on.")
    first = urgent[0]
    bad = any(finding.confidence == "HIGH" for finding in urgent)
    more = f", and {_count(urgent[1:], 'more finding')} to act on" if len(urgent) > 1 else ""
    return Verdict(
        "bad" if bad else "doubtful",
        "Failing" if bad else "Doubtful",
        capital(first.title) + more,
        where(record, urgent),
        since(urgent, record),
        brief(first.advice),
    )


def _count(things: Sequence[Any], word: str) -> str:
    return f"{len(things)} {word}{'s' if len(things) != 1 else ''}"


def where(record: Record, findings: Sequence[Finding]) -> str:
    """The layers that findings name, as a person groups them."""
    if any(not finding.layers for finding in findings):
        return "The whole run"
    wanted = {name for finding in findings for name in finding.layers}
    chosen = [layer for layer in record.layers if layer.name in wanted]
    told = one_line(describe_layers(chosen, len(record.layers)), LONG) if chosen else "The whole run"
    return capital(told)


def capital(text: str) -> str:
    """A clause as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def since(findings: Sequence[Finding], record: Record) -> str:
    """The first step of the earliest finding."""
    first = min(findings, key=lambda finding: finding.first_step)
    sure = f", certain by step {first.raised_step:,}" if first.raised_step > first.first_step else ""
    return f"Step {first.first_step:,} of {record.num_steps:,}{sure}"


def brief(text: str) -> str:
    """The first sentences of a text, within a few lines."""
    kept = ""
    for part in re.split(r"(?<=[.!?]) (?=[A-Z])", text):
        if kept and len(kept) + len(part) > LONG:
            break
        kept = f"{kept} {part}".strip()
    return one_line(kept, 2 * LONG)


def told(number_: int, finding: Finding, record: Record) -> dict[str, Any]:
    """A finding for the template."""
    places = {name: place for place, name in enumerate(record.layer_names)}
    layers = [(places.get(name, -1), short_name(name, 60), short_name(name, 400)) for name in finding.layers]
    chosen = [layer for layer in record.layers if layer.name in set(finding.layers)]
    sure = f", certain by step {finding.raised_step:,}" if finding.raised_step != finding.first_step else ""
    return {
        "number": number_,
        "level": finding.confidence.lower(),
        "confidence": finding.confidence,
        "word": _WORDS[finding.confidence],
        "code": finding.code,
        "title": capital(finding.title),
        "seen": finding.seen,
        "meaning": finding.meaning,
        "advice": finding.advice,
        "source": finding.source,
        "refuted_by": finding.refuted_by,
        "explains": ", ".join(finding.explains),
        "since": f"since step {finding.first_step:,}{sure}",
        "step": finding.first_step,
        "where": one_line(describe_layers(chosen, len(record.layers)), LONG) if chosen else "the whole run",
        "layers": layers[:CHIPS],
        "more_layers": [full for _, _, full in layers[CHIPS:]],
        "evidence": [(one_line(name, 80), number(value), meaning(name)) for name, value in finding.evidence.items()],
        "remedy": finding.remedy.describe() if finding.remedy is not None else "",
        "quantity": next(shown.title for shown in SHOWN if shown.name == of_finding(finding.code)),
    }


def loss_words(record: Record) -> str:
    """How the loss went, for those who do not see the picture."""
    steps, loss = record["step"], record.loss
    known = [(int(step), float(value)) for step, value in zip(steps, loss, strict=True) if abs(value) < float("inf")]
    if not known:
        return "No loss was given."
    least, most = min(known, key=lambda pair: pair[1]), max(known, key=lambda pair: pair[1])
    told_ = [f"The loss begins at {number(known[0][1])} and ends at {number(known[-1][1])}"]
    told_.append(f"lowest {number(least[1])} at step {least[0]:,}, highest {number(most[1])} at step {most[0]:,}")
    return "; ".join(told_) + "."
