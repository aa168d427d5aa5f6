"""Findings and reports as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thermoclaw.evidence import meaning
from thermoclaw.markup import badge, box, escape, folded, line, table
from thermoclaw.wording import number, short_name

if TYPE_CHECKING:
    from thermoclaw.diagnosis.finding import Finding

OPEN = 3  # findings told in full; of the others a click tells more
NAMED = 12


def finding_html(finding: Finding, label: int | None = None, *, is_open: bool = True) -> str:
    """A finding: what, since when, where, and what to do."""
    head = f"{f'{label}. ' if label else ''}<b>{escape(finding.title)}</b>"
    since = f"since step {finding.first_step:,}"
    if finding.raised_step != finding.first_step:
        since += f", certain by step {finding.raised_step:,}"
    meta = f"<code>{escape(finding.code)}</code> · {since}{_where(finding)}"
    body = line(escape(finding.seen)) + line(escape(finding.meaning))
    more = [("Wrong if", finding.refuted_by), ("Explains", ", ".join(finding.explains)), ("Source", finding.source)]
    small = "".join(line(f"{word}: {escape(text)}", soft=True) for word, text in more if text)
    told = ((f"{name}: {meaning(name)}" if meaning(name) else name, value) for name, value in finding.evidence.items())
    evidence = table(("evidence", ""), [(text, number(value)) for text, value in told])
    folds = folded("Evidence and source", (evidence if finding.evidence else "") + small)
    parts = [line(f"{badge(finding.confidence, finding.confidence)} {head}"), line(meta, soft=True)]
    parts += [body, _advice(finding), folds] if is_open else [_advice(finding), folded("More", body + folds)]
    return box(*parts, tone=finding.confidence)


def _advice(finding: Finding) -> str:
    remedy = ""
    if finding.remedy is not None:
        remedy = f"<br><code>finding.remedy.apply(optimizer)</code>: {escape(finding.remedy.describe())}"
    return line(f"<b>Try:</b> {escape(finding.advice)}{remedy}")


def _where(finding: Finding) -> str:
    if not finding.layers:
        return " · the whole run"
    shown = ", ".join(escape(short_name(name, 60)) for name in finding.layers[:NAMED])
    more = len(finding.layers) - NAMED
    return f" · {shown}{f' and {more:,} more' if more > 0 else ''}"


def report_html(summary: str, findings: Sequence[Finding], *, healthy: bool) -> str:
    """A verdict and its findings."""
    worst = "GOOD" if healthy else "HIGH" if any(f.confidence == "HIGH" for f in findings) else "MEDIUM"
    word = {"GOOD": "Healthy", "HIGH": "Failing", "MEDIUM": "Doubtful"}[worst]
    nothing = "" if findings else line("Nothing to report: no rule found anything wrong.", soft=True)
    told = [finding_html(f, label, is_open=label <= OPEN) for label, f in enumerate(findings, start=1)]
    return box(line(f"{badge(word, worst)}"), line(escape(summary)), nothing, tone=worst) + "".join(told)
