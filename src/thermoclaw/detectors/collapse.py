"""The collapse detector: is weight decay eroding the weights? An edge-triggered view of one rule."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from thermoclaw import checkpoint
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules.decay import weight_decay_too_high
from thermoclaw.observer import Observer, observer_for
from thermoclaw.record import Record
from thermoclaw.snapshot import Snapshot
from thermoclaw.state import count, take, text, untext


class CollapseDetector:
    """Tells, once per confirmed collapse, that decay takes more from the weights than gradients put back.

    `is_collapsing` is true at one step per collapse: the step at which it is confirmed. From there the detector watches
    from a new baseline, so an intervention such as `weight_decay *= 0.1` acts once, and again only if the weights go
    on eroding under the new setting.

    Args:
        model: the model, or an `Observer` alone: `CollapseDetector(observer)`.
        optimizer: its optimizer; the observer already attached to it is shared.
        window: steps at either end of the run over which `summary` compares the gradient-to-parameter ratio.
        observer: the observer to share.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=5.0)
        >>> detector = thermoclaw.CollapseDetector(model, optimizer)
        >>> cuts = 0
        >>> for _ in range(60):
        ...     optimizer.zero_grad()
        ...     (model(torch.randn(4, 16)).square().mean() * 1e-3).backward()
        ...     optimizer.step()
        ...     _ = detector.step()
        ...     if detector.is_collapsing:
        ...         cuts += 1
        ...         for group in optimizer.param_groups:
        ...             group["weight_decay"] *= 0.001
        >>> cuts
        1
    """

    def __init__(
        self, model: Any, optimizer: Any = None, window: int = 50, *, observer: Observer | None = None
    ) -> None:
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window={window!r}: give a whole number of at least 1")
        self.observer = observer_for(model, optimizer, observer, who="CollapseDetector")
        self.window = window
        self.findings: list[Finding] = []
        self._baseline = self.observer.global_step
        self._checked = 0
        self._fired_at = -1

    def step(self) -> Snapshot:
        """Look at what is due; returns {layer: ‖g‖/‖θ‖}, read when it is looked at. Never waits."""
        row = self.observer.listen(self)
        self._fired_at = -1  # a second look at the same optimizer step is not a second collapse
        self._check()
        me = weakref.ref(self)
        return Snapshot(lambda: _ratios(me(), row))

    def _check(self) -> None:
        available = self.observer.rows_on_host()
        if available == self._checked:
            return
        self._checked = available
        finding = weight_decay_too_high(self.observer.record_on_host(start=self._baseline + 1))
        if finding is not None:
            self.findings.append(finding.raised_at(available))
            self._baseline = available
            self._fired_at = self.observer.rows_measured()

    @property
    def is_collapsing(self) -> bool:
        """Whether a collapse was confirmed at this very step."""
        self._check()
        return self._fired_at == self.observer.rows_measured()

    def state_dict(self) -> dict[str, Any]:
        """What was found, and from where the detector watches now; the observer has a state of its own."""
        found = {"findings": text([finding.to_json() for finding in self.findings]), "baseline": self._baseline}
        return checkpoint.pack("CollapseDetector", {**found, "checked": self._checked, "fired_at": self._fired_at})

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`, beside an observer that goes on from its own.

        Raises:
            StateError: it is damaged, or from a newer version.
        """
        whole = checkpoint.unpack("CollapseDetector", state)
        baseline, checked, fired_at = count(whole, "baseline"), count(whole, "checked"), take(whole, "fired_at", int)
        self.findings = [Finding.from_json(found) for found in untext(whole, "findings", list)]
        self._baseline, self._checked, self._fired_at = baseline, checked, fired_at

    def record(self) -> Record:
        """The observer's record."""
        return self.observer.record()

    def get_recommendations(self) -> list[str]:
        """The collapses confirmed so far, in words, the latest first."""
        texts = []
        for finding in reversed(self.findings):
            kinds = {layer.name: layer.ltype for layer in self.record().layers}
            groups: dict[str, int] = {}
            for name in finding.layers:
                groups[kinds.get(name, "generic")] = groups.get(kinds.get(name, "generic"), 0) + 1
            where = " and ".join(f"{n} {kind} layer{'s' if n != 1 else ''}" for kind, n in groups.items())
            drop = finding.evidence["norm_drop"]
            knob = "Reduce weight_decay."
            if finding.remedy is not None:
                knob = f"Reduce weight_decay from {finding.remedy.was:.3g} to about {finding.remedy.value:.2g}."
            texts.append(
                f"[{finding.confidence}] Weight decay is eroding {where}: param norms dropped {drop:.0%} during "
                f"training. {knob}"
            )
        return texts

    def summary(self) -> dict[str, Any]:
        """By layer: the gradient-to-parameter ratio early and late, and the weight decay now."""
        record = self.record()
        ratio, decay = record["grad_param_ratio"], record["weight_decay"]
        result: dict[str, Any] = {}
        for i, layer in enumerate(record.layers):
            values = ratio[:, i][np.isfinite(ratio[:, i])]
            result[layer.name] = {
                "ltype": layer.ltype,
                "weight_decay": float(decay[-1, i]) if len(record) else None,
                "ratio_mean": float(values.mean()) if len(values) else None,
                "ratio_early": float(values[: self.window].mean()) if len(values) else None,
                "ratio_late": float(values[-self.window :].mean()) if len(values) else None,
                "n_steps": record.num_steps,
            }
        return result


def _ratios(detector: CollapseDetector | None, row: int) -> dict[str, Any]:
    if detector is None:
        raise RuntimeError("the detector of this snapshot is gone; read a snapshot while its detector lives")
    record, place = detector.observer.row_record(row)
    values = record["grad_param_ratio"][place]
    return {layer.name: float(value) for layer, value in zip(record.layers, values, strict=True)}
