"""What an observer shows of a run afterwards: histories, means, files, pictures. All of it is made of its record."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thermoclaw.quantities import R_IE_CAP
from thermoclaw.record import Record
from thermoclaw.snapshot import StepHistory


class Readout:
    """The half of an `Observer` that reads. Everything here waits for the device."""

    _epoch_history: list[dict[str, Any]]

    def record(self) -> Record:
        """Everything measured so far, as a frozen `Record`."""
        raise NotImplementedError

    @property
    def step_history(self) -> StepHistory:
        """The recorded steps as a sequence of dictionaries in the layout of 0.1.6."""
        return StepHistory(self.record())

    history = step_history

    @property
    def epoch_history(self) -> list[dict[str, Any]]:
        """What `epoch_end` returned, in order."""
        return list(self._epoch_history)

    def summary(self) -> dict[str, Any]:
        """Means and last values of the run quantities."""
        record = self.record()
        return {
            "n_steps": record.num_steps,
            "optimizer": record.optimizer,
            "D_mean": mean(record["D"]),
            "D_final": last(record["D"]),
            "rho_mean": mean(record["rho_mean"]),
            "R_median_mean": mean(record["R_median"]),
            "R_median_final": last(record["R_median"]),
            "R_ie_total": _ratio_of_sums(record),
            "E_final": last(record["E_param_dist"]),
            "loss_mean": mean(record.loss),
            "loss_final": last(record.loss),
            "eq_frac_mean": mean(record["eq_frac"]),
            "eq_frac_final": last(record["eq_frac"]),
        }

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a row per step and layer; the columns of thermoclaw 0.1.6 come first."""
        self.record().to_csv(path)

    export_csv = to_csv

    def save(self, path: str | os.PathLike[str]) -> Any:
        """Save the record; returns the path. `diagnose(path)` reads it back."""
        return self.record().save(path)

    def plot_dashboard(self, save_path: str | os.PathLike[str] | None = None, show: bool | None = None) -> Any:
        """Draw the eight-panel dashboard with the findings marked (needs the extra `viz`).

        Args:
            save_path: picture to write; no window is opened then.
            show: open a window; by default only when there is no `save_path`.
        """
        from thermoclaw.diagnosis.engine import find
        from thermoclaw.report.plots import plot_dashboard

        record = self.record()
        return plot_dashboard(record, findings=find(record), save_path=save_path, show=show)

    def report_html(self, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
        """Write the run with its findings as one HTML page that needs no network (needs the extra `html`).

        Args:
            path: the file; ".html" is added where the name has no suffix.
            title: of the page.

        Returns:
            The path written. Waits for the device.
        """
        from thermoclaw.report.html import write_html

        return write_html(self.record(), path, title=title)

    @staticmethod
    def compare(
        observers: Sequence[Readout | Record],
        save_path: str | os.PathLike[str] | None = None,
        show: bool | None = None,
    ) -> Any:
        """Draw several runs side by side (needs the extra `viz`)."""
        from thermoclaw.report.plots import compare

        records = [o.record() if isinstance(o, Readout) else o for o in observers]
        return compare(records, save_path=save_path, show=show).figure


def _finite(values: Any) -> Any:
    return values[np.isfinite(values)]


def mean(values: Any) -> float | None:
    """Mean of the finite values; None where there is none."""
    good = _finite(values)
    return float(good.mean()) if len(good) else None


def last(values: Any) -> float | None:
    """The last value; None where it is not finite."""
    return float(values[-1]) if len(values) and math.isfinite(values[-1]) else None


def _ratio_of_sums(record: Record) -> float | None:
    internal, external = _finite(record["total_d_iS"]).sum(), _finite(record["total_d_eS"]).sum()
    return float(min(internal / external, R_IE_CAP)) if external > 0 else None
