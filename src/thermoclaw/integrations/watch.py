"""One optimizer of a framework's run: its observer, the points for its charts, and what it leaves. No framework."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diagnosis.report import Report, diagnose
from thermoclaw.integrations.outputs import write_outputs
from thermoclaw.integrations.points import Points
from thermoclaw.integrations.scalars import PREFIX
from thermoclaw.observer import Observer
from thermoclaw.record import Record
from thermoclaw.state import count, take
from thermoclaw.wording import one_line


class Places:
    """Where a framework's own charts have the optimizer's steps; kept for steps whose points are still to come."""

    def __init__(self, state: Sequence[Sequence[int]] = ()) -> None:
        runs = ((first, last, at) for first, last, at in state)
        self._runs: deque[tuple[int, int, int]] = deque(runs, maxlen=4096)  # first and last step, place of the first

    def state(self) -> list[list[int]]:
        """What the constructor takes."""
        return [list(run) for run in self._runs]

    def note(self, step: int, place: int) -> None:
        """The steps since the last note, up to this one, are at this place."""
        if self._runs:
            first, last, at = self._runs[-1]
            if step == last + 1 and place == at + step - first:
                self._runs[-1] = first, step, at
                return
        self._runs.append((step, step, place))

    def of(self, step: int) -> int:
        """The place of a step; the step itself where nothing was noted. Earlier ones are forgotten."""
        while len(self._runs) > 1 and self._runs[0][1] < step:
            self._runs.popleft()
        if not self._runs:
            return step
        first, _, at = self._runs[0]
        return at + max(step - first, 0)


class Watch:
    """See the module's docstring.

    Args:
        observer: of the optimizer; where it goes on from a checkpoint, after that was told to it.
        name: of the optimizer, where a run has several.
        every: steps between points, 0 for none.
        split: whether points, tables and pictures have the entropy split.
    """

    def __init__(self, observer: Observer, *, name: str = "", every: int, split: bool = True) -> None:
        self.observer, self.name = observer, name
        self.places = Places()
        self.report: Report | None = None
        self._every, self._split = every, split
        self._start(told=observer.global_step)

    def _start(self, *, told: int) -> None:
        """From here on; `told`: the last step that had a point."""
        self._told = told
        self._first_step = self._epoch_step = self.observer.global_step
        self._rows = self.observer.rows_measured()
        points = Points(self.observer, every=self._every, split=self._split, start=told) if self._every else None
        self._points = points

    def has_stepped(self) -> bool:
        """Whether the optimizer has stepped since the last call. Never waits."""
        before, self._rows = self._rows, self.observer.rows_measured()
        return self._rows > before

    def points(self, *, closing: bool = False) -> Iterator[tuple[int, dict[str, float]]]:
        """Place and numbers of each point that is due, each once; `closing` adds the last step. Never waits."""
        for step, values in self._points.due(closing=closing) if self._points is not None else ():
            place, self._told = self.places.of(step), step
            if self.name:
                values = {f"{PREFIX}{self.name}/{key.removeprefix(PREFIX)}": x for key, x in values.items()}
            yield place, values

    # -- going on -----------------------------------------------------------------------------------------------------

    def resume(self, *, step: int) -> None:
        """Number the next step `step + 1`."""
        self.observer.resume(step=step)
        self._start(told=step)

    def state_dict(self) -> dict[str, Any]:
        """What to go on from. Waits for the device."""
        return {"observer": self.observer.state_dict(), "told": self._told, "places": self.places.state()}

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`.

        Raises:
            StateError: it does not fit; the observer is as it was.
        """
        told, places = count(state, "told"), take(state, "places", list)
        self.observer.load_state_dict(take(state, "observer", dict))
        self.places = Places(places)
        self._start(told=told)

    # -- what it leaves -----------------------------------------------------------------------------------------------

    def say(self, finding: Finding) -> str:
        """The line for a finding that was just raised."""
        return one_line(
            f"Thermoclaw, {self.name}, {finding.message}" if self.name else f"Thermoclaw, {finding.message}"
        )

    def close_epoch(self, *, val_loss: float | None = None, val_acc: float | None = None) -> None:
        """Close an epoch in which a step was made. Waits for the device."""
        if self.observer.global_step > self._epoch_step:
            self._epoch_step = self.observer.global_step
            self.observer.epoch_end(val_acc=val_acc, val_loss=val_loss)

    def write(self, record: Record, folder: Path | None, *, plots: bool) -> list[Path]:
        """Diagnose a record and write it with tables and report; nothing if this run has made no step of its own."""
        self.report = diagnose(record)
        if folder is None or record.num_steps <= self._first_step:
            return []
        target = folder / f"thermoclaw_{self.name}" if self.name else folder
        target.mkdir(parents=True, exist_ok=True)
        return write_outputs(record, self.report, target, csv_every=self._every or 1, split=self._split, plots=plots)


def check_early_stop(early_stop: str | None) -> None:
    """Raise ValueError unless it is a confidence at which to stop training, or None."""
    if early_stop not in (None, *CONFIDENCES[:2]):
        raise ValueError(f"early_stop={early_stop!r}: choose one of {', '.join(CONFIDENCES[:2])}, or None")


def stops(finding: Finding, early_stop: str | None) -> bool:
    """Whether a finding is one to stop training at."""
    return early_stop is not None and CONFIDENCES.index(finding.confidence) <= CONFIDENCES.index(early_stop)


def optimizer_names(model: nn.Module, optimizers: Sequence[Any]) -> list[str]:
    """A name for each of several optimizers: the module whose parameters it holds, or its number; "" for a single one.

    Example:
        >>> gan = nn.ModuleDict({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)})
        >>> from torch.optim import SGD
        >>> optimizer_names(gan, [SGD(gan["generator"].parameters()), SGD(gan.parameters())])
        ['generator', 'optimizer_1']
    """
    if len(optimizers) < 2:
        return [""] * len(optimizers)
    path_of = {id(p): name.split(".")[:-1] for name, p in model.named_parameters()}
    found = []
    for i, optimizer in enumerate(optimizers):
        paths = [path_of[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in path_of]
        found.append(".".join(_common(paths)) or f"optimizer_{i}")
    count = Counter(found)
    return [name if count[name] == 1 else f"{name}_{i}" for i, name in enumerate(found)]


def _common(paths: Sequence[list[str]]) -> list[str]:
    """What all paths begin with."""
    if not paths:
        return []
    low, high = min(paths), max(paths)
    length = next((i for i, part in enumerate(low) if i >= len(high) or part != high[i]), len(low))
    return low[:length]
