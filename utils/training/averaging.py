"""Averages of the weights over the training: EMA, which is evaluated, and Lookahead, which training continues from.

The average itself is in the checkpoint; all else is a function of the step.
"""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """A copy of a model that is pulled towards it, weights and norm statistics alike.

    Instead of torch's AveragedModel, which at every update waits for the device to read a counter.
    """

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model)

    @torch.no_grad()
    def _pull(self, model: nn.Module, keep: float) -> None:
        """average = keep * average + (1 - keep) * model."""
        average, current = self.model.state_dict(), model.state_dict()
        mixed = [name for name, tensor in average.items() if tensor.is_floating_point()]
        get_ema_multi_avg_fn(keep)([average[name] for name in mixed], [current[name] for name in mixed], 0)
        for name in average.keys() - set(mixed):  # the number of batches that a norm layer has seen
            average[name].copy_(current[name])


class Ema(Average):
    """Exponential moving average of the weights (Polyak and Juditsky 1992), evaluated in place of the last weights.

    The decay rises to its final value as (1 + n) / (10 + n) over the first n updates, so that the average does not
    remember the random start.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def update(self, model: nn.Module, updates: int) -> None:
        """Adds the weights after an optimizer step to an average of `updates` ones."""
        self._pull(model, min(self.decay, (1 + updates) / (10 + updates)))


class Lookahead(Average):
    """Lookahead (Zhang et al. 2019, arXiv:1907.08610) with the schedule of airbench (Jordan 2024, arXiv:2404.00498).

    Every few steps the slow weights are pulled towards the trained ones, which then continue from the slow ones. The
    slow weights keep `decay` per step at the end of training and, by a cubic ramp, next to nothing in its first half.
    The last step of all epochs ends with the slow weights. A run that max_steps ends early reports the trained weights,
    also between two pulls, so that it resumes exactly.
    """

    def __init__(self, model: nn.Module, every: int, decay: float):
        super().__init__(model)
        self.every, self.decay = every, decay

    def update(self, model: nn.Module, step: int, total_steps: int) -> None:
        """To be called after every optimizer step, with the number of finished steps; changes `model` in place."""
        if step % self.every and step < total_steps:
            return
        due = step % self.every == 0
        keep = self.decay**self.every * (step / total_steps) ** 3 if due else 1.0
        self._pull(model, keep)
        model.load_state_dict(self.model.state_dict())
