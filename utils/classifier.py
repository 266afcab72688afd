"""A trained model as others use it: from a folder or from the Hugging Face Hub, from pictures to probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from PIL import Image, ImageOps
from torch import Tensor, nn

from data.images import as_square, read_image
from data.loaders import to_input
from utils.checkpoint import WEIGHTS, ModelConfig, export_model, load_model
from utils.errors import UserError
from utils.reading import check_files
from utils.tta import tta_logits

FILES = ["config.json", WEIGHTS]
PIXELS = 256 * 32 * 32  # in one forward pass

Picture = str | Path | Image.Image | np.ndarray


class ImageClassifier(
    nn.Module, ModelHubMixin, library_name="pytorch", pipeline_tag="image-classification", tags=["image-classification"]
):
    """A model together with its preprocessing and the test-time augmentation that it is reported with.

        classifier = ImageClassifier.from_pretrained("runs/resnet18/model")    # or its name on the Hub
        classifier.predict(["photo.png"])                                      # [{"cat": 0.93, "dog": 0.05, ...}]

    The weights are those of model.safetensors under `model`. PyTorchModelHubMixin is not used: it would fall back to a
    pickle, which can hold code.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, model_config: ModelConfig):
        super().__init__()
        self.model, self.model_config = model, model_config
        self.register_buffer("mean", torch.tensor(model_config.mean), persistent=False)
        self.register_buffer("std", torch.tensor(model_config.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, classes), of uint8 RGB images (N, S, S, 3), where S is the data set's image_size."""
        size, tta = self.model_config.input_size, self.model_config.tta
        return tta_logits(self.model, to_input(images, self.mean, self.std, channels_last=False, size=size), tta)

    @torch.no_grad()
    def predict(self, pictures: Sequence[Picture] | np.ndarray) -> list[dict[str, float]]:
        """The probability of every class by its name, the most probable first, for each picture.

        Pictures are paths, PIL images or uint8 RGB arrays (H, W, 3), each of any size: the shorter side is scaled to
        the size of the training images and the middle is cut out. Raises UserError for a file that is no picture.
        """
        size = self.model_config.image_size
        squares = [_square(picture, size) for picture in pictures]
        count = max(1, PIXELS // size**2)
        batches = [torch.from_numpy(np.stack(squares[at : at + count])) for at in range(0, len(squares), count)]
        rows = [row for batch in batches for row in self(batch).softmax(1).tolist()]
        named = [zip(self.model_config.class_names, row, strict=True) for row in rows]
        return [dict(sorted(pairs, key=lambda pair: -pair[1])) for pairs in named]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **download: Any) -> "ImageClassifier":
        """From a folder or, with snapshot_download's arguments, from the Hub; on the CPU in eval mode.

        The mixin's own method would read config.json before anybody has looked at what it is. Raises UserError for
        whatever is wrong with the files, which may come from a stranger.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=FILES, **download))
        check_files(folder, FILES, "model")
        return cls(*load_model(folder))

    def _save_pretrained(self, save_directory: Path) -> None:
        export_model(save_directory, self.model_config, self.model.state_dict())


def _square(picture: Picture, size: int) -> np.ndarray:
    """A picture as the images of a folder are read: uint8 RGB (size, size, 3)."""
    if isinstance(picture, (str, Path)):
        try:
            return read_image(picture, size)
        except UserError as error:
            raise UserError(str(error).removeprefix("data_dir: ")) from error
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return as_square(ImageOps.exif_transpose(image), size)
