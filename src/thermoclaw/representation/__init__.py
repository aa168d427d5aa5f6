"""What a batch of representations is like: how far apart its rows are, how many directions they use. No torch.

Every function takes a PyTorch tensor on any device, a NumPy array or nested lists, computes in double precision on the
host, and therefore waits for the device that a tensor is on. Rows with NaN or Inf are left out and counted.

Legend: N rows (examples), D features, K classes.
"""

from thermoclaw.representation.measures import (
    alignment,
    covariance_penalty,
    dead_share,
    gaussian_kl,
    spread,
    std_ratio,
    uniformity,
    variance_penalty,
)
from thermoclaw.representation.neural_collapse import NeuralCollapse, neural_collapse
from thermoclaw.representation.pairs import (
    CollapseAlert,
    CollapseCheck,
    CollapseMetrics,
    CollapseMonitor,
    CollapseThresholds,
    compute_collapse_metrics,
    detect_collapse,
    record_collapse_metrics,
)
from thermoclaw.representation.spectrum import (
    effective_dimension,
    effective_rank,
    expected_rank,
    participation_ratio,
    rankme,
)
from thermoclaw.representation.summary import summarize

__all__ = [
    "CollapseAlert",
    "CollapseCheck",
    "CollapseMetrics",
    "CollapseMonitor",
    "CollapseThresholds",
    "NeuralCollapse",
    "alignment",
    "compute_collapse_metrics",
    "covariance_penalty",
    "dead_share",
    "detect_collapse",
    "effective_dimension",
    "effective_rank",
    "expected_rank",
    "gaussian_kl",
    "neural_collapse",
    "participation_ratio",
    "rankme",
    "record_collapse_metrics",
    "spread",
    "std_ratio",
    "summarize",
    "uniformity",
    "variance_penalty",
]
