"""The features of a run's images in its start weights, from the cache or computed on all processes."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from data.preprocessing import to_input
from data.splits import Split
from models.head import Head
from models.saved import tensors_to_bytes
from utils.config.images import ImageConfig
from utils.evaluation.features import compute_features
from utils.evaluation.predict import in_eval_mode
from utils.system.errors import raise_on_all_ranks
from utils.system.files import digest
from utils.system.memory import check_memory
from utils.training.evaluation import evaluation_loader
from utils.training.feature_cache import FeatureCache
from utils.training.run import Run
from utils.training.snapshot import PIPELINE, exported_config

VERSION = 1  # of how features are computed: a change makes older caches invalid
BATCH = 64  # images at a time
COPIES = 4  # of the features in memory while the head is fitted


class RunFeatures:
    """Computes features of splits on all processes, unless the main process finds them in the cache.

    Attributes:
        source: what to say if some came from the cache.
    """

    def __init__(self, run: Run, head: Head, stop_if_asked: Callable[[], None]):
        self._run, self._head, self._stop_if_asked = run, head, stop_if_asked
        self._cache, self._facts = FeatureCache(Path(run.config.data_dir)), {}
        self._computed, self._cached = 0, 0
        if run.accelerator.is_main_process:
            self._facts = _facts(run, head)

    @property
    def source(self) -> str:
        if not self._cached:
            return ""
        return "  features from the cache" if not self._computed else "  some features from the cache"

    def of(self, name: str, split: Split) -> np.ndarray:
        """The features of a split as evaluation sees it: float32 (images, features); on other ranks empty."""
        loader = evaluation_loader(self._run, split, BATCH)
        return self._get(name, len(split), loader, self._split_facts(name))

    def of_views(self, views: int) -> np.ndarray:
        """The features of the training images as they are augmented in the first `views` epochs: float32 (views,
        images, features); on other ranks empty."""
        run = self._run
        facts = self._split_facts("train")
        if run.accelerator.is_main_process:
            options = [option for option in dataclasses.fields(ImageConfig) if not option.metadata["may_change"]]
            facts["augmentation"] = {option.name: getattr(run.config, option.name) for option in options}
            facts |= {"views": views, "seed": run.config.seed, "pipeline": run.directory.environment.get(PIPELINE)}
        loader = _Views(run, views)
        flat = self._get("views", views * len(run.data.train), loader, facts)
        return flat.reshape(views, -1, self._head.width)

    def _split_facts(self, name: str) -> dict[str, Any]:
        if not self._run.accelerator.is_main_process:
            return {}
        return {**self._facts, "images": self._run.directory.environment["data"][name]["sha256"]}

    def _get(self, name: str, count: int, loader: Any, facts: dict[str, Any]) -> np.ndarray:
        run, accelerator, shape = self._run, self._run.accelerator, (count, self._head.width)
        found = None
        with raise_on_all_ranks(accelerator):
            if accelerator.is_main_process:
                check_memory(COPIES * 4 * shape[0] * shape[1], f"head_init: probe on the features of {name}")
                path = self._cache.path(name, facts)
                found = self._cache.read(path, shape)
        is_cached = torch.tensor([found is not None and accelerator.is_main_process], device=accelerator.device)
        if accelerator.gather(is_cached).any():
            self._cached += 1
            return np.empty((0, shape[1]), np.float32) if found is None else found
        self._computed += 1

        def prepare(images: Tensor) -> Tensor:
            return to_input(images, run.mean, run.std, run.config.channels_last, run.resolution)

        with in_eval_mode(run.model):
            features = compute_features(
                accelerator, run.model, self._head.layers, loader, prepare, f"features of {name}", self._stop_if_asked
            )
        if accelerator.is_main_process:
            self._cache.write(path, features)
        return features


def _facts(run: Run, head: Head) -> dict[str, Any]:
    """What features are a function of, besides the images, as JSON has it."""
    mine = {id(value) for layer in head.layers for value in (*layer.parameters(), *layer.buffers())}
    weights = {name: value for name, value in run.model.state_dict(keep_vars=True).items() if id(value) not in mine}
    described = dataclasses.asdict(exported_config(run))  # architecture, sizes, normalisation
    return {
        "version": VERSION,
        "model": {name: value for name, value in described.items() if name not in ("class_names", "tta")},
        "weights": digest([tensors_to_bytes(weights)]),
        "precision": run.accelerator.mixed_precision,
        "channels_last": run.config.channels_last,
        "device": run.accelerator.device.type,
        "libraries": [torch.__version__, PIL.__version__],
    }


class _Views:
    """Augmented views of the training images in fixed batches, which are dealt to the ranks in turn (Batches)."""

    def __init__(self, run: Run, views: int):
        images, self.batch_size = len(run.data.train), BATCH
        self.count = views * images
        starts = range(0, self.count, self.batch_size)
        self.rounds = -(-len(starts) // run.accelerator.num_processes)
        mine = starts[run.accelerator.process_index :: run.accelerator.num_processes]
        self._parts = [np.arange(start, min(start + self.batch_size, self.count)) for start in mine]
        self._run, self._images = run, images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | None]:
        for part in self._parts:
            pieces = [
                self._run.loader.augmented(int(view), part[part // self._images == view] % self._images)
                for view in np.unique(part // self._images)
            ]
            images = torch.cat(pieces)
            yield images, torch.empty(len(images))
        yield from [None] * (self.rounds - len(self._parts))
