"""Predictions beside their targets: the names of GenoLeWM's collapse monitor. No torch.

Legend: N rows, D features, P predictions, S targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from thermoclaw.representation.arrays import as_matrix, as_pair, some_rows, squared_distances

BASELINE_CHECKS = 5
_NAME = "training.collapse"


@dataclass(frozen=True)
class CollapseMetrics:
    """What a batch of predictions and targets [N, D] is like. Variances are those of the population (÷ N).

    Attributes:
        pred_cos_mean: mean over rows of cos(p, s); 0 for a row where either is zero.
        pred_l2_mean: mean over rows of ‖p − s‖.
        target_var_per_dim, pred_var_per_dim: mean over features of the variance over rows.
        pred_target_corr: Pearson correlation of the N·D entries; 0 where either does not vary.
        pairwise_pred_dist_mean: mean distance of two predictions, of at most 1024 rows; 0 for one row.
        kl_reg: as given; NaN where it was not.
        nonfinite_rows: rows with NaN or Inf in either, which all others leave out.
    """

    pred_cos_mean: float
    pred_l2_mean: float
    target_var_per_dim: float
    pred_var_per_dim: float
    pred_target_corr: float
    pairwise_pred_dist_mean: float
    kl_reg: float
    nonfinite_rows: int = 0


@dataclass(frozen=True)
class CollapseThresholds:
    """From where on `detect_collapse` speaks; each is a positive number.

    Attributes:
        pred_var_to_target_var: least variance of predictions over that of targets.
        pairwise_to_initial: least pairwise distance over the initial one.
        kl_reg_max: largest KL term.
    """

    pred_var_to_target_var: float = 0.5
    pairwise_to_initial: float = 0.5
    kl_reg_max: float = 10.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r}: give a positive number")


@dataclass(frozen=True)
class CollapseAlert:
    """One criterion that a batch tripped: its value and what it was compared with."""

    criterion: str
    value: float
    threshold: float


@dataclass(frozen=True)
class CollapseCheck:
    """One look of a `CollapseMonitor`.

    Attributes:
        metrics: of the batch.
        alerts: criteria that this batch trips.
        confirmed: those of them that the check before tripped as well, once until they have gone again.
    """

    metrics: CollapseMetrics
    alerts: tuple[CollapseAlert, ...] = ()
    confirmed: tuple[CollapseAlert, ...] = ()

    @property
    def tripped(self) -> bool:
        """Whether any criterion is tripped."""
        return bool(self.alerts)


def compute_collapse_metrics(prediction: Any, target: Any, *, kl_reg: float = math.nan) -> CollapseMetrics:
    """Compare a batch of predictions with its targets; waits for the device of a tensor.

    Args:
        prediction: [N, D], a tensor, array or nested lists.
        target: [N, D].
        kl_reg: a regularizer's value, to be judged beside the rest.

    Returns:
        The metrics over rows that are finite in both; with no such row they are NaN, and all rows are counted.

    Raises:
        TypeError, ValueError: they are no two matrices of one shape.

    Example:
        >>> metrics = compute_collapse_metrics([[1, 0], [0, 1]], [[1, 0], [1, 1]])
        >>> metrics.pred_l2_mean, metrics.target_var_per_dim, metrics.pred_var_per_dim
        (0.5, 0.125, 0.25)
    """
    p, s = as_pair(prediction, target, names=("prediction", "target"))
    lost = len(as_matrix(prediction)) - len(p)
    if not len(p):
        return CollapseMetrics(*(math.nan,) * 6, float(kl_reg), lost)
    sizes = np.linalg.norm(p, axis=1) * np.linalg.norm(s, axis=1)
    cosines = np.divide((p * s).sum(axis=1), sizes, out=np.zeros(len(p)), where=sizes > 0)
    spreads = p.std() * s.std()
    some = some_rows(p)
    return CollapseMetrics(
        pred_cos_mean=float(cosines.mean()),
        pred_l2_mean=float(np.linalg.norm(p - s, axis=1).mean()),
        target_var_per_dim=float(s.var(axis=0).mean()),
        pred_var_per_dim=float(p.var(axis=0).mean()),
        pred_target_corr=float(((p - p.mean()) * (s - s.mean())).mean() / spreads) if spreads > 0 else 0.0,
        pairwise_pred_dist_mean=float(np.sqrt(squared_distances(some)).mean()) if len(some) > 1 else 0.0,
        kl_reg=float(kl_reg),
        nonfinite_rows=lost,
    )


def detect_collapse(
    metrics: CollapseMetrics,
    *,
    thresholds: CollapseThresholds | None = None,
    initial_pairwise_pred_dist_mean: float | None = None,
) -> tuple[CollapseAlert, ...]:
    """Criteria that the metrics trip; all comparisons are strict.

    Args:
        metrics: of a batch.
        thresholds: other than the defaults.
        initial_pairwise_pred_dist_mean: what the pairwise distance is compared with; without it it is not.

    Returns:
        An alert for each: `pred_var_per_dim`, `pairwise_pred_dist_mean`, `kl_reg`, `nonfinite_rows`.

    Example:
        >>> metrics = compute_collapse_metrics([[1, 1], [1, 1]], [[1, 0], [0, 1]])
        >>> [alert.criterion for alert in detect_collapse(metrics)]
        ['pred_var_per_dim']
    """
    limits = thresholds or CollapseThresholds()
    least_var = limits.pred_var_to_target_var * metrics.target_var_per_dim
    alerts = []
    if metrics.pred_var_per_dim < least_var:
        alerts.append(CollapseAlert("pred_var_per_dim", metrics.pred_var_per_dim, least_var))
    if initial_pairwise_pred_dist_mean is not None:
        least = limits.pairwise_to_initial * initial_pairwise_pred_dist_mean
        if metrics.pairwise_pred_dist_mean < least:
            alerts.append(CollapseAlert("pairwise_pred_dist_mean", metrics.pairwise_pred_dist_mean, least))
    if metrics.kl_reg > limits.kl_reg_max:
        alerts.append(CollapseAlert("kl_reg", metrics.kl_reg, limits.kl_reg_max))
    if metrics.nonfinite_rows:
        alerts.append(CollapseAlert("nonfinite_rows", float(metrics.nonfinite_rows), 0.0))
    return tuple(alerts)


def record_collapse_metrics(
    metrics: CollapseMetrics,
    *,
    alerts: Iterable[CollapseAlert] = (),
    logger: Any = None,
    step: int | None = None,
    observer: Any = None,
) -> None:
    """Put metrics and alerts where they are kept: the record of an observer, and a log.

    Args:
        metrics: of a batch.
        alerts: what it tripped.
        logger: a `logging.Logger`, or None.
        step: of the batch; by default the observer's.
        observer: an `Observer`, whose record gets an event of kind "collapse", or None.

    Example:
        >>> record_collapse_metrics(compute_collapse_metrics([[1.0]], [[2.0]]), step=500)
    """
    values = {name: value for name, value in asdict(metrics).items() if math.isfinite(value)}
    tripped = list(alerts)
    if observer is not None:
        place = {} if step is None else {"step": int(step)}
        observer.note_event("collapse", **place, metrics=values, alerts=[asdict(alert) for alert in tripped])
    if logger is not None:
        told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("%s: step %s: %s", _NAME, step, told)
        for alert in tripped:
            logger.warning(
                "%s: step %s: %s is %.4g against %.4g", _NAME, step, alert.criterion, alert.value, alert.threshold
            )


@dataclass
class CollapseMonitor:
    """Looks at predictions and targets every so many steps. `RepresentationMonitor` is the one that never waits.

    The pairwise distance is compared with the median of the first five healthy checks; a check that trips anything, or
    whose predictions are all alike, is none of them. With fewer than five, the median is over those there are.

    Args:
        log_every_steps: how often a check is due.
        thresholds: of `detect_collapse`.
        initial_pairwise_pred_dist_mean: the baseline, where it is known beforehand.
        observer: whose record gets the checks, or None.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> monitor = CollapseMonitor(log_every_steps=10)
        >>> monitor.should_log(5), monitor.observe([[1.0]], [[1.0]], step=5) is None
        (False, True)
        >>> check = monitor.observe([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], step=10)
        >>> check.tripped
        False
    """

    log_every_steps: int = 500
    thresholds: CollapseThresholds = field(default_factory=CollapseThresholds)
    initial_pairwise_pred_dist_mean: float | None = None
    observer: Any = None
    _healthy: list[float] = field(default_factory=list, repr=False)
    _tripped_before: frozenset[str] = field(default=frozenset(), repr=False)
    _confirmed: frozenset[str] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        every, initial = self.log_every_steps, self.initial_pairwise_pred_dist_mean
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"log_every_steps={every!r}: give a whole number of at least 1")
        if initial is not None and not 0 < initial < math.inf:
            raise ValueError(f"initial_pairwise_pred_dist_mean={initial!r}: give a positive number, or leave it out")

    def should_log(self, step: int) -> bool:
        """Whether a check is due at this step: every `log_every_steps`, and not at 0."""
        return step > 0 and step % self.log_every_steps == 0

    @property
    def baseline(self) -> float | None:
        """What the pairwise distance is compared with, or None where no healthy check was made yet."""
        if self.initial_pairwise_pred_dist_mean is not None:
            return self.initial_pairwise_pred_dist_mean
        return median(self._healthy) if self._healthy else None

    def observe(
        self,
        prediction: Any,
        target: Any,
        *,
        kl_reg: float = math.nan,
        step: int,
        logger: Any = None,
        force: bool = False,
    ) -> CollapseCheck | None:
        """Check a batch where one is due; waits for the device of a tensor then, and does nothing otherwise.

        Args:
            prediction: [N, D].
            target: [N, D].
            kl_reg: as for `compute_collapse_metrics`.
            step: of the training.
            logger: a `logging.Logger` for metrics and alerts.
            force: check although none is due.

        Returns:
            The check, or None.

        Raises:
            TypeError, ValueError: they are no two matrices of one shape.
        """
        if not force and not self.should_log(step):
            return None
        metrics = compute_collapse_metrics(prediction, target, kl_reg=kl_reg)
        alerts = detect_collapse(metrics, thresholds=self.thresholds, initial_pairwise_pred_dist_mean=self.baseline)
        if not alerts and metrics.pairwise_pred_dist_mean > 0 and len(self._healthy) < BASELINE_CHECKS:
            self._healthy.append(metrics.pairwise_pred_dist_mean)
        now = frozenset(alert.criterion for alert in alerts)
        lasting = now & self._tripped_before
        fresh = tuple(alert for alert in alerts if alert.criterion in lasting - self._confirmed)
        self._confirmed, self._tripped_before = (self._confirmed | lasting) & now, now
        record_collapse_metrics(metrics, alerts=alerts, logger=logger, step=step, observer=self.observer)
        return CollapseCheck(metrics, alerts, fresh)
