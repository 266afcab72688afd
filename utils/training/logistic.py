"""A head that fits features: multinomial logistic regression, its L2 strength chosen by cross-validation.

The start of fine-tuning by Kumar et al. 2022 ("LP-FT", arXiv:2202.10054): a random head sends gradients through the
backbone that destroy what it knows.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

# scikit-learn's C, the inverse strength of the penalty on features with a mean variance of 1; from strong to weak.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
FIXED = 1e-3  # if fewer than two classes have two images
FOLDS = 5
CHOSEN_ON = 5_000  # images, at most, that C is chosen on
ITERATIONS, TOLERANCE = 200, 1e-3  # of L-BFGS: the largest entry of the gradient of the mean loss
ABSENT = 10.0  # by how much the logit of a class without training images is below the others' bias


@dataclass(frozen=True)
class Fit:
    """A head for the logits weight @ x + bias of features x, and how it was found.

    Attributes:
        weight: float32 (classes, features).
        bias: float32 (classes,), 0 if the head has none.
        strength: C.
        folds: of the cross-validation that chose it; 0: there are too few images.
        accuracy: of the cross-validation; None without one.
        chosen_on: images that it was chosen on.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    folds: int
    accuracy: float | None
    chosen_on: int

    def describe(self, images: int) -> str:
        """How C was chosen, in words; `images`: of the training split."""
        if self.accuracy is None:
            return f"C {self.strength:g}, fixed: too few images to choose it"
        part = f" on {self.chosen_on} of the images" if self.chosen_on < images else ""
        return f"C {self.strength:g} by {self.folds}-fold cross-validation{part} ({self.accuracy:.2%})"


def fit_head(features: np.ndarray, labels: np.ndarray, classes: int, seed: int, has_bias: bool = True) -> Fit:
    """Fits a head to the features of the training images, deterministically.

    For the fit features are centred and all divided by one number, so that C means the same for all weights; what is
    returned undoes it. C is chosen by stratified k-fold cross-validation: from strong to weak, until the loss, which
    varies less than the accuracy, rises; of many images on a stratified part of them. All views of an image are on one
    side of a fold, and weigh as much as one image together.

    Args:
        features: float32 (views, images, features), finite; the first view, without augmentation, is the one that is
            predicted in the cross-validation.
        labels: int64 (images,), of classes 0 to classes - 1, which need not all occur.
        seed: of the folds.
        has_bias: whether logits may have a constant part.
    """
    flat = features.reshape(-1, features.shape[-1])
    mean = flat.mean(0, dtype=np.float64) if has_bias else np.zeros(flat.shape[1])
    scaled = features - mean.astype(np.float32)
    spread = float(np.sqrt(np.square(scaled).mean(dtype=np.float64))) or 1.0
    scaled /= spread
    shape = (classes, flat.shape[1])
    present = np.unique(labels)
    if len(present) < 2:
        return Fit(np.zeros(shape, np.float32), np.zeros(classes, np.float32), FIXED, 0, None, 0)
    strength, folds, accuracy, chosen_on = _choose_strength(scaled, labels, seed, has_bias)
    model = _regression(has_bias)
    _fit(model, strength, scaled, labels)
    coefficients, intercept = _rows(model)
    weight, bias = np.zeros(shape), np.full(classes, intercept.min() - ABSENT if has_bias else 0.0)
    weight[present] = coefficients / spread
    bias[present] = intercept
    bias -= weight @ mean
    return Fit(weight.astype(np.float32), bias.astype(np.float32), strength, folds, accuracy, chosen_on)


def _choose_strength(
    scaled: np.ndarray, labels: np.ndarray, seed: int, has_bias: bool
) -> tuple[float, int, float | None, int]:
    """C, the folds and the accuracy of the cross-validation, and the images that it was chosen on."""
    from scipy.special import log_softmax
    from sklearn.model_selection import StratifiedKFold, train_test_split

    if len(labels) > CHOSEN_ON:
        try:
            chosen, _ = train_test_split(
                np.arange(len(labels)), train_size=CHOSEN_ON, stratify=labels, random_state=seed
            )
        except ValueError:  # more classes than images to choose, or one of a single image
            chosen = np.random.default_rng(seed).permutation(len(labels))[:CHOSEN_ON]
        chosen.sort()
        scaled, labels = scaled[:, chosen], labels[chosen]
    # Classes with fewer images than folds are missing in some; two have enough, so that each fit tells two apart.
    folds = min(FOLDS, int(np.sort(np.bincount(labels))[-2]))
    if folds < 2:
        return FIXED, 0, None, len(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about those classes
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))
    models = [_regression(has_bias, warm=True) for _ in parts]
    best = (math.inf, STRENGTHS[0], 0.0)
    for strength in STRENGTHS:
        loss, correct = 0.0, 0
        for (rest, held_out), model in zip(parts, models, strict=True):
            _fit(model, strength, scaled[:, rest], labels[rest])
            coefficients, intercept = _rows(model)
            logs = log_softmax(scaled[0, held_out] @ coefficients.T + intercept, axis=1)
            true = np.searchsorted(model.classes_, labels[held_out])
            known = model.classes_.take(true, mode="clip") == labels[held_out]  # else the class is missing in `rest`
            loss -= logs[np.flatnonzero(known), true[known]].sum(dtype=np.float64)
            correct += int((model.classes_[logs.argmax(1)] == labels[held_out]).sum())
        if loss >= best[0]:
            break
        best = (loss, strength, correct / len(labels))
    return best[1], folds, best[2], len(labels)


def _regression(has_bias: bool, warm: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(fit_intercept=has_bias, max_iter=ITERATIONS, tol=TOLERANCE, warm_start=warm)


def _fit(model: Any, strength: float, scaled: np.ndarray, labels: np.ndarray) -> None:
    """Fits all views (views, images, features); those of an image weigh as much as one."""
    from sklearn.exceptions import ConvergenceWarning

    model.C = strength / len(scaled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the loss changes little by then
        model.fit(scaled.reshape(-1, scaled.shape[-1]), np.tile(labels, len(scaled)))


def _rows(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (classes, features) and intercepts (classes,) of the classes that the model was fitted to."""
    coefficients, intercept = model.coef_, np.broadcast_to(model.intercept_, len(model.coef_))
    if len(coefficients) == 1:  # of two classes scikit-learn has the second against the first
        coefficients, intercept = (np.concatenate([-row / 2, row / 2]) for row in (coefficients, intercept))
    return coefficients, intercept
