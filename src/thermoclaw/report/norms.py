"""Gradient norms over a run, with the spikes among them and the bounds that would cut them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.report import style

WIDTH_IN, HEIGHT_IN = 8.0, 3.4
LEFT_IN, TOP_IN, RIGHT_IN, BOTTOM_IN = 0.85, 0.45, 0.25, 0.6


def plot_norms(
    steps: Array,
    norms: Array,
    *,
    spikes: Sequence[tuple[int, float]] = (),
    max_norm: float | None = None,
    recommended: float | None = None,
    pre_clip: bool = True,
    save_path: str | os.PathLike[str] | None = None,
    show: bool | None = None,
) -> style.Figure:
    """Draw the gradient norm of each step on a logarithmic scale.

    Args:
        steps: optimizer steps, [T].
        norms: ‖g‖ at them, [T]; what is not positive is left out.
        spikes: step and norm of each spike, to be ringed.
        max_norm: the bound of the run's clipping.
        recommended: a bound that would cut outliers alone.
        pre_clip: whether the norms are those before clipping.
        save_path: a .png, .pdf or .svg to write (".png" is added where there is no suffix); missing folders are made.
        show: True opens a window and False does not; by default one opens where matplotlib can open one.

    Returns:
        The matplotlib Figure.
    """
    known = np.isfinite(norms) & (norms > 0)
    with style.picture(WIDTH_IN, HEIGHT_IN, save_path, show) as figure:
        wide, high = WIDTH_IN - LEFT_IN - RIGHT_IN, HEIGHT_IN - TOP_IN - BOTTOM_IN
        ax = style.place(figure, LEFT_IN, TOP_IN, wide, high)
        ax.set_yscale("log")
        ax.plot(steps[known], norms[known], ".", ms=2.5, color=style.RAW, label="‖g‖", rasterized=len(steps) > 5000)
        if spikes:
            at, size = zip(*spikes, strict=True)
            ax.plot(at, size, "o", ms=6, mfc="none", mec=style.WARN, label=f"{len(spikes)} spikes")
        if max_norm is not None:
            ax.axhline(max_norm, color=style.INK, lw=1.0, label=f"max_norm {max_norm:.3g}")
        if recommended is not None:
            ax.axhline(
                recommended, color=style.LINE, lw=1.0, ls=(0, (5, 2)), label=f"would cut outliers: {recommended:.2g}"
            )
        ax.set_xlabel("optimizer step")
        ax.set_ylabel("gradient norm" + (", before clipping" if pre_clip else ", as used"))
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, fontsize=8, borderaxespad=0.2)
    return figure
