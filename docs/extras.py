"""The table of extras, from pyproject.toml."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from markdown_tables import table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
USES = {
    "viz": "pictures",
    "hf": "the callback for the Hugging Face `Trainer`",
    "tensorboard": "[logging](loggers.md) to TensorBoard",
    "wandb": "logging to Weights & Biases",
    "mlflow": "logging to MLflow",
    "trackio": "logging to Trackio",
    "lightning": "the [callback](lightning.md) for Lightning",
    "accelerate": "loops with [Accelerate](accelerate.md)",
    "html": "reports as HTML pages",
    "terminal": "a live view [in the terminal](terminal.md)",
    "parquet": "export to Parquet",
    "onnx": "export of a trained model to ONNX",
    "app": "the web app",
    "train": "models and data sets for `thermoclaw train`",
    "all": "what most people want",
    "docs": "building these pages",
    "dev": "working on the library: all of its checks",
}


def extras() -> str:
    """One row for every extra of the project."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    rows = [
        (f"`{name}`", brings(needs), USES.get(name, "")) for name, needs in project["optional-dependencies"].items()
    ]
    return "\n".join(table(("extra", "brings", "for"), rows))


def brings(needs: list[str]) -> str:
    """Names of packages without their versions, the project's own extras by name."""
    names = []
    for need in needs:
        own = re.match(r"thermoclaw\[(.*)\]", need)
        names += [f"the extras {own[1].replace(',', ', ')}"] if own else [re.split(r"[<>=\[; ]", need)[0]]
    return ", ".join(names[:5]) + (" and more" if len(names) > 5 else "")
