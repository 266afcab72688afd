"""A trained model for others: loaded from a folder or the Hugging Face Hub, from images to probabilities."""

import io
import math
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from PIL import Image, ImageOps
from torch import Tensor, nn

from data.files import decode_stream, read_image, to_rgb
from data.preprocessing import Geometry, fit, to_input
from data.resample import fit_batch
from models.saved import WEIGHTS, ModelConfig, export_model, load_model
from utils.evaluation.tta import tta_logits
from utils.system.errors import UserError, one_line
from utils.system.reading import check_files

FILES = ["config.json", WEIGHTS]
PIXELS = 256 * 32 * 32  # in one forward pass

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray
OneArray = np.ndarray[tuple[int, int] | tuple[int, int, int], Any]
ArrayOfMany = np.ndarray[tuple[int, int, int, int], Any]
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
TAKEN = (
    "predict takes an image (a path, an open file, its bytes, a PIL image or a uint8 array (H, W), (H, W, 1), "
    "(H, W, 3) or (H, W, 4)), a sequence of images, or a uint8 array (N, H, W, 3)"
)


class ImageClassifier(
    nn.Module, ModelHubMixin, library_name="pytorch", pipeline_tag="image-classification", tags=["image-classification"]
):
    """A model with its preprocessing and the test-time augmentation that it is reported with.

        classifier = ImageClassifier.from_pretrained("runs/resnet18/model")    # or its name on the Hub
        classifier.predict("photo.png")                                        # {"cat": 0.93, "dog": 0.05, ...}
        classifier.predict(["photo.png", "other.png"])                         # a list of two such dictionaries

    Its state dict is model.safetensors, prefixed by `model`. PyTorchModelHubMixin would fall back to a pickle, which
    can execute code.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, model_config: ModelConfig):
        super().__init__()
        self.model, self.model_config = model, model_config
        self.register_buffer("mean", torch.tensor(model_config.mean), persistent=False)
        self.register_buffer("std", torch.tensor(model_config.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, classes), of uint8 RGB images (N, H, W, 3) of any size, fitted as in predict."""
        return self._logits(fit_batch(images, self.model_config.geometry))

    def _logits(self, fitted: Tensor) -> Tensor:
        """As forward, of images that are fitted already."""
        size, tta = self.model_config.input_size, self.model_config.tta
        return tta_logits(self.model, to_input(fitted, self.mean, self.std, channels_last=False, size=size), tta)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | OneArray
    ) -> dict[str, float]: ...

    @overload
    def predict(self, images: ArrayOfMany | Iterable[ImageLike]) -> list[dict[str, float]]: ...

    def predict(self, images: Any) -> dict[str, float] | list[dict[str, float]]:
        """Class names with their probabilities, the most probable first; for many images a list of such dictionaries.

        Args:
            images: one image: a path, a file opened for reading bytes, the bytes of a file, a PIL image or a uint8
                array, RGB (H, W, 3), grey (H, W) or (H, W, 1), or RGBA (H, W, 4). Or many: a list or another iterable
                of such images, or a uint8 array (N, H, W, 3).

        Images may be of any size, and are fitted as the training images were (data.preprocessing.Geometry): handed in
        as a file, as bytes or decoded, the same photo gives the same numbers. Grey becomes RGB, transparency becomes
        white, and what has an EXIF orientation is turned upright; an array has none.

        Raises UserError for the path of a file that is not a readable image, else TypeError for a wrong type and
        ValueError for a wrong shape or wrong bytes; the line says what predict takes and what it got.
        """
        geometry = self.model_config.geometry
        if not _are_many(images):
            return self._probabilities([_fitted(images, geometry, "it got")])[0]
        return self._probabilities(
            [_fitted(image, geometry, f"image {position} is") for position, image in enumerate(images)]
        )

    @torch.no_grad()
    def _probabilities(self, fitted: list[np.ndarray]) -> list[dict[str, float]]:
        """As predict, of uint8 RGB images (height, width, 3) of the model's image_size."""
        count = max(1, PIXELS // math.prod(self.model_config.geometry.size))
        batches = [torch.from_numpy(np.stack(fitted[at : at + count])) for at in range(0, len(fitted), count)]
        rows = [row for batch in batches for row in self._logits(batch).softmax(1).tolist()]
        named = [zip(self.model_config.class_names, row, strict=True) for row in rows]
        return [dict(sorted(pairs, key=lambda pair: -pair[1])) for pairs in named]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **download: Any) -> "ImageClassifier":
        """From a folder or, with snapshot_download's arguments, from the Hub; on the CPU in eval mode.

        The mixin's own method would read config.json before it is checked. Raises UserError for invalid files, which
        may come from a stranger.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=FILES, **download))
        check_files(folder, FILES, "model")
        return cls(*load_model(folder))

    def _save_pretrained(self, save_directory: Path) -> None:
        export_model(save_directory, self.model_config, self.model.state_dict())


def _are_many(images: Any) -> bool:
    """Whether this means many images; letters of a path, rows of an array and keys of a mapping are not images."""
    if isinstance(images, np.ndarray):
        return images.ndim == 4
    single = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Tensor, Mapping, Set)
    return isinstance(images, Iterable) and not isinstance(images, single) and not hasattr(images, "read")


def _fitted(image: Any, geometry: Geometry, place: str) -> np.ndarray:
    """An image as the image folder reads it: uint8 RGB (height, width, 3) of the geometry's size.

    Args:
        place: of the image in a message, before what was given.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            return read_image(Path(image), geometry)
        except UserError as error:
            raise UserError(str(error).removeprefix("data_dir: ")) from error
    if isinstance(image, (bytes, bytearray, memoryview)) or hasattr(image, "read"):
        return fit(_from_bytes(image, place), geometry)
    if not isinstance(image, Image.Image):
        image = _from_array(image, place)
    if not all(image.size):
        raise ValueError(f"{TAKEN}; {place} a PIL image of {image.width} x {image.height} pixels")
    try:
        return fit(to_rgb(ImageOps.exif_transpose(image)), geometry)
    except Exception as error:  # Pillow decodes only now, and raises almost any error
        raise ValueError(f"{TAKEN}; {place} a PIL image that cannot be read ({one_line(error)})") from error


def _from_bytes(source: Any, place: str) -> Image.Image:
    """From an open file or the content of one. Raises TypeError for a file of text, ValueError for no image."""
    if not hasattr(source, "read"):
        given, stream = f"{len(source)} bytes", io.BytesIO(source)
    elif isinstance(source, io.TextIOBase):
        raise TypeError(f"{TAKEN}; {place} a file that was opened as text")
    else:
        given, stream = "an open file", source
    try:
        return decode_stream(stream)
    except ValueError as error:
        raise ValueError(f"{TAKEN}; {place} {given} without a readable image ({error})") from error


def _from_array(array: Any, place: str) -> Image.Image:
    """Raises TypeError for anything but a uint8 array, and ValueError for a shape that TAKEN does not name."""
    if isinstance(array, (np.ndarray, Tensor)):
        kind = "torch tensor" if isinstance(array, Tensor) else "array"
        given = f"{place} a {str(array.dtype).removeprefix('torch.')} {kind} {tuple(array.shape)}"
    else:
        given = f"{place} an object of type {type(array).__name__}"
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise TypeError(f"{TAKEN}; {given}")
    grey, has_channels = array.ndim == 2, array.ndim == 3 and array.shape[2] in CHANNELS
    if not array.size or not (grey or has_channels):
        raise ValueError(f"{TAKEN}; {given}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
