"""The options of analyze.py."""

# The sections of the report that can be asked for, in the order of the page.
SECTIONS = (
    "curves", "classes", "gallery", "gradcam", "calibration", "label_issues", "neighbours", "embedding", "robustness",
    "model",
)  # fmt: skip
