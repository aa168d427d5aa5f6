"""The representation monitor: do the outputs of an encoder become alike?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thermoclaw.diagnosis.checks import checks_of
from thermoclaw.diagnosis.engine import find
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules.representation import CODES
from thermoclaw.observer import Observer, observer_for
from thermoclaw.record import Record
from thermoclaw.sampler import Sampler, check_settings
from thermoclaw.watch import DEFAULT_ROWS, Notes, Watch, add_watch, guarded, rows_of, steps_made


class RepresentationMonitor:
    """Looks at what modules put out, by hooks (`watch`) or by hand (`observe`), and tells when it collapses.

    What it sees goes into the observer's record, so `diagnose(observer)`, `observer.alarms` and a saved record have its
    findings: `representation_collapse`, `dead_features` and `non_finite_features`. It never waits for the device.

    Args:
        model: the model, or an `Observer` alone: `RepresentationMonitor(observer)`.
        optimizer: its optimizer; the observer already attached to it is shared.
        observer: the observer to share.
        every: steps between two checks, after those at steps 1 to 5, 16, 32, 48 and 64.
        rows: examples of a check, from 64 to 1024, gathered over up to 64 steps.
        joint_embedding: the loss pulls embeddings together; see `Observer.watch`.

    Raises:
        TypeError, ValueError: an argument is not what it should be.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(16, 8)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> monitor = thermoclaw.RepresentationMonitor(model, optimizer)
        >>> for _ in range(3):
        ...     z = model(torch.randn(64, 16))
        ...     monitor.observe(z, name="z")
        ...     z.square().mean().backward()
        ...     optimizer.step()
        >>> sorted(monitor.summary()["z"])[:3], monitor.findings
        (['baseline', 'checks', 'last'], [])
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        *,
        observer: Observer | None = None,
        every: int = 100,
        rows: int = DEFAULT_ROWS,
        joint_embedding: bool = False,
    ) -> None:
        check_settings(every, rows, None)
        self.observer = observer_for(model, optimizer, observer, who="RepresentationMonitor")
        self.every, self.rows, self.joint_embedding = every, rows, joint_embedding
        self._by_hand: dict[str, _ByHand] = {}

    def watch(
        self, module: nn.Module, name: str | None = None, *, features: Callable[[Any], Tensor] | None = None
    ) -> Watch:
        """`Observer.watch` with the settings of this monitor."""
        return self.observer.watch(
            module,
            name,
            every=self.every,
            rows=self.rows,
            features=features,
            joint_embedding=self.joint_embedding,
        )

    def observe(self, features: Any, target: Any = None, *, name: str = "features") -> None:
        """Look at a batch of features, and at the targets that they predict; call it in every step, before or after.

        Rows are copied where the tensor is, and only where a check is due; nothing waits. An error is said once.

        Args:
            features: a tensor [N, …], or what holds one; pooled as by `Observer.watch`.
            target: likewise, with the same number of rows; its checks stand under `name.target`.
            name: under which the checks stand.
        """
        if name not in self._by_hand:
            self._by_hand[name] = _ByHand(self, name)
        self._by_hand[name].see(features, target)

    def step(self) -> None:
        """Hand on what is due, as the other detectors' `step` does; for loops without `observer.step`."""
        self.observer.listen(self)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with representations up to now. Waits for the device."""
        return [finding for finding in find(self.record()) if finding.code in CODES]

    def record(self) -> Record:
        """The observer's record."""
        return self.observer.record()

    def get_recommendations(self) -> list[str]:
        """The findings as strings, "[HIGH] …"."""
        return [finding.recommendation for finding in self.findings]

    def summary(self) -> dict[str, Any]:
        """By name: how many checks there are, the last one, and the baseline that it is compared with."""
        return {
            checks.name: {"checks": len(checks), "last": checks.last(), "baseline": checks.baseline_at_end()}
            for checks in checks_of(self.record())
        }

    def plot(self, save_path: Any = None, show: bool | None = None) -> Any:
        """Draw spread, rank, scale and dead features by step (needs the extra `viz`).

        Args:
            save_path: picture to write; no window is opened then.
            show: open a window; by default only when there is no `save_path`.
        """
        from thermoclaw.report.representation import plot_representation

        return plot_representation(self.record(), save_path=save_path, show=show)


class _ByHand:
    """One name's features that are given and not hooked."""

    def __init__(self, monitor: RepresentationMonitor, name: str) -> None:
        attachment = monitor.observer._attachment
        self._sampler = Sampler(every=monitor.every, rows=monitor.rows)
        self._notes = {
            part: Notes(attachment, label, joint_embedding=monitor.joint_embedding)
            for part, label in (("features", name), ("target", f"{name}.target"))
        }
        self._name, self._is_off = name, False
        add_watch(attachment, self)

    def see(self, features: Any, target: Any) -> None:
        attachment = self._notes["features"].attachment()
        if self._is_off or attachment is None or attachment.num_pauses or torch.compiler.is_compiling():
            return
        step = max(steps_made(attachment), 1)
        self._is_off = not guarded(attachment, self._name, lambda: self._take(step, features, target))

    def _take(self, step: int, features: Any, target: Any) -> None:
        if self._sampler.wants(step):
            with torch.no_grad():
                parts = {"features": rows_of(features, None)}
                if target is not None:
                    parts["target"] = rows_of(target, None)
                    if len(parts["target"]) != len(parts["features"]):
                        raise ValueError(
                            f"{len(parts['features'])} rows of features and {len(parts['target'])} of their targets: "
                            "give one target for each"
                        )
                self._sampler.take(parts)
        self._hand_on(step)

    def _hand_on(self, step: int, *, everything: bool = False) -> None:
        for then, found in self._sampler.due(step, everything=everything):
            for part, values in found.items():
                self._notes[part].put(then, values)

    def catch_up(self) -> None:
        """Put every complete check into the record."""
        if not self._is_off:
            self._hand_on(0, everything=True)

    def on_rows(self, closing: bool) -> None:
        """Called by the attachment when rows reached the host, and at its end."""
        if closing and not self._is_off:
            self._sampler.finish()
            self.catch_up()
            self._is_off = True
