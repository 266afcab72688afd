"""The options of analyze.py. A section of the report is added by one line here."""

from dataclasses import dataclass
from typing import ClassVar

from utils.config.images import DATASETS
from utils.config.options import Config, in_group
from utils.system.errors import UserError

# The sections of the report that `only` offers, in the order of the page.
SECTIONS = (
    "curves", "start", "classes", "gallery", "gradcam", "calibration", "label_issues", "neighbours", "embedding",
    "robustness",
    "model",
)  # fmt: skip


@dataclass
class AnalyzeConfig(Config):
    """Options of analyze.py."""

    script: ClassVar[str] = "analyze.py"

    # fmt: off
    option = in_group("input")
    run: str = option(
        "", "run directory, checkpoint, or folder with config.json and model.safetensors",
        path="folder", positional=True,
    )
    dataset: str | None = option(None, "data set to analyse with; unset: that of the run", choices=DATASETS)
    data_dir: str | None = option(None, "its folder; unset: as in training", path="folder")
    compare: str | None = option(None, "another run, to compare its mistakes with those of this one", path="folder")
    predict: list[str] = option(
        [], "photos, or folders of them: write their class probabilities and CAMs, and no report",
        path="file", words=True,
    )

    option = in_group("output")
    output_dir: str | None = option(None, "folder of the results; unset: RUN/analysis", path="folder")
    images: int = option(20, "misclassified images with CAM and in misclassified.png", low=10, high=500)
    whole: bool = option(
        False, "show whole photos, with the part that the model sees framed; its maps lie over that part"
    )
    full: bool = option(False, "also the sections that take minutes: neighbours, embedding, robustness")
    only: list[str] = option([], "these sections alone, such as curves,gallery", choices=SECTIONS)

    option = in_group("GradCAM")
    cam_method: str = option("GradCAM", "CAM classes of the grad-cam library, such as GradCAM or GradCAM,EigenCAM")
    cam_layer: str | None = option(None, "module names; unset: the deepest stage whose feature map is at least 5x5")
    aug_smooth: bool = option(False, "average over mirrored, brighter and darker images; 6 times slower")
    eigen_smooth: bool = option(False, "the first principal component instead of the sum over channels")

    option = in_group("hardware")
    num_workers: int = option(0, "loader processes", low=0, high=256)

    option = in_group("output")
    track: bool = option(True, "log the results to the run's trackers too, if it has any")
    debug: bool = option(False, "show tracebacks")
    del option
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("compare", "only", "full"):
            if self.predict and getattr(self, name):
                raise UserError(f"{name}: it is not allowed with predict, which writes no report")
