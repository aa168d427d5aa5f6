"""Weights & Biases: numbers over a step axis of their own, findings as alerts, the map as an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.integrations.loggers.words import LEVELS, as_image, for_chat, in_short
from thermoclaw.integrations.scalars import PREFIX
from thermoclaw.wording import one_line

STEP, FINDINGS = f"{PREFIX}step", f"{PREFIX}findings"
TITLE = 63  # an alert's title has fewer than 64 characters
KEPT = 50  # findings in the summary at most


class WandB:
    """Logs into a run, online or offline, which stays the user's to finish.

    Every call of `run.log` without a step begins a new row in W&B, so a point is a row of its own; charts lie over
    "thermoclaw/step", the optimizer step at which a number was measured.

    Args:
        run: what `wandb.init()` returned; by default the run that is active.

    Raises:
        ImportError: wandb is missing.
        ValueError: no run is active.
    """

    def __init__(self, run: Any = None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Weights & Biases is missing: pip install 'thermoclaw[wandb]'") from error
        self._image = wandb.Image
        run = wandb.run if run is None else run
        if run is None:
            raise ValueError("no W&B run is active: call wandb.init() before, or give its run")
        self._run: Any = run
        self._findings: list[str] = []
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric(f"{PREFIX}*", step_metric=STEP)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log a row."""
        self._run.log({**values, STEP: step})

    def finding(self, finding: Finding) -> None:
        """Send an alert, and keep the finding in the run's summary."""
        title = for_chat(f"step {finding.raised_step}: {finding.title}", TITLE)
        self._run.alert(title, for_chat(in_short(finding)), level=LEVELS[finding.confidence])
        self._findings = [*self._findings, one_line(finding.message)][:KEPT]
        self._run.summary[FINDINGS] = "\n".join(self._findings)

    def picture(self, name: str, step: int, png: bytes) -> None:
        """Log the picture."""
        self._run.log({name: self._image(as_image(png)), STEP: step})

    def close(self) -> None:
        """Nothing to do: the run sends by itself."""
