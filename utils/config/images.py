"""The options of images: data set, how they are fitted, augmentation. A data set is added by one line here."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from utils.config.defaults import of_weights, tuned
from utils.config.options import Config, in_group
from utils.config.resolution import LARGEST, Size, parse_size


class DatasetEntry(NamedTuple):
    """Where a data set comes from.

    Attributes:
        module: the module with its Source, imported when the data set is loaded.
        image_size: side in pixels of images with a fixed size; None: they are resized to the option `image_size`.
    """

    module: str
    image_size: int | None = None


DATASETS = {
    "cifar10": DatasetEntry("data.sources.cifar", image_size=32),
    "cifar100": DatasetEntry("data.sources.cifar", image_size=32),
    "digits": DatasetEntry("data.sources.digits"),
    "imagefolder": DatasetEntry("data.sources.imagefolder"),
}
SMALLEST_CROP = 0.01  # of a photo's area


@dataclass
class ImageConfig(Config):
    """The options of images."""

    # fmt: off
    option = in_group("data")
    dataset: str = option(
        "cifar10", "data set; digits needs no download, imagefolder reads data_dir/train and data_dir/test",
        choices=DATASETS,
    )
    data_dir: str = option("datasets", "folder of the data set; downloads go here", path="folder", may_change=True)
    image_size: int | str = option(
        of_weights("image_size"),
        "side in pixels, or HEIGHTxWIDTH such as 224x160; digits and image folders are fitted to it",
        low=8, high=LARGEST,
    )
    fit: Literal["auto", "crop", "squash", "pad"] = option(
        of_weights("fit"),
        "how an image becomes image_size; crop: scaled until it covers it, the middle cut out; squash: both sides "
        "scaled; pad: scaled until it fits in, the rest filled with the mean colour",
    )
    crop_pct: float | Literal["auto"] = option(
        of_weights("crop_pct"), "fraction of the sides that fit crop or squash leaves", low=0.1, high=1.0
    )
    interpolation: Literal["auto", "bilinear", "bicubic", "lanczos"] = option(
        of_weights("interpolation"), "how images are scaled, always with antialiasing"
    )
    validation_fraction: float = option(
        0.0, "fraction of the training set held out for validation, stratified and seeded", low=0.0, high=0.9
    )
    memory_fraction: float = option(
        0.25,
        "fraction of the free memory that an image folder may take, over all processes; a larger one is read from disk",
        low=0.0, high=1.0, may_change=True,
    )
    cache_side: int | None = option(
        None, "cache training photos, scaled until the shorter side has at most so many pixels, in data_dir/.decoded; "
        "for crop resized; unset: off", low=8, high=LARGEST,
    )
    exact_decode: bool = option(
        False, "crop resized decodes JPEGs at their full size; otherwise at 1/2, 1/4 or 1/8 if the crop allows"
    )
    num_workers: int | None = option(
        None, "loader processes per training process, for albumentations; unset: 0 on a CPU, else up to 8",
        low=0, high=256, may_change=True,
    )

    option = in_group("augmentation")
    crop: Literal["pad", "resized", "none"] = option(
        tuned("pad", "resized"),
        "random crop; pad: of the image padded by crop_padding; resized: a random part of the photo, scaled to "
        "image_size",
    )
    crop_padding: int = option(4, "pixels of padding before the random crop; 0: no crop", low=0)
    padding_mode: Literal["zeros", "reflect"] = option(
        "zeros", "what crop_padding adds; zeros: black; reflect: the image mirrored at its border"
    )
    crop_scale: list[float] = option(
        tuned([0.08, 1.0], [0.35, 1.0]),
        "range of the part that crop resized cuts out, in shares of the area; one number: the smallest",
        low=SMALLEST_CROP, high=1.0,
    )
    horizontal_flip: Literal["none", "random", "alternating"] = option(
        "alternating", "none; random: half of the images; alternating: each image in every other epoch"
    )
    vertical_flip: bool = option(False, "turn half of the images upside down")
    rotate: float = option(0.0, "largest angle of a random rotation, in degrees; 0: off", low=0.0, high=180.0)
    policy: str = option(
        "none", "automatic augmentation: none, trivial (TrivialAugmentWide), rand:N,M (RandAugment; rand is rand:2,9), "
        "or auto:imagenet, auto:cifar10, auto:svhn (AutoAugment; auto is auto:imagenet)",
    )
    color_jitter: list[float] = option(
        [], "strength of random brightness, contrast, saturation (0 to 1) and hue (0 to 0.5), such as 0.4,0.4,0.4,0.1; "
        "one number: of the first three; empty: off", low=0.0, high=1.0,
    )
    grayscale: float = option(0.0, "fraction of the images that turn grey", low=0.0, high=1.0)
    blur: float = option(0.0, "fraction of the images that are blurred", low=0.0, high=1.0)
    cutout: int = option(tuned(8, 0), "side in pixels of the CutOut square, filled with the mean; 0: off", low=0)
    erase: float = option(0.0, "fraction of the images of which a random rectangle is erased", low=0.0, high=1.0)
    erase_mode: Literal["pixel", "constant"] = option(
        "pixel", "what erase leaves; pixel: noise; constant: the mean colour"
    )
    mixup: float = option(0.0, "alpha of MixUp's Beta distribution, at least 0.01; 0: off", low=0.0, high=1000.0)
    cutmix: float = option(
        0.0, "alpha of CutMix's Beta distribution, at least 0.01; 0: off; with mixup too, each batch draws one of them",
        low=0.0, high=1000.0,
    )
    repeated: int = option(
        1, "copies of an image in a batch, each augmented on its own; an epoch then has a part of the images", low=1,
        high=64,
    )
    augment_file: str | None = option(
        None, "YAML file of an albumentations pipeline that replaces all other augmentations but mixup and cutmix; a "
        "resume needs the same content",
        path="file", may_change=True,
    )
    augment_until: float = option(
        1.0, "fraction of the epochs after which images are trained without augmentation, as evaluation sees them",
        low=0.0, high=1.0,
    )
    augment_backend: Literal["auto", "albumentations", "tensor"] = option(
        "auto",
        "albumentations: image by image on the CPU; tensor: whole batches on the device; auto: tensor if they fit",
    )
    tta: Literal["none", "flip", "flip_translate"] = option(
        "none",
        "test-time augmentation of the final evaluation; flip: mirrored too; flip_translate: also shifted by a pixel",
    )
    del option
    # fmt: on

    @property
    def size(self) -> Size:
        """Height and width in pixels of the images: those of the data set, if it has a fixed size, else image_size."""
        return parse_size(DATASETS[self.dataset].image_size or self.image_size)

    @property
    def is_fitted(self) -> bool:
        """Whether the images of the data set are fitted to image_size; otherwise they have a size of their own."""
        return DATASETS[self.dataset].image_size is None
