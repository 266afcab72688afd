"""The pipeline of `augment_file`, which takes the place of all augmentations of the options but MixUp and CutMix."""

from pathlib import Path

import numpy as np
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas, generators
from data.augment.saved_pipeline import parse_pipeline
from data.photo import Photo
from utils.config.resolution import Size
from utils.system.errors import UserError, one_line
from utils.system.reading import read_file, shown

LARGEST_FILE = 100_000  # bytes


def read_pipeline(path: str) -> bytes:
    """The content of a pipeline file. Raises UserError if it is missing, no file or too large."""
    try:
        return read_file(Path(path), LARGEST_FILE)
    except UserError as error:
        raise UserError(f"augment_file: {error}; it must be a pipeline that albumentations' A.save wrote") from error
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise UserError(f"augment_file: {shown(path)} cannot be read ({reason})") from error


class FilePipeline(Augmentation):
    """A pipeline of albumentations. It gets the photo in its own size, and its result must be the model's input.

    What it draws is a function of (seed, epoch, index), as of every augmentation: all transforms in it, however deep,
    share two generators, which are made anew for every image.

    Args:
        content: of the file. Raises UserError naming what in it is wrong.
        path: of the file, for errors.
        size: height and width of the model's images in pixels.
    """

    streams = ()
    needs_original = True

    def __init__(self, content: bytes, path: str, size: Size):
        self.path, self.size = path, size
        self.transform = parse_pipeline(content, path)

    def cut(self, photo: Photo, seed: int, epoch: int, index: int) -> np.ndarray:
        """The photo through the pipeline, uint8 (height, width, 3).

        Raises UserError if a transform cannot take this photo, or the result is not the model's input.
        """
        self.transform.set_random_state(*generators(seed, epoch, index))
        pixels = np.array(photo.whole())  # a copy: some transforms paint on what they get
        try:
            image = self.transform(image=pixels)["image"]
        except Exception as error:  # whatever a transform raises for an image that it cannot take
            photo_size = f"{photo.height}x{photo.width} pixels"
            raise UserError(
                f"augment_file: {self.path} fails for an image of {photo_size}: {one_line(error)}"
            ) from error
        self._check(image)
        return image

    def _check(self, image: np.ndarray) -> None:
        height, width = self.size
        if image.dtype != np.uint8:
            raise UserError(
                f"augment_file: the images of {self.path} are {image.dtype}, and the model takes uint8, which it "
                "normalises by itself; remove the transform that changes their type"
            )
        if image.ndim != 3 or image.shape[2] != 3:
            shape = "x".join(map(str, image.shape))
            raise UserError(
                f"augment_file: the images of {self.path} are {shape}, and the model takes RGB; remove what changes "
                "their channels, or set num_output_channels: 3 in ToGray"
            )
        if image.shape[:2] != self.size:
            raise UserError(
                f"augment_file: an image of {self.path} has {image.shape[0]}x{image.shape[1]} pixels, and image_size "
                f"is {height}x{width}; add a transform that always gives this size, such as RandomResizedCrop (size: "
                f"[{height}, {width}], p: 1.0) or Resize (height: {height}, width: {width}, p: 1.0), after all that "
                "change it"
            )

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        raise NotImplementedError("a pipeline of albumentations takes images one by one")

    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        raise NotImplementedError("a pipeline of albumentations takes images one by one")
