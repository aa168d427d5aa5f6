"""A run as one HTML file that needs nothing else: no server, no network, no other file (needs the extra `html`).

    record ── reduce ──→ numbers that a screen can show ──→ pack ──┐
    findings ─ words ──→ verdict, tables, texts ───────────────────┴─→ page ──→ one file

`reduce` says what it left out, and the page repeats it.
"""

from thermoclaw.report.html.page import render_html, write_html

__all__ = ["render_html", "write_html"]
