"""Words on the page. Whatever a layer, a file or a data set is called: no markup, no link, no picture comes of it."""

from __future__ import annotations

import re
from pathlib import Path

from thermoclaw.app.needs import st
from thermoclaw.app.reading import report_of
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.integrations.loggers.words import for_markdown
from thermoclaw.record import Record
from thermoclaw.report.html.words import verdict

_COLORS = {"HIGH": "red", "MEDIUM": "orange", "LOW": "gray"}


def plain(text: object) -> str:
    """Any text as Markdown that shows it as it is, but for addresses, which a space keeps from becoming links."""
    dead = re.sub(r"(?i)\b(www)\.", r"\1 .", str(text).replace("://", ": //"))
    return for_markdown(dead).replace("$", "\\$").replace(":", "\\:")


def tell(text: object, *, kind: str = "info") -> None:
    """A box with a text as it is."""
    {"info": st.info, "error": st.error, "success": st.success, "warning": st.warning}[kind](plain(text))


def percent(share: float | None) -> str:
    """A share.

    >>> percent(0.1234), percent(None)
    ('12.3 %', '–')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def clock(seconds: float | None) -> str:
    """A duration.

    >>> clock(75), clock(4000), clock(None)
    ('1:15', '1:06:40', '–')
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def findings_of(run: Path, record: Record, *, live: bool) -> list[Finding]:
    """The verdict, and each finding with what to try."""
    findings = report_of(run, record, live=live).findings
    answer = verdict(record, findings)
    box = {"bad": st.error, "doubtful": st.warning, "good": st.success}.get(answer.state, st.info)
    where = "" if answer.where in answer.headline else f" {answer.where}."
    lines = [f"**{plain(answer.word)}.** {plain(answer.headline + '.' + where)}"]
    if findings:
        head = "Looked at" if answer.state == "good" else "Since"
        lines += [f"**{head}:** {plain(answer.since)}. **Do:** {plain(answer.action)}"]
    box("\n\n".join(lines))
    for finding in findings:
        title = f":{_COLORS[finding.confidence]}[{finding.confidence}] {plain(finding.title)}"
        with st.expander(f"{title} (since step {finding.first_step})"):
            for head, text in (("Seen", finding.seen), ("Means", finding.meaning), ("Try", finding.advice)):
                st.markdown(f"**{head}.** {plain(text)}")
            if finding.layers:
                st.markdown(f"**Layers.** {plain(', '.join(finding.layers[:20]))}")
            st.markdown(f"**Wrong if** {plain(finding.refuted_by)}" if finding.refuted_by else "")
    return findings
