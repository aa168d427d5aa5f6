"""SHOW in experiment trackers: TensorBoard, W&B, MLflow, Trackio, Prometheus, JSON lines.

`log_to` joins an observer to any of them. Each has a module of its own that imports its package when it is used; this
one loads none of them.
"""

from thermoclaw.integrations.loggers.log import Log, as_logger, log_to
from thermoclaw.integrations.loggers.protocol import Logger

__all__ = ["Log", "Logger", "as_logger", "log_to"]
