"""TensorBoard: scalars, findings as text, the map as an image. Takes any `SummaryWriter`, tensorboardX's too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.integrations.loggers.words import as_image, as_markdown

FINDINGS = "thermoclaw/findings"


class TensorBoard:
    """Writes with a `SummaryWriter`, which stays the user's to close.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`; a folder makes one, which `close` closes.

    Raises:
        ImportError: TensorBoard is missing.
    """

    def __init__(self, writer: Any) -> None:
        self._is_mine = not hasattr(writer, "add_scalar")
        self._writer = _open(writer) if self._is_mine else writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add each number under its own tag."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finding(self, finding: Finding) -> None:
        """Add the finding to the text tab, at the step at which it was raised, and write it out at once."""
        self._writer.add_text(FINDINGS, as_markdown(finding), finding.raised_step)
        self._writer.flush()

    def picture(self, name: str, step: int, png: bytes) -> None:
        """Add the picture to the image tab."""
        self._writer.add_image(name, np.asarray(as_image(png)), step, dataformats="HWC")

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.flush()
        if self._is_mine:
            self._writer.close()


def _open(folder: Any) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is missing: pip install 'thermoclaw[tensorboard]'") from error
    return SummaryWriter(folder)
