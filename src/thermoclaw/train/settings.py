"""What a training run is asked to do, from options or a TOML file, checked before anything begins. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thermoclaw.files import atomic_file
from thermoclaw.train.errors import RunError

if sys.version_info >= (3, 11):
    import tomllib
else:
    try:
        import tomli as tomllib
    except ModuleNotFoundError:
        tomllib = None

MODELS = ("small", "resnet18", "resnet50")
OPTIMIZERS = {"sgd": 0.05, "adamw": 1e-3}
"""Optimizers, with the learning rate that each has unless another is asked for."""
SCHEDULES = ("cosine", "none")
EXPORTS = ("state", "program", "onnx")
FILE = "config.json"
FREE = ("device", "epochs", "steps", "keep", "export")  # may be others when a run goes on


@dataclass(frozen=True)
class Settings:
    """A training run.

    Attributes:
        data: `digits`, `cifar10:PATH`, `folder:PATH` or `zip:FILE`.
        model: `small`, `resnet18` or `resnet50`.
        epochs: passes over the training images.
        steps: optimizer steps after which it ends, if that is before the epochs do.
        batch_size: images a step.
        optimizer: `sgd` or `adamw`.
        lr: learning rate; by default the optimizer's own.
        momentum: of sgd.
        weight_decay: of all parameters.
        schedule: `cosine`, from `lr` down to 0, or `none`.
        augment: crop and flip images at random; by default for cifar10 only.
        amp: compute in bfloat16.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: of weights, order and crops.
        image_size: pixels a side, of the images of a folder or a ZIP file.
        keep: checkpoints kept beside the best one.
        checkpoint_every: steps between checkpoints, beside those at the ends of epochs.
        export: forms in which the model is written; by default all that can be.
    """

    data: str = "digits"
    model: str = "small"
    epochs: int = 10
    steps: int | None = None
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    augment: bool | None = None
    amp: bool = False
    device: str = "auto"
    seed: int = 0
    image_size: int = 32
    keep: int = 2
    checkpoint_every: int | None = None
    export: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check()

    @property
    def rate(self) -> float:
        """The learning rate that the schedule begins with."""
        return OPTIMIZERS[self.optimizer] if self.lr is None else self.lr

    @property
    def augmented(self) -> bool:
        """Whether images are cropped and flipped."""
        return self.data.startswith("cifar10:") if self.augment is None else self.augment

    def to_json(self) -> dict[str, Any]:
        """Plain data; `settings_of` reads it back."""
        return dataclasses.asdict(self)

    def _check(self) -> None:
        for name, choices in (("model", MODELS), ("optimizer", tuple(OPTIMIZERS)), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise RunError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name, least in (("epochs", 1), ("batch_size", 2), ("seed", 0), ("image_size", 8), ("keep", 1)):
            _whole(name, getattr(self, name), least)
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        for name, low, high in (("lr", 0.0, 1e6), ("momentum", 0.0, 1.0), ("weight_decay", 0.0, 1e6)):
            _between(name, self.rate if name == "lr" else getattr(self, name), low, high)
        for name, kinds in (("amp", bool), ("augment", (bool, type(None))), ("data", str), ("device", str)):
            if not isinstance(getattr(self, name), kinds):
                raise RunError(f"{name}={getattr(self, name)!r} is not of the kind that is meant")
        if self.image_size > 512:
            raise RunError(f"image_size={self.image_size}: at most 512")
        for name in self.export or ():
            if name not in EXPORTS:
                raise RunError(f"export={name!r}: choose among {', '.join(EXPORTS)}")


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def settings_of(given: dict[str, Any], *, source: str) -> Settings:
    """Settings from plain data, names spelled with - or _.

    Raises:
        RunError: a name is not known, or a value cannot be meant.
    """
    named = {str(key).replace("-", "_"): value for key, value in given.items()}
    strange = sorted(set(named) - set(FIELDS))
    if strange:
        raise RunError(f"{source} has {', '.join(strange)}, which is no setting; there are {', '.join(FIELDS)}")
    if isinstance(named.get("export"), list):
        named["export"] = tuple(named["export"])
    return Settings(**named)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The table [train] of a TOML file, or all of it where there is none.

    Raises:
        RunError: it cannot be read.
    """
    if tomllib is None:
        raise RunError("a TOML file needs Python 3.11 or newer, or the package tomli: give options instead")
    try:
        with open(path, "rb") as handle:
            whole = tomllib.load(handle)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as TOML: {error}") from None
    table = whole.get("train", whole)
    if not isinstance(table, dict):
        raise RunError(f"{path}: train is no table")
    return table


def save_settings(settings: Settings, folder: Path) -> None:
    """Write them into a run's folder."""
    with atomic_file(folder / FILE, "w") as handle:
        json.dump(settings.to_json(), handle, indent=2)
        handle.write("\n")


def load_settings(folder: Path) -> Settings:
    """Those of a run's folder.

    Raises:
        RunError: there are none, or they are damaged.
    """
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return settings_of(dict(data), source=str(folder / FILE))
    except FileNotFoundError:
        raise RunError(f"{folder} has no {FILE}: no run of `thermoclaw train` began there") from None
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder / FILE} cannot be read: {error}") from None


def continued(before: Settings, given: dict[str, Any]) -> Settings:
    """The settings of a run that goes on, with those changed that may be.

    Raises:
        RunError: another one is given with another value; it would be another run.
    """
    wrong = [name for name, value in given.items() if name not in FREE and getattr(before, name) != value]
    if wrong:
        told = ", ".join(f"{name}={getattr(before, name)!r} (now {given[name]!r})" for name in wrong)
        raise RunError(f"the run to go on with has {told}; leave it out, or begin a new run with another --out")
    return dataclasses.replace(before, **{name: value for name, value in given.items() if name in FREE})


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RunError(f"{name}={value!r}: give a whole number of at least {least}")


def _between(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value < high:
        raise RunError(f"{name}={value!r}: give a number from {low:g} to below {high:g}")
