"""The house style: colors, sizes, text that cannot break a picture, figures that open no window.

The one module that imports matplotlib.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from matplotlib import font_manager, style
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.textpath import TextPath
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
except ImportError as error:
    raise ImportError("drawing needs matplotlib: pip install 'thermoclaw[viz]'") from error

from thermoclaw.files import atomic_file
from thermoclaw.report.palette import (
    CONFIDENCE,
    FAINT,
    INK,
    LINE,
    OTHER_TYPES,
    PART_COLORS,
    PART_LINES,
    PART_NAMES,
    RAW,
    RUN_COLORS,
    SOFT,
    TYPE_COLORS,
    UNDEFINED,
    WARN,
    type_color,
)

# What the other modules of this folder need of matplotlib, and the palette.
__all__ = [
    "BoundaryNorm",
    "Figure",
    "FixedLocator",
    "FuncFormatter",
    "Line2D",
    "ListedColormap",
    "MaxNLocator",
    "NullLocator",
    "Patch",
    "TextPath",
    "font_manager",
    "CONFIDENCE",
    "FAINT",
    "INK",
    "LINE",
    "OTHER_TYPES",
    "PART_COLORS",
    "PART_LINES",
    "PART_NAMES",
    "RAW",
    "RUN_COLORS",
    "SOFT",
    "TYPE_COLORS",
    "UNDEFINED",
    "WARN",
    "type_color",
]

DPI = 150
FORMATS = ("png", "pdf", "svg")
FONT = "DejaVu Sans"  # comes with matplotlib, so a picture looks the same everywhere

HOUSE = {
    "font.family": FONT,
    "font.size": 9.0,
    "text.color": INK,
    "text.usetex": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.titlepad": 5.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": SOFT,
    "axes.labelpad": 3.0,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.5,
    "figure.dpi": 100.0,
    "savefig.dpi": float(DPI),
    "svg.hashsalt": "thermoclaw",
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style, whatever the user's matplotlib settings are, and put those back afterwards."""
    with style.context(["default", HOUSE]):
        yield


# -- figures --------------------------------------------------------------------------------------------------------


def check_target(save_path: str | os.PathLike[str] | None) -> Path | None:
    """The file to write, ".png" added where the name has no suffix.

    Raises:
        ValueError: the suffix names no format that can be written.
        OSError: the path is a folder.
    """
    if save_path is None:
        return None
    target = Path(save_path)
    if target.is_dir():
        raise OSError(f"cannot write a picture to {target}: it is a folder; add a file name, such as dashboard.png")
    if not target.suffix:
        target = target.with_name(target.name + ".png")
    if target.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"cannot write a picture as {target.suffix}: choose one of .png, .pdf, .svg ({target})")
    return target


def _can_open_windows(*, say: bool) -> bool:
    """Whether matplotlib's backend can show a figure; on request, a warning says what to do where it cannot."""
    import matplotlib.pyplot as plt

    backend = str(plt.get_backend()).lower()
    if backend in {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}:
        if say:
            message = f"no window can be opened with matplotlib's backend {backend!r}: pass save_path= to write a file"
            warnings.warn(message, UserWarning, stacklevel=5)
        return False
    return True


def new_figure(width_in: float, height_in: float, *, show: bool) -> Any:
    """An empty figure; one that pyplot knows only if it is going to be shown."""
    size = (width_in, height_in)
    if show:
        import matplotlib.pyplot as plt

        return plt.figure(figsize=size)
    return Figure(figsize=size)


@contextlib.contextmanager
def picture(width_in: float, height_in: float, save_path: Any, show: bool | None) -> Iterator[Any]:
    """A figure to draw into, in the house style; afterwards it is written to `save_path` or shown.

    Raises:
        ValueError: the suffix of `save_path` names no format that can be written.
        OSError: the file cannot be written; the message names it.
    """
    target = check_target(save_path)
    window = show is not False and target is None and _can_open_windows(say=show is True)
    with house_style():
        figure = new_figure(width_in, height_in, show=window)
        yield figure
        if target is not None:
            _write(figure, target)
    if window:
        import matplotlib.pyplot as plt

        plt.show()


def _write(figure: Any, target: Path) -> None:
    kind = target.suffix[1:].lower()
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    try:
        with atomic_file(target, "wb") as handle:
            figure.savefig(handle, format=kind, dpi=DPI, metadata=undated)
    except OSError as error:
        if str(error).startswith("cannot write"):
            raise
        raise OSError(f"cannot write {target}: {error.strerror or error}; choose another place") from error


def place(figure: Any, left_in: float, top_in: float, width_in: float, height_in: float) -> Any:
    """Axes at a place given in inches from the figure's upper left corner."""
    width, height = figure.get_size_inches()
    box = (left_in / width, 1 - (top_in + height_in) / height, width_in / width, height_in / height)
    axes = figure.add_axes(box)
    # Said here and not only in the style: ticks are made when a figure is drawn, perhaps outside it.
    axes.tick_params(which="both", labelsize=8.5, labelcolor=SOFT, color="#888888", length=2.5, width=0.7)
    return axes


def write(figure: Any, left_in: float, top_in: float, text: str, **kwargs: Any) -> Any:
    """Text at a place given in inches from the figure's upper left corner."""
    width, height = figure.get_size_inches()
    return figure.text(left_in / width, 1 - top_in / height, text, **{"va": "top", "color": INK, **kwargs})


def box_in(ax: Any) -> tuple[float, float, float, float]:
    """Where axes are: left, top, width and height in inches, from the figure's upper left corner."""
    width, height = ax.figure.get_size_inches()
    box = ax.get_position()
    return box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height
