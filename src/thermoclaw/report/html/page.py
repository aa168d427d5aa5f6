"""Everything on one page: template, scripts and numbers, and no leave to load or to run anything else."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from thermoclaw.diagnosis.engine import find
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.files import atomic_file
from thermoclaw.record import Record
from thermoclaw.report.facts import run_facts
from thermoclaw.report.html import needs, tables, words
from thermoclaw.report.html.data import page_data
from thermoclaw.report.html.glance import glance
from thermoclaw.report.html.pack import Pack, safe_json, squeezed
from thermoclaw.version import __version__
from thermoclaw.wording import one_line

SCRIPTS = ("data.js", "look.js", "axes.js", "run.js", "motion.js", "layers.js", "heat.js", "tables.js", "page.js")
MAX_FINDINGS = 40


def write_html(
    record: Record,
    path: str | os.PathLike[str],
    *,
    findings: Sequence[Finding] | None = None,
    title: str | None = None,
) -> Path:
    """Write a run as one HTML file that needs no network and no other file.

    Args:
        record: the run.
        path: the file, written whole or not at all; ".html" is added where the name has no suffix. Missing folders are
            made.
        findings: what `diagnose` found, ranked; by default the rules are asked.
        title: the page's title.

    Returns:
        The path written.

    Raises:
        TypeError: `record` is no Record.
        OSError: the file cannot be written; the message names it.

    Example:
        >>> import numpy as np, tempfile
        >>> from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
        >>> from thermoclaw.record import LayerInfo, Record
        >>> values, run = np.full((5, 1, len(LAYER_COLUMNS)), 0.1), np.ones((5, len(RUN_COLUMNS)))
        >>> record = Record(np.arange(1, 6), (LayerInfo("fc", "mlp", 10),), values, run)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_html(record, folder + "/run").name
        'run.html'
    """
    target = Path(path)
    if target.is_dir():
        raise OSError(f"cannot write {target}: it is a folder; add a file name, such as report.html")
    if not target.suffix:
        target = target.with_name(target.name + ".html")
    text = render_html(record, findings=findings, title=title)
    with atomic_file(target, "w") as handle:
        handle.write(text)
    return target


def render_html(record: Record, *, findings: Sequence[Finding] | None = None, title: str | None = None) -> str:
    """The page that `write_html` writes, as text."""
    if not isinstance(record, Record):
        raise TypeError(
            f"the HTML report shows a Record, not {type(record).__name__}: pass observer.record() or Record.load(path)"
        )
    findings = list(find(record) if findings is None else findings)
    shown = findings[:MAX_FINDINGS]
    pack = Pack()
    data = page_data(record, shown, pack) if len(record) and record.layers else None
    plotly, plotly_sum = _library()
    script = "\n".join(needs.asset(name) for name in SCRIPTS)
    script = f'(function () {{\n"use strict";\n{script}\n}})();\n'
    return (
        needs.environment()
        .get_template("page.html")
        .render(
            title=one_line(title or "Training run", 200),
            facts=one_line(run_facts(record), 400),
            verdict=words.verdict(record, findings),
            findings=[words.told(number, finding, record) for number, finding in enumerate(shown, start=1)],
            num_left_out=len(findings) - len(shown),
            glance=needs.Markup(glance(record, shown)),
            loss_words=words.loss_words(record),
            data=data,
            data_json=needs.Markup(safe_json(data)),
            numbers=needs.Markup(pack.text()),
            plotly=needs.Markup(plotly) if data else "",
            script=needs.Markup(script),
            style=needs.Markup(needs.asset("page.css")),
            policy=_policy(_checksum(script), plotly_sum),
            num_layers=len(record.layers),
            groups=tables.parameter_groups(record),
            environment=tables.environment(record),
            happenings=tables.happenings(record),
            num_events=len(record.events),
            layers=tables.layer_table(record, findings),
            version=__version__,
        )
    )


@functools.cache
def _library() -> tuple[str, str]:
    """plotly's library, compressed, and the checksum of what it unpacks to."""
    source = needs.get_plotlyjs()
    return squeezed(source.encode()), _checksum(source)


def _checksum(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _policy(*checksums: str) -> str:
    """A Content-Security-Policy that runs these scripts and nothing else, and loads nothing at all."""
    return (
        f"default-src 'none'; script-src {' '.join(checksums)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
