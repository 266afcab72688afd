"""The layers of the model, their shapes and parameters."""

from models import describe_model
from utils.analysis.predictions import Predictions
from utils.analysis.section import Analysis, Section

LABEL = "Model"
COST = "quick"
NEEDS = ()


def section(analysis: Analysis, predictions: Predictions) -> Section:
    """A table of the layers, also written as model_summary.txt, and the lrs of the parameter groups if they differ."""
    groups = analysis.run.lr_groups
    differ = len({group["lr_factor"] for group in groups}) > 1
    summary = describe_model(analysis.model, analysis.model_config.input_size)
    return Section(page={"groups": groups if differ else []}, texts={"model_summary": summary})
