"""The entropy split: which share of σ is what overhead. Definitions and derivations: docs, theory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from thermoclaw.derive.memory import HORIZON
from thermoclaw.quantities import Array


def noise_overhead(noise_share: Array) -> Array:
    """h(ν): what batch noise of share ν takes from alignment once it is averaged over HORIZON steps.

    h = 1 − √(W x / (W x + 1 − x)) with x = max(1 − ν, 2/W): the mean of W gradients of signal share x has that cosine
    with the true gradient. A signal below 2/W of the power cannot be told from none, so h saturates there.
    """
    signal = np.maximum(1.0 - noise_share, 2.0 / HORIZON)
    overhead = 1.0 - np.sqrt(HORIZON * signal / (HORIZON * signal + 1.0 - signal))
    return np.where(noise_share > 0, overhead, 0.0)


def split(now: Mapping[str, Array]) -> dict[str, Array]:
    """Shares of σ that sum to one by construction, of the quantities of some rows."""
    sigma = now["sigma"]
    still = (now["update_sq"] == 0) & np.isfinite(now["grad_sq"])
    aligned = np.where(still, 0.0, np.maximum(now["alignment"], 0.0))
    free = np.where(still, 0.0, np.maximum(now["alignment_free"], 0.0))
    free = np.where(np.isfinite(free), free, aligned)
    overhead = noise_overhead(np.nan_to_num(now["noise_share"], nan=0.0))
    parts = {
        "d_iS_wd": np.maximum(free - aligned, 0.0),
        "d_iS_momentum": 1.0 - np.maximum(free, aligned),
        "d_iS_noise": np.maximum(aligned - (1.0 - overhead), 0.0),
    }
    return {name: np.where(sigma == 0, 0.0, sigma * share) for name, share in parts.items()}
