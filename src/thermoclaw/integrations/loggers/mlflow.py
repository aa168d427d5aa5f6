"""MLflow: metrics by step, findings as tags and as a text artifact, the map as an image artifact.

MLflow's client waits for its server, so it is called on a thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.integrations.loggers.background import Background
from thermoclaw.integrations.loggers.words import as_image
from thermoclaw.wording import one_line

FINDINGS = "thermoclaw/findings.txt"
TAG = 2000  # characters of a tag's value; every store takes 5000 bytes
KEPT = 50  # findings at most


class MLflow:
    """Logs into a run, which stays the user's to end.

    Args:
        run: what `mlflow.start_run()` returned, or a run's id; by default the run that is active.
        client: an `MlflowClient`; by default one for the tracking URI that is set.

    Raises:
        ImportError: MLflow is missing.
        ValueError: no run is active.
    """

    def __init__(self, run: Any = None, client: Any = None) -> None:
        try:
            import mlflow
            from mlflow.entities import Metric
        except ImportError as error:
            raise ImportError("MLflow is missing: pip install 'thermoclaw[mlflow]'") from error
        run = mlflow.active_run() if run is None else run
        if run is None:
            raise ValueError("no MLflow run is active: call mlflow.start_run() before, or give a run or its id")
        self._run_id = run if isinstance(run, str) else run.info.run_id
        self._client = mlflow.MlflowClient() if client is None else client
        self._metric = Metric
        self._findings: list[str] = []
        self._thread = Background("thermoclaw-mlflow")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step as one batch."""
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(name, value, now_ms, step) for name, value in values.items()]
        self._thread.submit(partial(self._client.log_batch, self._run_id, metrics=metrics))

    def finding(self, finding: Finding) -> None:
        """Set a tag named after the finding's code, and write all findings so far into one text."""
        tag = "thermoclaw." + re.sub(r"[^\w.-]", "_", one_line(finding.code, 100), flags=re.ASCII)
        told = one_line(finding.message, TAG)
        self._findings = [*self._findings, told][:KEPT]
        self._thread.submit(partial(self._client.set_tag, self._run_id, tag, told))
        self._thread.submit(partial(self._client.log_text, self._run_id, "\n".join(self._findings) + "\n", FINDINGS))

    def picture(self, name: str, step: int, png: bytes) -> None:
        """Log the picture as a PNG."""
        self._thread.submit(partial(self._client.log_image, self._run_id, as_image(png), f"{name}.png"))

    def close(self) -> None:
        """Wait, for a minute at most, until the server has everything."""
        self._thread.close()
