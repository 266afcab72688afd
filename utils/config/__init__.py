"""The options of both scripts."""

from utils.config.analyze import AnalyzeConfig
from utils.config.train import TrainConfig
