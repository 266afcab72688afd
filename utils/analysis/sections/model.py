"""The layers of the model, their shapes and parameters."""

from models import describe_model
from utils.analysis.predictions import Predictions
from utils.analysis.section import Analysis, Section

LABEL = "Model"
COST = "quick"
NEEDS = ()


def section(analysis: Analysis, predictions: Predictions) -> Section:
    """A table of the layers, also written as model_summary.txt."""
    return Section(texts={"model_summary": describe_model(analysis.model, analysis.model_config.input_size)})
