"""The options of both scripts."""

from utils.config.options import AnalyzeConfig, TrainConfig
