"""Averages of the weights over the training: EMA, which is evaluated, and Lookahead, which is trained on.

Both are functions of the step beside the average itself, which is in the checkpoint.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """A copy of a model that is pulled towards it, weights and norm statistics alike."""

    def __init__(self, model: nn.Module):
        self._keep = 0.0
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self._averaged.n_averaged += 1  # it begins as a copy of the model

    @property
    def model(self) -> nn.Module:
        return self._averaged.module

    def _pull(self, model: nn.Module, keep: float) -> None:
        """average = keep * average + (1 - keep) * model."""
        self._keep = keep
        self._averaged.update_parameters(model)

    @torch.no_grad()
    def _mix(self, average: Tensors, current: Tensors, _: Tensor | int) -> None:
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, 1 - self._keep)
        else:  # the number of batches that a norm layer has seen
            torch._foreach_copy_(average, current)


class Ema(Average):
    """Exponential moving average of the weights (Polyak and Juditsky 1992), evaluated in place of the last weights.

    The decay rises to its final value as (1 + n) / (10 + n) over the first n updates, so that the average does not
    remember the random start.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def update(self, model: nn.Module, updates: int) -> None:
        """Takes in the weights after an optimizer step; `updates` were taken in since the average began."""
        self._pull(model, min(self.decay, (1 + updates) / (10 + updates)))


class Lookahead(Average):
    """Lookahead (Zhang et al. 2019, arXiv:1907.08610) with the schedule of airbench (Jordan 2024, arXiv:2404.00498).

    Every few steps the slow weights go towards the trained ones, which then go on from the slow ones. The slow weights
    keep `decay` per step at the end of training and, by a cubic ramp, next to nothing in its first half. The last step
    ends with the slow weights.
    """

    def __init__(self, model: nn.Module, every: int, decay: float):
        super().__init__(model)
        self.every, self.decay = every, decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, total_steps: int) -> None:
        """To be called after every optimizer step, with the number of finished ones; changes `model` in place."""
        if step % self.every and step < total_steps:
            return
        due = step % self.every == 0
        keep = self.decay**self.every * (step / total_steps) ** 3 if due else 1.0
        self._pull(model, keep)
        model.load_state_dict(self.model.state_dict())
