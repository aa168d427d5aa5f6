"""The observer: what a user makes once, steps in the loop, and diagnoses at the end."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from thermoclaw import checkpoint
from thermoclaw.arguments import MODES, check_at_least, check_budget, check_choice, check_pair, is_main_process, refuse
from thermoclaw.attach import unwrap
from thermoclaw.attachment import Attachment, attach
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.layers import Unit
from thermoclaw.measure.settings import Settings
from thermoclaw.measure.sketch import SIZES
from thermoclaw.partition import find_partition
from thermoclaw.readout import Readout, last, mean
from thermoclaw.record import Record
from thermoclaw.registry import attached_to
from thermoclaw.runs.keeper import DEFAULT_BYTES, Keeper
from thermoclaw.snapshot import Snapshot, snapshot_dict
from thermoclaw.state import count, take, text, untext
from thermoclaw.testimony import Witness
from thermoclaw.watch import DEFAULT_ROWS, Watch, catch_up, watch_module


class Observer(Readout):
    """Measures every step of an optimizer, layer by layer, without touching the training.

    Args:
        model: the module whose parameters the optimizer trains, or a list of modules.
        optimizer: any `torch.optim.Optimizer`, or a wrapper that keeps one as `.optimizer`.
        mode: "sketch" (kilobytes a layer; exact for layers of at most `sketch_size` elements) or "exact" (nine copies
            of the model, double precision; for research on small models).
        every: keep a row at steps 1, 1 + every, 1 + 2·every and so on. A row needs the three steps before it, so from 5
            up only 4 in `every` steps are measured and the rest costs nothing. `log_every` is its name in 0.1.6.
        budget: share of a step's time that measuring may take, such as 0.01. In the first 64 steps measuring is
            timed; then `every` is chosen once, stands in the record's meta and events, and stays.
        sketch_size: numbers kept per layer and vector, one of 251, 509, 1021, 2039, 4093. The cosine of two vectors has
            a standard deviation of about 1/√sketch_size.
        lag: rows a block; values reach the host, and the rules, in blocks of this many steps.
        history_bytes: host memory for the recorded rows; when it is full the middle of the run is thinned. By default
            0.03 bytes a parameter, within 4 and 16 MiB.
        sigma_window_size: steps in the running median behind `r`.
        run_dir: directory that keeps the record on disk while the run goes on, written on a thread of its own by the
            main process alone; `thermoclaw.load` reads it, also meanwhile. One that holds another run is left alone:
            this one gets a sibling with a number, and `observer.run_dir` says which.
        run_bytes: what it may take on disk; when it is full the middle of the run is thinned. 64 MiB by default.
        strict: raise errors of the measurement instead of logging them once and switching off.
        alpha, calib_start: keywords of thermoclaw 0.1.6 that have no meaning any more; other values than the defaults
            are refused.

    Raises:
        TypeError: an argument is not a model or not an optimizer.
        ValueError: they share no parameter, or a setting is out of range.
        OSError: `run_dir` cannot be made or written.

    Attaching reads each parameter once and may wait for the device; `step` never does.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        >>> observer = thermoclaw.Observer(model, optimizer)
        >>> for _ in range(3):
        ...     loss = model(torch.ones(8, 4)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     snapshot = observer.step(loss=loss)
        ...     optimizer.zero_grad()
        >>> snapshot["step"], [layer["name"] for layer in snapshot["layers"]]
        (3, ['(root)'])
    """

    _keeper: Keeper | None = None

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Any,
        log_every: int | None = None,
        alpha: float | None = None,
        sigma_window_size: int = 200,
        calib_start: int | None = None,
        *,
        mode: str = "sketch",
        every: int = 1,
        budget: float | None = None,
        sketch_size: int = 1021,
        lag: int = 8,
        history_bytes: int | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        run_bytes: int = DEFAULT_BYTES,
        strict: bool = False,
    ) -> None:
        refuse("alpha", alpha, 1.2)
        refuse("calib_start", calib_start, 200)
        every = log_every if log_every is not None else every
        check_choice("mode", mode, MODES)
        check_choice("sketch_size", sketch_size, SIZES)
        check_at_least("every", every, 1)
        if budget is not None:
            check_budget(budget, every=every)
        check_at_least("lag", lag, 1)
        check_at_least("sigma_window_size", sigma_window_size, 4)
        if history_bytes is not None:
            check_at_least("history_bytes", history_bytes, 0)
        check_at_least("run_bytes", run_bytes, 1)
        inner = check_pair(model, optimizer)
        settings = Settings(mode, sketch_size, every, budget, lag, history_bytes, sigma_window_size)
        modules = _as_given(model)
        partition = find_partition(optimizer)
        self._share(attach(modules, inner, settings, partition=partition, strict=strict), modules, optimizer)
        if run_dir is not None and is_main_process():
            self._keeper = Keeper(self._attachment, run_dir, max_bytes=run_bytes)

    @classmethod
    def of(cls, model: Any, optimizer: Any) -> Observer:
        """An observer that shares what is already attached to the optimizer, or a new one."""
        inner, modules = check_pair(model, optimizer), _as_given(model)
        for attachment in attached_to(inner):
            if attachment.model_is(modules):
                observer = cls.__new__(cls)
                observer._share(attachment, modules, optimizer)
                return observer
        return cls(modules, optimizer)

    def _share(self, attachment: Attachment, model: nn.Module | list[nn.Module], optimizer: Any) -> None:
        self._attachment, self.model, self.optimizer = attachment, model, optimizer
        self._seen_rows = attachment.meter.num_calls
        self._epoch_history: list[dict[str, Any]] = []
        self._epoch_start = 0

    def resume(self, record: Record | None = None, *, step: int | None = None, epoch: int | None = None) -> bool:
        """Continue a run from a checkpoint: the next step is number `step + 1`, with the earlier rows before it.

        For where nothing but a record was kept; `load_state_dict` goes on with everything. Smoothed quantities, the
        baseline of `r` and the start of `distance` begin anew at the checkpoint: they are not part of a record.

        Args:
            record: what was recorded up to the checkpoint; None where nothing was kept.
            step: optimizer steps made before; by default the record's last.
            epoch: epochs closed before; by default the record's last.

        Returns:
            Whether the earlier rows were taken; False without a record, or when its layers are not this model's.

        Raises:
            RuntimeError: a step was measured already.

        Example:
            >>> import torch, thermoclaw
            >>> model = torch.nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> observer = thermoclaw.Observer(model, optimizer)
            >>> observer.resume(step=100)
            False
            >>> model(torch.ones(3, 4)).square().mean().backward(); optimizer.step()
            >>> observer.step()["step"]
            101
        """
        if self._attachment.meter.num_calls:
            raise RuntimeError("resume() comes before the first step: call it right after Observer(model, optimizer)")
        if step is None:
            step = record.num_steps if record is not None else 0
        if epoch is None:
            epoch = int(record["epoch"][-1]) if record is not None and len(record) else 0
        self._epoch_start = step
        fits = self._attachment.resume(record, step=step, epoch=epoch)
        if self._keeper is not None:
            self._keeper.go_on()
        return fits

    def state_dict(self) -> dict[str, Any]:
        """Everything that later rows, findings and alarms depend on: put it into the checkpoint of the run.

        Take it after `step`, where the model's and the optimizer's states are taken. Tensors in it are on the host, and
        `torch.load(..., weights_only=True)` reads it. It waits for the device, and changes neither the training nor
        what is recorded later. Of a sharded model it is the same on every process, and fits any number of them.

        Returns:
            Plain data and tensors, with a schema version.

        Example:
            >>> import torch, thermoclaw
            >>> def begin():
            ...     model = torch.nn.Linear(4, 2)
            ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            ...     return model, optimizer, thermoclaw.Observer(model, optimizer)
            >>> model, optimizer, observer = begin()
            >>> model(torch.ones(3, 4)).square().mean().backward(); optimizer.step()
            >>> _ = observer.step()
            >>> state = {"model": model.state_dict(), "observer": observer.state_dict()}
            >>> model, optimizer, observer = begin()  # in another process
            >>> _ = model.load_state_dict(state["model"])
            >>> observer.load_state_dict(state["observer"])
            >>> observer.global_step, len(observer.record())
            (1, 1)
        """
        mine = {
            "seen_rows": self._seen_rows,
            "epoch_start": self._epoch_start,
            "epoch_history": text(self._epoch_history),
        }
        return checkpoint.pack("Observer", {"observer": mine, "attachment": self._attachment.state_dict()})

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` returned, as if the run had never been stopped.

        The model's and the optimizer's states may be loaded before or after it.

        Args:
            state: of an observer with the same settings, of the same model; on whatever device it was.

        Raises:
            RuntimeError: a step was measured already.
            StateError: (a ValueError) it is damaged, from a newer version, or of another model or other settings; the
                message says what differs, and the observer is as it was before.
        """
        if self._attachment.has_stepped:
            raise RuntimeError(
                "load_state_dict() comes before the first step: call it right after Observer(model, optimizer)"
            )
        whole = checkpoint.unpack("Observer", state)
        mine = take(whole, "observer", dict)
        seen_rows, epoch_start = count(mine, "seen_rows"), count(mine, "epoch_start")
        epoch_history = untext(mine, "epoch_history", list)
        self._attachment.load_state_dict(take(whole, "attachment", dict))
        self._seen_rows, self._epoch_start, self._epoch_history = seen_rows, epoch_start, epoch_history
        if self._keeper is not None:
            self._keeper.go_on()

    # -- in the loop ------------------------------------------------------------------------------------------------

    def step(self, loss: float | Tensor | None = None) -> Snapshot:
        """Note the loss of the step just made and hand on what is due.

        Args:
            loss: a number or a one-element tensor; a tensor stays on its device and is not waited for. Losses given
                between two optimizer steps (gradient accumulation) are averaged.

        Returns:
            A read-only mapping with the keys step, epoch, optimizer, D, rho_mean, R_median, E_param_dist, loss and
            layers. Looking into it waits for the device; making it does not.
        """
        attachment = self._attachment
        attachment.poll(self)
        rows = attachment.meter.num_calls
        attachment.give_loss(loss, fresh=rows > self._seen_rows)
        self._seen_rows = rows
        attachment.advance(settled=True)
        me = weakref.ref(self)
        return Snapshot(lambda: _read_row(me(), rows))

    def paused(self) -> AbstractContextManager[None]:
        """Steps made inside `with observer.paused():` are neither measured nor numbered, and losses are not taken.

        For a search for a learning rate, a warm-up, or another use of the same optimizer. The first row afterwards is
        not compared with the one before, so what is made of neighboring steps (Δ, coherence, overshoot, the split) is
        undefined in it; `distance` is from the start of the run still. It holds for everyone who listens to this
        observer's attachment, and of a sharded model must be done on every process.

        Example:
            >>> import torch, thermoclaw
            >>> model = torch.nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> observer = thermoclaw.Observer(model, optimizer)
            >>> with observer.paused():
            ...     model(torch.ones(3, 4)).sum().backward(); optimizer.step()
            >>> observer.global_step
            0
        """
        return self._attachment.paused()

    def watch(
        self,
        module: nn.Module,
        name: str | None = None,
        *,
        every: int = 100,
        rows: int = DEFAULT_ROWS,
        features: Callable[[Any], Tensor] | None = None,
        joint_embedding: bool = False,
    ) -> Watch:
        """Look at what a module puts out, for the rules that tell when representations collapse.

        A forward hook copies rows on their device at a few steps, in training mode only; nothing waits, nothing of the
        graph is kept, and the training stays bitwise the same. Inside of a compiled model the hook does nothing, and
        says so: watch the compiled module itself, or give features to `RepresentationMonitor.observe`.

        Args:
            module: a part of the model, such as `model.encoder`.
            name: under which it stands in findings; by default its name in the model.
            every: steps between two checks, after those at steps 1 to 5, 16, 32, 48 and 64.
            rows: examples of a check, from 64 to 1024, gathered over up to 64 steps.
            features: what the module puts out → a tensor [N, …] with a row for each example; by default the first
                tensor in it. Of [N, T, D] the mean over T is taken, of [N, D, H, W] and more that over space.
            joint_embedding: the loss pulls embeddings together (SimSiam, BYOL, SimCLR, VICReg, JEPA). Only then is a
                loss of rank, or of direction alone, a fault: classifiers come down to as many directions as there are
                classes, and regressions and language models to a common offset, by themselves.

        Returns:
            A handle with `remove()`; the hook goes with it, with `close()`, or with the observer.

        Raises:
            TypeError, ValueError: an argument is not what it should be.

        Example:
            >>> import torch, thermoclaw
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> observer = thermoclaw.Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
            >>> handle = observer.watch(model[1])
            >>> handle.name
            '1'
        """
        return watch_module(
            self._attachment,
            self.model,
            module,
            name,
            every=every,
            rows=rows,
            features=features,
            joint_embedding=joint_embedding,
        )

    def listen(self, listener: object) -> int:
        """For detectors: hand on what is due without a loss; returns the number of the last measured row."""
        self._attachment.poll(listener)
        self._attachment.advance()
        return self._attachment.meter.num_calls

    def hear(self, witness: Witness) -> None:
        """For detectors: what `witness.findings(record)` says joins each `record()`, and so every diagnosis."""
        self._attachment.witnesses.add(witness)

    def rows_measured(self) -> int:
        """For detectors: rows written so far, steps that a loss scaler refused included. Never waits."""
        return self._attachment.meter.num_calls

    def rows_on_host(self) -> int:
        """For detectors: the last step that the fixed lag has let through, whoever reads. Never waits."""
        return self._attachment.meter.due_step

    def record_on_host(self, *, start: int | None = None) -> Record:
        """For detectors: what the fixed lag has let through, from step `start` on. Never waits."""
        return self._attachment.record(start=start, stop=self.rows_on_host() + 1)

    @property
    def has_peers(self) -> bool:
        """For integrations: whether other processes measure with this one, and wait for it at each step."""
        return self._attachment.meter.has_peers

    def units(self) -> tuple[Unit, ...]:
        """For detectors: the parameters that are measured, by layer and group."""
        return self._attachment.meter.layout.units

    def layer_names(self) -> list[str]:
        """For detectors: the names of the layers, in model order."""
        return [layer.name for layer in self._attachment.meter.layout.layers]

    def row_record(self, row: int) -> tuple[Record, int]:
        """For snapshots: a short record with the measured row in it, and its place there. Waits for the device.

        Raises:
            LookupError: nothing was measured yet, or the row was thinned away long ago.
        """
        attachment = self._attachment
        attachment.catch_up()
        step = attachment.meter.intake.step_of(attachment.meter.cadence.readable(row))
        record = attachment.step_record(step)
        if not len(record):
            if not attachment.meter.intake.last_step:
                raise LookupError("no optimizer step was measured yet: call step() after optimizer.step()")
            raise LookupError(f"step {step} was thinned from the history, or not kept (every=): read snapshots earlier")
        return record, 0

    def epoch_end(self, val_acc: float | None = None, val_loss: float | None = None) -> dict[str, Any]:
        """Close an epoch: means over its steps, with validation figures if there are any."""
        record = self.record()
        part = record.rows(start=self._epoch_start + 1)
        self._epoch_start = record.num_steps
        self._attachment.meter.epoch += 1
        entry = {
            "epoch": self._attachment.meter.epoch,
            "optimizer": record.optimizer,
            "mean_D": mean(part["D"]),
            "mean_rho": mean(part["rho_mean"]),
            "mean_R": mean(part["R_median"]),
            "E_param_dist": last(part["E_param_dist"]),
            "val_acc": val_acc,
            "val_loss": val_loss,
        }
        self._epoch_history.append(entry)
        self._attachment.events.append({"kind": "epoch", "step": record.num_steps, **entry})
        return entry

    @property
    def alarms(self) -> list[Finding]:
        """Findings raised so far while training, the oldest first.

        Rules look every 8 to 256 steps, and on the CPU also in the step whose loss is suddenly twice the largest of
        the last eight.
        """
        return list(self._attachment.alarms)

    def on_alarm(self, tell: Callable[[Finding], None]) -> None:
        """Call `tell(finding)` when a finding is raised while training."""
        self._attachment.on_alarm.append(tell)

    def on_rows(self, tell: Callable[[bool], None]) -> None:
        """For loggers: call `tell(False)` when rows reached the host, and `tell(True)` when the observer is closed."""
        self._attachment.on_rows.append(tell)

    def note_event(self, kind: str, **details: Any) -> dict[str, Any]:
        """Put something that happened into the record's events, at the last step made; it goes into saved files.

        A `kind="remedy"` with `finding=` (its code) and `change=` (what `Remedy.apply` returned, as `to_json()`) tells
        the rules that a knob was turned after this step: they then ask for evidence from later ones. `Guard` notes its
        acts in this way.

        Args:
            kind: what happened, in a word.
            **details: plain data that JSON can hold.

        Returns:
            The event. Never waits for the device.

        Example:
            >>> import torch, thermoclaw
            >>> model = torch.nn.Linear(4, 2)
            >>> observer = thermoclaw.Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
            >>> observer.note_event("data", text="second shard begins")
            {'kind': 'data', 'step': 0, 'text': 'second shard begins'}
        """
        event = {"kind": kind, "step": self.global_step, **details}
        self._attachment.events.append(event)
        return event

    # -- afterwards -------------------------------------------------------------------------------------------------

    def record(self) -> Record:
        """Everything measured so far, as a frozen `Record`. Waits for the device."""
        self._attachment.catch_up()
        catch_up(self._attachment)
        return self._attachment.witnesses.heard(self._attachment.record())

    @property
    def global_step(self) -> int:
        """Optimizer steps made so far, those before a `resume` included.

        Never waits: a step that a loss scaler refused inside a fused optimizer is taken off when its row arrives.
        """
        meter = self._attachment.meter
        return meter.intake.start_step + meter.num_calls - meter.intake.num_skipped

    @property
    def run_dir(self) -> Path | None:
        """The directory that this process keeps the run in; None where it keeps none."""
        return self._keeper.folder if self._keeper is not None else None

    def close(self) -> None:
        """Detach from the optimizer; what was recorded stays readable."""
        self._attachment.close()

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        meter = self._attachment.meter
        state = "off after an error" if self._attachment.failed else "closed" if self._attachment.closed else "on"
        name = type(unwrap(self.optimizer)).__name__
        return f"Observer({name}, {len(meter.layout.layers)} layers, {self.global_step} steps, {state})"


def observer_for(first: Any, optimizer: Any, observer: Any, *, who: str) -> Observer:
    """The observer that a detector listens to, from `Who(observer)` or `Who(model, optimizer[, observer])`."""
    for candidate in (first, optimizer, observer):
        if isinstance(candidate, Observer):
            return candidate
    if optimizer is None:
        raise TypeError(
            f"{who} takes an Observer, or a model and its optimizer: {who}(observer) or {who}(model, optimizer)"
        )
    return Observer.of(first, optimizer)


def _as_given(model: nn.Module | Sequence[nn.Module]) -> nn.Module | list[nn.Module]:
    """A module, or a list of them."""
    return model if isinstance(model, nn.Module) else list(model)


def _read_row(observer: Observer | None, row: int) -> dict[str, Any]:
    if observer is None:
        raise RuntimeError("the observer of this snapshot is gone; read a snapshot while its observer lives")
    return snapshot_dict(*observer.row_record(row))
