"""What a run says on the terminal: a bar, a line for each pass, findings at once. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from thermoclaw.lab.console import paint, wants_color, wrap
from thermoclaw.lab.progress import Progress
from thermoclaw.wording import number

if TYPE_CHECKING:
    from thermoclaw.diagnosis.finding import Finding
    from thermoclaw.train.run import Outcome


class Teller(Protocol):
    """Whoever wants to hear of a run."""

    def begin(self, total: int, first: int) -> None:
        """The run goes on from step `first`, to step `total`."""

    def step(self, step: int, loss: float | None) -> None:
        """A step was made; the loss is the last that is known."""

    def passed(self, epoch: int, loss: float | None, val_loss: float, accuracy: float, heat: dict[str, Any]) -> None:
        """A pass over the data was completed; `heat` is the thermometer's summary."""

    def alarm(self, finding: Finding) -> None:
        """A finding was raised."""

    def end(self, outcome: Outcome) -> None:
        """The run has ended, and everything is written."""


class Silent:
    """Tells nothing."""

    def begin(self, total: int, first: int) -> None:
        """Nothing."""

    def step(self, step: int, loss: float | None) -> None:
        """Nothing."""

    def passed(self, epoch: int, loss: float | None, val_loss: float, accuracy: float, heat: dict[str, Any]) -> None:
        """Nothing."""

    def alarm(self, finding: Finding) -> None:
        """Nothing."""

    def end(self, outcome: Outcome) -> None:
        """Nothing."""


class Terminal(Silent):
    """Tells it on the terminal: the bar on standard error, everything else on standard output.

    Args:
        no_color: no color, even on a terminal.
    """

    def __init__(self, *, no_color: bool = False) -> None:
        self._color = wants_color(no_color=no_color)
        self._bar: Progress | None = None

    def begin(self, total: int, first: int) -> None:
        """Draw the bar."""
        if first:
            print(f"goes on after step {first} of {total}", flush=True)
        self._bar = Progress("training", total)

    def step(self, step: int, loss: float | None) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(step, note="" if loss is None else f"loss {loss:.3f}")

    def passed(self, epoch: int, loss: float | None, val_loss: float, accuracy: float, heat: dict[str, Any]) -> None:
        """A line on the pass, and one on how hot it is."""
        train = "" if loss is None else f"loss {loss:.3f}, "
        self._print(f"epoch {epoch}: {train}test loss {val_loss:.3f}, test accuracy {accuracy:.1%}")
        self._print(f"  {heat_line(heat)}")

    def alarm(self, finding: Finding) -> None:
        """The finding, with its advice."""
        self._print(paint(wrap(finding.message, indent=2), "yellow", enabled=self._color))

    def end(self, outcome: Outcome) -> None:
        """The report, and where everything is."""
        if self._bar is not None:
            self._bar.clear()
        print(f"\n{outcome.report}\n")
        for text in outcome.missing:
            print(f"Not written: {text}")
        print(f"Written to {outcome.folder}/: {', '.join(outcome.written)}.")
        if outcome.state == "stopped":
            print(f"Stopped after step {outcome.steps}. Go on: thermoclaw train --out {outcome.folder} --resume")

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.print(text)


def heat_line(heat: dict[str, Any]) -> str:
    """A thermometer's summary in a line."""
    layers = list(heat["layers"].values())

    def middle(name: str) -> str:
        known = sorted(layer[name] for layer in layers if layer[name] is not None and layer[name] == layer[name])
        return number(known[len(known) // 2]) if known else "–"

    parts = [f"T {middle('temperature')}", f"σ {middle('dissipation')}", f"X {middle('fdt_ratio')}"]
    diffusion = heat["diffusion_coefficient"]
    parts.append(f"D {number(diffusion) if diffusion is not None else '–'}")
    return f"typical layer: {', '.join(parts)}; {heat['verdict']}"
