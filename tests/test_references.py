"""What no other file compares with an independent reference: each formula as its paper has it, in NumPy's float64."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from data.preprocessing import to_input
from data.sources import load_dataset
from models.drop_path import Draws
from tests.optimizers import create_optimizer
from tests.processes import tiny_config
from train_accelerate import _derived_seed, train_step
from utils.analysis.sections.calibration import fit_temperature, negative_log_likelihood
from utils.training import optimizers
from utils.training.loading import create_train_loader
from utils.training.lr_finder import range_test
from utils.training.meters import Meters
from utils.training.mixing import Mixing
from utils.training.optimizers import set_learning_rate
from utils.training.plan import Plan
from utils.training.profiling import StepProfiler
from utils.training.progress import TrainState
from utils.training.run import Run

Arrays = dict[str, np.ndarray]


# -- the formulas -----------------------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def smoothed(shares: np.ndarray, smoothing: float) -> np.ndarray:
    """Szegedy et al. 2016, arXiv:1512.00567, section 7: all classes share a part of the target evenly."""
    return (1 - smoothing) * shares + smoothing / shares.shape[1]


def linear_gradients(weights: Arrays, inputs: np.ndarray, targets: np.ndarray) -> Arrays:
    """Of the mean cross-entropy of softmax(inputs @ weight.T + bias): the outer product of error and input."""
    error = np.exp(log_softmax(inputs @ weights["weight"].T + weights["bias"])) - targets
    return {"weight": error.T @ inputs / len(inputs), "bias": error.mean(0)}


def clipped(gradients: Arrays, largest: float | None) -> Arrays:
    """Pascanu et al. 2013, arXiv:1211.5063, algorithm 1, over all parameters as one vector."""
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    factor = largest / norm if largest is not None and norm > largest else 1.0
    return {name: factor * gradient for name, gradient in gradients.items()}


class Sgd:
    """Sutskever et al. 2013, with the decay as an L2 penalty and the momentum's rate outside, as torch has it."""

    def __init__(self, momentum: float, nesterov: bool):
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity: Arrays = {}

    def update(self, name: str, weight: np.ndarray, gradient: np.ndarray, lr: float, decay: float) -> np.ndarray:
        gradient = gradient + decay * weight
        velocity = self.velocity[name] = self.momentum * self.velocity.get(name, 0.0) + gradient
        return weight - lr * (gradient + self.momentum * velocity if self.nesterov else velocity)


class AdamW:
    """Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2: the decay goes past the moments."""

    def __init__(self, beta1: float, beta2: float = 0.999, epsilon: float = 1e-8):
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.moments: dict[str, tuple] = {}

    def update(self, name: str, weight: np.ndarray, gradient: np.ndarray, lr: float, decay: float) -> np.ndarray:
        step, first, second = self.moments.get(name, (0, 0.0, 0.0))
        step += 1
        first = self.beta1 * first + (1 - self.beta1) * gradient
        second = self.beta2 * second + (1 - self.beta2) * gradient**2
        self.moments[name] = step, first, second
        first, second = first / (1 - self.beta1**step), second / (1 - self.beta2**step)
        return weight - lr * first / (np.sqrt(second) + self.epsilon) - lr * decay * weight


def reference(optimizer: str, momentum: float, nesterov: bool) -> Sgd | AdamW:
    return Sgd(momentum, nesterov) if optimizer == "sgd" else AdamW(momentum)


def in_float64(model: nn.Module) -> Arrays:
    return {name: parameter.detach().double().numpy().copy() for name, parameter in model.named_parameters()}


# -- a step of the training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("sgd", {"nesterov": True, "label_smoothing": 0.1}),
        ("sgd", {"nesterov": False, "grad_clip_norm": 0.2, "micro_batch_size": 20}),
        ("sgd", {"momentum": 0.0, "mixup": 1.0, "label_smoothing": 0.2}),
        ("adamw", {"label_smoothing": 0.1, "cutmix": 1.0}),
        ("adamw", {"decay_norm_and_bias": True, "grad_clip_norm": 1e6}),
    ],
)
def test_steps_of_a_linear_model_are_those_of_the_formulas(tmp_path: Path, optimizer, changes):
    """From pixels to weights: normalisation, targets, loss, gradient, clipping, decay and momentum."""
    options = {"decay_norm_and_bias": False, "weight_decay": 0.1, "momentum": 0.9, **changes}
    config = tiny_config(tmp_path, image_size=8, optimizer=optimizer, augment_backend="tensor", **options)
    accelerator, data = Accelerator(cpu=True), load_dataset("digits", "", 8)
    torch.manual_seed(0)
    linear = nn.Linear(3 * 8 * 8, 10)
    model = nn.Sequential(nn.Flatten(), linear)
    loader = create_train_loader(config, data, accelerator)
    ddp_model, prepared = accelerator.prepare(model, optimizers.create_optimizer(config, model))
    run = Run(
        config=config,
        accelerator=accelerator,
        directory=None,
        data=data,
        loader=loader,
        mean=torch.tensor(data.mean),
        std=torch.tensor(data.std),
        plan=Plan(config, len(data.train), data.geometry.size),
        model=model,
        ddp_model=ddp_model,
        optimizer=prepared,
        arguments={},
        micro_batch_size=config.micro_batch_size,
        teacher=None,
        freezing=None,
        draws=Draws(model, config.seed),
        mixing=Mixing(config.mixup, config.cutmix, 10) if config.mixup or config.cutmix else None,
        ema=None,
        lookahead=None,
        meters=Meters(accelerator.device),
        profiler=StepProfiler(None),
        state=TrainState(),
    )

    weights, theirs = in_float64(linear), reference(optimizer, config.momentum, config.nesterov)
    mean, std = np.array(data.mean), np.array(data.std)
    for step, batch in enumerate(itertools.islice(loader.epoch(0), 3)):
        rate = 0.01 * (step + 1)
        loss, correct, _ = train_step(run, batch, rate, step)
        inputs = (batch.images.numpy() / 255 - mean) / std
        inputs, shares = inputs.transpose(0, 3, 1, 2), np.eye(10)[batch.labels.numpy()]
        if run.mixing:
            tensors = torch.from_numpy(inputs), batch.labels
            inputs, shares = (mixed.numpy() for mixed in run.mixing(*tensors, _derived_seed(config.seed, step, 0, 1)))
        inputs, shares = inputs.reshape(len(inputs), -1), shares.astype(np.float64)
        logits = inputs @ weights["weight"].T + weights["bias"]
        assert loss.item() == pytest.approx(-(shares * log_softmax(logits)).sum(), rel=1e-5)
        assert correct.item() == (logits.argmax(1) == shares.argmax(1)).sum()

        gradients = clipped(
            linear_gradients(weights, inputs, smoothed(shares, config.label_smoothing)), config.grad_clip_norm
        )
        for name, gradient in gradients.items():
            decay = config.weight_decay if name == "weight" or config.decay_norm_and_bias else 0.0
            weights[name] = theirs.update(name, weights[name], gradient, rate, decay)
        for name, found in in_float64(linear).items():
            np.testing.assert_allclose(found, weights[name], rtol=0, atol=1e-5 * rate + 1e-7, err_msg=name)


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
@pytest.mark.parametrize(("optimizer", "nesterov"), [("sgd", True), ("sgd", False), ("adamw", False)])
def test_norm_biases_step_at_their_own_rate_and_decay_as_all_others(optimizer, nesterov, decay_norm_and_bias):
    """A bias's rate is `factor` times lr, its decay per step still lr times weight_decay."""
    torch.manual_seed(0)
    model, factor, decay = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 16.0, 0.1
    nn.init.uniform_(model[1].bias)
    ours = create_optimizer(optimizer, model, 0.8, nesterov, decay, decay_norm_and_bias, factor)
    weights, theirs = in_float64(model), reference(optimizer, 0.8, nesterov)
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        rate = 0.01 / (step + 1)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_learning_rate(ours, rate)
        ours.step()
        for name, parameter in model.named_parameters():
            lr_factor = factor if name == "1.bias" else 1.0
            decayed = decay / lr_factor if decay_norm_and_bias or name == "0.weight" else 0.0
            gradient = parameter.grad.double().numpy()
            weights[name] = theirs.update(name, weights[name], gradient, lr_factor * rate, decayed)
    for name, found in in_float64(model).items():
        np.testing.assert_allclose(found, weights[name], rtol=1e-5, atol=1e-6, err_msg=name)


# -- images at another size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "size"), [(32, 16), (32, 20), (32, 24), (10, 7), (9, 8), (8, 12)])
def test_images_are_scaled_by_adaptive_average_pooling(height, size):
    """Whole pixels in windows that overlap where the size does not divide the height, so not exactly areas."""
    images = np.random.default_rng(0).integers(0, 256, (2, height, height, 3), dtype=np.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    windows = [slice(math.floor(i * height / size), math.ceil((i + 1) * height / size)) for i in range(size)]
    pixels = (images / 255 - mean) / std
    expected = np.array([[pixels[:, rows, columns].mean((1, 2)) for columns in windows] for rows in windows])
    found = to_input(torch.from_numpy(images), torch.tensor(mean), torch.tensor(std), size=size)
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 3, 0, 1), rtol=1e-5, atol=1e-6)


# -- calibration ------------------------------------------------------------------------------------------------------


def test_cross_entropy_and_its_best_temperature_are_those_of_the_formulas():
    """Guo et al. 2017, arXiv:1706.04599. At the best T the mean logit of the true class is the mean expected logit: the
    derivative of the loss by 1/T vanishes there, and nowhere else, since the loss is convex in 1/T."""
    generator = np.random.default_rng(0)
    logits = (3 * generator.standard_normal((800, 10))).astype(np.float32)
    labels = np.where(generator.random(800) < 0.6, logits.argmax(1), generator.integers(0, 10, 800))
    exact, rows = logits.astype(np.float64), np.arange(800)
    assert negative_log_likelihood(logits, labels) == pytest.approx(-log_softmax(exact)[rows, labels].mean(), rel=1e-12)
    temperature = fit_temperature(logits, labels)
    expected = (np.exp(log_softmax(exact / temperature)) * exact).sum(1)
    assert temperature > 1.2
    assert exact[rows, labels].mean() == pytest.approx(expected.mean(), abs=1e-3)


# -- range test -------------------------------------------------------------------------------------------------------


def test_range_test_smooths_with_an_unbiased_exponential_mean_over_even_steps_of_the_log():
    """Kingma and Ba 2015, arXiv:1412.6980, section 3: the mean of n losses weighs them by 0.9**(n - 1 - k)."""
    losses = (2 + np.cos(np.arange(40) / 6)).tolist()
    given = iter(losses)
    found = range_test(lambda rate: next(given), 0.5, lowest=1e-3, highest=1.0, steps=40)
    np.testing.assert_allclose(found.lrs, 10 ** np.linspace(-3, 0, 40), rtol=1e-12)
    for count, smooth in enumerate(found.smoothed, 1):
        weights = 0.9 ** np.arange(count)[::-1]
        assert smooth == pytest.approx(np.average(losses[:count], weights=weights), rel=1e-12)
    assert found.suggestion == 0.5 * found.lrs[int(np.argmin(found.smoothed))]
