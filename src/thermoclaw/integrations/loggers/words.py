"""Findings as loggers can show them: whatever a layer is called, no control character, no markup, no page of text."""

from __future__ import annotations

import io
import re
from typing import Any

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.wording import LINE, one_line

LEVELS = {"HIGH": "ERROR", "MEDIUM": "WARN", "LOW": "INFO"}  # as W&B and Trackio call them


def for_chat(text: object, limit: int = LINE) -> str:
    """One line in which a chat or an e-mail finds no mention, no tag and no link.

    Example:
        >>> for_chat("<!channel> @here p < 1")
        '< !channel> @ here p < 1'
    """
    line = re.sub(r"<(?=[^\s\d=])", "< ", one_line(text, limit))
    return one_line(re.sub(r"@(?=\w)", "@ ", line).replace("://", ": //"), limit)


def for_markdown(text: object, limit: int = LINE) -> str:
    r"""One line in which Markdown and HTML find nothing to do.

    Example:
        >>> print(for_markdown("![a](http://b) <img>"))
        \!\[a\]\(http://b\) &lt;img&gt;
    """
    line = one_line(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+\-.!])", r"\\\1", line)


def in_short(finding: Finding) -> str:
    """What was seen, what it means and what to try; not yet safe."""
    return f"{finding.seen} {finding.meaning} {finding.advice}"


def as_markdown(finding: Finding) -> str:
    """A finding as a few paragraphs of Markdown."""
    layers = ", ".join(for_markdown(name, 80) for name in finding.layers[:20])
    more = len(finding.layers) - 20
    parts = [
        f"**{for_markdown(finding.confidence)}: {for_markdown(finding.title)}** ({for_markdown(finding.code)})",
        f"Raised at step {finding.raised_step}, first seen at step {finding.first_step}.",
        for_markdown(finding.seen),
        for_markdown(finding.meaning),
        f"To try: {for_markdown(finding.advice)}",
    ]
    if finding.layers:
        parts.append(f"Layers: {layers}" + (f" and {more} more" if more > 0 else ""))
    if finding.refuted_by:
        parts.append(f"It would be wrong if: {for_markdown(finding.refuted_by)}")
    return "\n\n".join(parts)


def as_image(png: bytes) -> Any:
    """A PNG file as a Pillow image. Pillow comes with matplotlib, which drew it."""
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")
