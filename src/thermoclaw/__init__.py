"""Thermoclaw says why a training run misbehaves, in which layers, since when, and what to change.

    observer = Observer(model, optimizer)        # 1
    ...                                          # the loop, any optimizer, any trainer
        observer.step(loss=loss)                 # 2, after optimizer.step(); a tensor is fine
    print(diagnose(observer))                    # 3

The way of the data, which is also the way of the imports:

    measure   gradients and parameters, once a step, on their device      measure/, layers, attach
    buffer    a ring on the device, a bounded history on the host         buffer, derive/
    record    frozen columns [step, layer, quantity], files, directories  record/, runs/, quantities
    detect    entropy split, collapse, representations, schedule          detectors/, scheduler
    diagnose  rules, findings, remedies, report, preflight                diagnosis/
    show      text, plots, integrations, command line                     report/, integrations/, cli/
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from thermoclaw.version import __version__

if TYPE_CHECKING:  # for type checkers, editors and the documentation; what is used is loaded when it is used
    from thermoclaw.detectors.collapse import CollapseDetector
    from thermoclaw.detectors.entropy_split import EntropySplit
    from thermoclaw.detectors.representation import RepresentationMonitor
    from thermoclaw.detectors.spikes import SpikeDetector
    from thermoclaw.detectors.thermometer import Thermometer
    from thermoclaw.diagnosis.finding import Finding
    from thermoclaw.diagnosis.remedies import Remedy
    from thermoclaw.diagnosis.report import Report, diagnose
    from thermoclaw.guard import Guard
    from thermoclaw.integrations.loggers import log_to
    from thermoclaw.layers import detect_layer_type, make_param_groups
    from thermoclaw.observer import Observer
    from thermoclaw.phase import PhaseConfig, PhaseMonitor, create_monitor
    from thermoclaw.preflight import Preflight, preflight
    from thermoclaw.record import Record, RecordError
    from thermoclaw.runs import load
    from thermoclaw.scheduler import ThermoScheduler
    from thermoclaw.state import StateError

__all__ = [
    "CollapseDetector",
    "EntropySplit",
    "Finding",
    "Guard",
    "Observer",
    "PhaseConfig",
    "PhaseMonitor",
    "Preflight",
    "Record",
    "RecordError",
    "Remedy",
    "Report",
    "RepresentationMonitor",
    "SpikeDetector",
    "StateError",
    "ThermoScheduler",
    "Thermometer",
    "__version__",
    "create_monitor",
    "detect_layer_type",
    "diagnose",
    "load",
    "log_to",
    "make_param_groups",
    "preflight",
]

_HOME = {
    "CollapseDetector": "detectors.collapse",
    "EntropySplit": "detectors.entropy_split",
    "RepresentationMonitor": "detectors.representation",
    "SpikeDetector": "detectors.spikes",
    "Thermometer": "detectors.thermometer",
    "Finding": "diagnosis.finding",
    "Remedy": "diagnosis.remedies",
    "Report": "diagnosis.report",
    "diagnose": "diagnosis.report",
    "Guard": "guard",
    "log_to": "integrations.loggers",
    "detect_layer_type": "layers",
    "make_param_groups": "layers",
    "Observer": "observer",
    "PhaseConfig": "phase",
    "PhaseMonitor": "phase",
    "create_monitor": "phase",
    "Preflight": "preflight",
    "Record": "record",
    "RecordError": "record",
    "load": "runs",
    "ThermoScheduler": "scheduler",
    "StateError": "state",
}


class _Package(ModuleType):
    """The package. Public names are imported when they are first asked for: reading a run needs no torch."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})

    @property
    def preflight(self) -> Any:
        """The function, whether or not the package of its name was imported."""
        return importlib.import_module(f"{__name__}.preflight.check").preflight

    @preflight.setter
    def preflight(self, package: ModuleType) -> None:
        """The import system puts the package here; it stays reachable by `from thermoclaw.preflight import …`."""


sys.modules[__name__].__class__ = _Package
