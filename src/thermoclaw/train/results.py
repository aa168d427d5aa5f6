"""What a run leaves in its folder beside log, record and checkpoints: data, thermodynamics, report, pictures, model."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thermoclaw.detectors.thermometer import Thermometer
from thermoclaw.diagnosis.report import Report
from thermoclaw.files import atomic_file
from thermoclaw.train import export
from thermoclaw.train.images import Split
from thermoclaw.train.loop import Trainer
from thermoclaw.train.settings import EXPORTS

logger = logging.getLogger("thermoclaw")

DATA_FILE, SAMPLES_FILE, THERMO_FILE = "data.json", "samples.npz", "thermodynamics.json"
REPORT_TEXT, REPORT_JSON, REPORT_PAGE = "report.txt", "report.json", "report.html"
DASHBOARD, HEAT_PICTURE = "dashboard.png", "thermometer.png"
SAMPLES, MOST_CLASSES = 4, 50  # of each class, and classes


def write_data(data: Split, folder: Path) -> None:
    """Counts of every class, and a few images of each."""
    counts = {
        name: np.bincount(part.labels, minlength=len(data.classes)).tolist()
        for name, part in (("train", data.train), ("test", data.test))
    }
    whole = {"classes": list(data.classes), "left_out": data.left_out, **counts, "shape": data.train.images.shape[1:]}
    _write_json(folder / DATA_FILE, whole)
    chosen = np.concatenate(
        [np.flatnonzero(data.train.labels == number)[:SAMPLES] for number in range(len(data.classes))[:MOST_CLASSES]]
    )
    with atomic_file(folder / SAMPLES_FILE, "wb") as handle:
        np.savez_compressed(handle, images=data.train.images[chosen], labels=data.train.labels[chosen])


def write_thermodynamics(thermometer: Thermometer, folder: Path) -> dict[str, Any]:
    """The thermometer's summary and the displacement of the sampled weights; returns the summary. Waits."""
    summary, motion = thermometer.summary(), thermometer.diffusion()
    _write_json(folder / THERMO_FILE, {**summary, "lags": motion.lags.tolist(), "msd": motion.msd.tolist()})
    return _plain(summary)


def write_results(trainer: Trainer, report: Report, folder: Path, *, stopped: bool) -> tuple[list[str], list[str]]:
    """Report, pictures and the model.

    Returns:
        Names of what was written, and why something was not. One failure does not keep the others from it.
    """
    jobs: dict[str, Callable[[], object]] = {
        REPORT_TEXT: lambda: report.save(folder / REPORT_TEXT),
        REPORT_JSON: lambda: report.save(folder / REPORT_JSON),
        REPORT_PAGE: lambda: _write_page(trainer, report, folder),
        DASHBOARD: lambda: trainer.observer.plot_dashboard(folder / DASHBOARD),
        HEAT_PICTURE: lambda: trainer.thermometer.plot(folder / HEAT_PICTURE),
    }
    wanted = trainer.settings.export
    for form in wanted or (EXPORTS[:1] if stopped else EXPORTS):
        jobs[f"{export.FOLDER}/{export.NAMES[form]}"] = partial(_export, trainer, folder, form)
    written, missing = [], []
    for name, write in jobs.items():
        try:
            write()
        except ImportError as error:
            missing.append(f"{name}: {error}")
        except (OSError, ValueError) as error:
            missing.append(f"{name}: {error}")
            logger.warning("thermoclaw: %s was not written: %s", name, error)
        except Exception as error:
            missing.append(f"{name}: {type(error).__name__}: {error}")
            logger.exception("thermoclaw: %s was not written because of an internal error", name)
        else:
            written.append(name)
    return written, missing


def _write_page(trainer: Trainer, report: Report, folder: Path) -> None:
    from thermoclaw.report.html import write_html

    title = f"{folder.name}: {trainer.settings.model} on {trainer.settings.data.partition(':')[0]}"
    write_html(trainer.observer.record(), folder / REPORT_PAGE, findings=report.findings, title=title)


def _export(trainer: Trainer, folder: Path, form: str) -> None:
    data = trainer.data
    about = {
        "format": "thermoclaw.model",
        "name": trainer.settings.model,
        "classes": list(data.classes),
        "input": list(data.train.images.shape[1:]),
        "step": trainer.step,
    }
    example = torch.from_numpy(np.resize(data.test.images, (4, *data.test.images.shape[1:]))).float() / 255.0
    export.export_model(trainer.host_model(), example, folder / export.FOLDER, forms=(form,), about=about)


def _write_json(path: Path, data: Any) -> None:
    with atomic_file(path, "w") as handle:
        json.dump(_plain(data), handle, indent=1)
        handle.write("\n")


def _plain(value: Any) -> Any:
    """Data that JSON can hold: None where a number is not finite."""
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
