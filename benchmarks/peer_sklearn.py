"""Logistic regression of scikit-learn on features of a pretrained network, which is not trained: what is to be beaten.

    python benchmarks/peer_sklearn.py --data_dir flowers --weights tf_efficientnet_lite0

From scratch in a process of its own: torchvision's ImageFolder, timm's transform of evaluation, its pooled features of
every image once, standardised, LogisticRegression() with its defaults (L2, C = 1; more iterations allowed). Nothing is
drawn at random, so one seed is all.
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.seeds import alone, measured, parser_of, table, test_split


def main() -> None:
    parser = parser_of(__doc__, "runs/peers")
    parser.set_defaults(seeds=[0])
    settings = parser.parse_args()
    measured(settings.output_dir / "sklearn" / "seed-0", functools.partial(fit, settings))
    print(table(settings.output_dir))


def fit(settings: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Features, regression and test in a process of its own, whose start counts."""
    started = time.perf_counter()
    accuracy = alone(accuracy_on_features, settings)
    seconds = time.perf_counter() - started
    return {"accuracy": accuracy, "seconds": seconds, "scores": [[round(seconds, 2), accuracy]]}


def accuracy_on_features(settings: argparse.Namespace) -> float:
    import timm
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from timm.data import create_transform, resolve_model_data_config
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    model = timm.create_model(f"local-dir:{settings.weights.resolve()}", pretrained=True, num_classes=0).eval()
    model = model.to(memory_format=torch.channels_last)
    data = resolve_model_data_config(model) | {"input_size": (3, settings.image_size, settings.image_size)}
    transform = create_transform(**data)

    def features(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        loader = DataLoader(ImageFolder(settings.data_dir / split, transform), batch_size=64, num_workers=1)
        with torch.inference_mode():
            parts = [(model(images.to(memory_format=torch.channels_last)), labels) for images, labels in loader]
        return torch.cat([part for part, _ in parts]), torch.cat([labels for _, labels in parts])

    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    regression.fit(*features("train"))
    return float(regression.score(*features(test_split(settings.data_dir))))


if __name__ == "__main__":
    main()
