"""Train a residual network on images, watched from the first step: what `thermoclaw train` does, for programs."""

from thermoclaw.train.data import load_data
from thermoclaw.train.errors import DataError, RunError
from thermoclaw.train.resnet import MODELS, ResNet
from thermoclaw.train.run import Outcome, train
from thermoclaw.train.settings import Settings

__all__ = ["MODELS", "DataError", "Outcome", "ResNet", "RunError", "Settings", "load_data", "train"]
