"""Class activation maps of many images (Selvaraju et al. 2017, arXiv:1610.02391, and later methods), and which methods
at which layers `cam_method` and `cam_layer` ask for; maps drawn over their images."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from utils.analysis.cam import methods
from utils.analysis.cam.layers import CamLayer, choose_layer, choose_view, refused_layers
from utils.config.resolution import Size, shown_size
from utils.system.duration import duration

BATCH_PIXELS = 50 * 32 * 32  # of a batch, whose activations and gradients are held at once
EVALUATED = 16  # images at a time, without gradients
TIMED_BATCH = 16  # images
ENLARGED_SIDE = 160  # pixels, at least
MOST_CHANGED = 0.25  # share of the images to which a model may give another class if they are enlarged
MOST_OPAQUE = 0.75  # of the colour over the image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of an image; it may reach over the border


@dataclass(frozen=True)
class Cam:
    """A method of the grad-cam library at a layer.

    Attributes:
        name: of the method.
        aug_smooth: maps are means over mirrored, brighter and darker images.
        eigen_smooth: maps are the first principal component of the weighted activations instead of their sum.
        view: height and width in pixels that images are enlarged to for it (layers.choose_view); None: not at all.
    """

    name: str
    method: type
    layer: CamLayer
    aug_smooth: bool = False
    eigen_smooth: bool = False
    view: Size | None = None

    def __str__(self) -> str:
        return f"{self.name} at {self.layer.name}"

    @property
    def pixels(self) -> str:
        """The size of its maps in words, and that of the images if they are enlarged for it."""
        larger = f" of images enlarged to {shown_size(self.view)}" if self.view else ""
        return f"{self.layer.pixels} pixels{larger}"

    @property
    def knows_classes(self) -> bool:
        """Whether it shows evidence for a class, or salient regions that are the same for every class."""
        return self.name not in methods.CLASSLESS


@dataclass(frozen=True)
class Enlargement:
    """The size that images are enlarged to for the maps, and how the model takes it: at that size it gives another
    class to `changed` of `images` test images, evenly spaced."""

    view: Size
    changed: int
    images: int

    @property
    def is_used(self) -> bool:
        """Whether the model sees much the same in the enlarged images, so that they explain it."""
        return self.changed <= MOST_CHANGED * self.images


@dataclass(frozen=True)
class Cams:
    """The methods at the layers that are asked for: the first explains the mistakes, all are compared.

    Attributes:
        refused: the layers whose feature maps are too coarse, with their height and width in pixels.
        enlargement: if a late layer would need larger images, used or not.
    """

    chosen: Sequence[Cam] = ()
    refused: Mapping[str, Size] = field(default_factory=dict)
    enlargement: Enlargement | None = None


def choose_cams(
    model: nn.Module,
    image_size: Size,
    method_names: str,
    layer_names: str | None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    enlarge: bool = True,
) -> Cams:
    """All combinations of methods and layers, given as comma-separated names. Raises UserError.

    Args:
        enlarge: images, if a late layer needs it (layers.choose_view).
    """
    kinds = {name: methods.choose_method(name, aug_smooth, eigen_smooth) for name in _names(method_names)}
    names = _names(layer_names) if layer_names else []
    view = choose_view(model, image_size, names) if enlarge else image_size
    places = [choose_layer(model, view, name) for name in names] or [choose_layer(model, view)]
    chosen = [
        Cam(name, kind, layer, aug_smooth, eigen_smooth, None if view == image_size else view)
        for name, kind in kinds.items()
        for layer in methods.layers_of(kind, places, view)
    ]
    return Cams(chosen, refused_layers(model, view))


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


@torch.enable_grad()
def class_maps(model: nn.Module, cam: Cam, inputs: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Maps, float32 (N, H, W) at the size of the inputs, of the evidence for one class in each image.

    Each map is scaled to 0..1 by itself, so that maps show where and not how much; a map that is zero everywhere found
    no positive evidence. The same call gives the same maps. A slow method prints what it will cost and shows progress.
    Images are enlarged to the CAM's `view`, and the maps scaled back.

    Args:
        model: float32, in eval mode, not compiled.
        inputs: normalised images (N, 3, H, W) on the model's device.
        classes: the class to explain for each image.
    """
    size = inputs.shape[2], inputs.shape[3]
    if not len(inputs):  # no image was misclassified
        return np.empty((0, *size), np.float32)
    inputs = enlarged(inputs, cam.view) if cam.view else inputs
    count, _, height, width = inputs.shape
    smoothing = {"eigen_smooth": cam.eigen_smooth} | ({"aug_smooth": True} if cam.aug_smooth else {})
    maps = []
    with methods.opened(cam.method, model, cam.layer) as compute, _seeded():
        passes = methods.forward_passes(compute, cam.layer, inputs)
        slow = passes > 1
        if slow:
            _announce(model, cam, inputs, passes)
        step = 1 if slow else max(1, BATCH_PIXELS // (height * width))  # for one image ScoreCAM already holds hundreds
        bar = tqdm(range(0, count, step), str(cam), leave=False, unit=" maps", disable=None if slow else True)
        for start in bar:
            part = slice(start, start + step)
            goals = methods.targets(cam.method, model, inputs[part], classes[part])
            with methods.without_bars() if slow else contextlib.nullcontext():
                maps.append(compute(input_tensor=inputs[part], targets=goals, **smoothing))
    model.zero_grad(set_to_none=True)
    return _scaled(np.concatenate(maps), size)


def _scaled(maps: np.ndarray, size: Size) -> np.ndarray:
    """Maps, float32 (N, h, w), at another height and width, each from 0 to 1 again."""
    if maps.shape[1:] == size:
        return maps
    scaled = F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", antialias=True)[0].numpy()
    return scaled / np.maximum(scaled.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)


@torch.no_grad()
def try_enlarged(model: nn.Module, view: Size, inputs: Tensor) -> Enlargement:
    """What enlarging images (N, 3, H, W) does to the model's answers."""
    parts = [(model(part), model(enlarged(part, view))) for part in inputs.split(EVALUATED)]
    return Enlargement(view, sum(int((a.argmax(1) != b.argmax(1)).sum()) for a, b in parts), len(inputs))


def enlarged(inputs: Tensor, view: Size) -> Tensor:
    """Images (N, 3, H, W) at another height and width."""
    return F.interpolate(inputs, view, mode="bilinear", antialias=True)


@torch.no_grad()
def _announce(model: nn.Module, cam: Cam, inputs: Tensor, passes: int) -> None:
    """Prints what the maps of these inputs will cost, estimated from one small batch."""
    batch = inputs[:1].repeat(TIMED_BATCH, 1, 1, 1)
    model(batch)
    start = time.perf_counter()
    model(batch).cpu()
    if cam.aug_smooth:
        passes *= methods.AUG_SMOOTH_COST
    seconds = (time.perf_counter() - start) / TIMED_BATCH * passes * len(inputs)
    tqdm.write(f"{cam}: {passes} forward passes per map, about {duration(seconds)} for {len(inputs)} maps")


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seeds NumPy's global generator, from which RandomCAM and KPCA_CAM draw, and restores it in the end."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def overlay(image: np.ndarray, cam: np.ndarray, part: Box | None = None) -> np.ndarray | None:
    """A map (h, w) over its image (uint8, H x W x 3), enlarged and as uint8; None for a map without positive evidence.

    The image turns grey and shows through where the map is low, so that colour can only come from the map.

    Args:
        part: of the image that the map is of; unset: all of it.
    """
    if not cam.any():
        return None
    grey = enlarge(image).mean(axis=2, keepdims=True)
    if part is None:
        smooth = cv2.resize(cam, grey.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    else:
        factor = grey.shape[0] // image.shape[0]
        smooth = _placed(cam, tuple(factor * edge for edge in part), grey.shape[:2])
    colour = 255 * colormaps["autumn"](smooth)[..., :3]
    opacity = MOST_OPAQUE * smooth[..., None]
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)


def _placed(cam: np.ndarray, box: Box, size: Size) -> np.ndarray:
    """A map scaled to a box in an area of that height and width, float32; 0 around it."""
    left, top, right, bottom = box
    across, down = (right - left) / cam.shape[1], (bottom - top) / cam.shape[0]
    # Pixel centres lie at halves: the centre of the map's first pixel is half of its width from the box's edge.
    place = np.array([[across, 0, left + across / 2 - 0.5], [0, down, top + down / 2 - 0.5]])
    spread = cv2.warpAffine(cam, place, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    inside = ((rows > top) & (rows < bottom))[:, None] & (columns > left) & (columns < right)
    return np.where(inside, spread, 0)


def enlarge(image: np.ndarray) -> np.ndarray:
    """The same pixels, each repeated until the longer side has at least ENLARGED_SIDE: sharp in print."""
    factor = -(-ENLARGED_SIDE // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_map(axes: Axes, overlaid: np.ndarray | None) -> None:
    """The result of `overlay`, or words if it is None."""
    if overlaid is None:
        axes.imshow([[[0.85] * 3]])
        axes.text(0, 0, "no positive\nevidence", ha="center", va="center", fontsize=8)
    else:
        axes.imshow(overlaid, interpolation="nearest")
