"""Thermoclaw says why a training run misbehaves, in which layers, since when, and what to change.

    observer = Observer(model, optimizer)        # 1
    ...                                          # the loop, any optimizer, any trainer
        observer.step(loss=loss)                 # 2, after optimizer.step(); a tensor is fine
    print(diagnose(observer))                    # 3

The way of the data, which is also the way of the imports:

    measure   gradients and parameters, once a step, on their device      measure/, layers, attach
    buffer    a ring on the device, a bounded history on the host         buffer, derive
    record    frozen columns [step, layer, quantity], files               record, quantities
    detect    entropy split, collapse, representations, schedule          detectors/, scheduler
    diagnose  rules, findings, remedies, report, preflight                diagnosis/
    show      text, plots, integrations, command line                     report/, integrations/, cli
"""

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
from thermoclaw.version import __version__

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
