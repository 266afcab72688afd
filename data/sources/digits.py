"""scikit-learn's handwritten digits, which come with the library."""

import math

import numpy as np
from PIL import Image

from data.files import to_rgb
from data.images import InMemory
from data.preprocessing import fit
from data.sources import Request, Source
from data.splits import Split, stratified_split
from utils.config.resolution import shown_size
from utils.system.memory import check_memory


def load_digits(request: Request) -> tuple[Split, tuple[str, ...]]:
    """1,437 training and 360 test images of 8x8 grey pixels, upscaled to image_size, as RGB."""
    from sklearn import datasets

    bunch, size = datasets.load_digits(), request.geometry.size
    train, test = stratified_split(bunch.target, 0.2, seed=0)
    indices = train if request.split == "train" else test
    check_memory(len(indices) * math.prod(size) * 3, f"image_size: {shown_size(size)}")
    small = (bunch.images[indices] * (255 / 16)).round().astype(np.uint8)
    images = np.stack([fit(to_rgb(Image.fromarray(image)), request.geometry) for image in small])
    labels = bunch.target[indices].astype(np.int64)
    return Split(InMemory(images), labels), tuple(str(name) for name in bunch.target_names)


SOURCE = Source(load_digits, reads_data_dir=False)
