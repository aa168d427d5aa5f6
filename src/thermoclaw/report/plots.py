"""The pictures: one page for a run, one for its entropy split, one for several runs side by side.

They need matplotlib (`pip install 'thermoclaw[viz]'`). With `save_path` a picture is drawn straight into its file: no
window opens and matplotlib's backend stays what it was.
"""

from thermoclaw.report.comparison import Comparison, compare
from thermoclaw.report.dashboard import plot_dashboard
from thermoclaw.report.split import plot_entropy_split

__all__ = ["plot_dashboard", "plot_entropy_split", "compare", "Comparison"]
