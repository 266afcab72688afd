"""The epochs in which only the head is trained (`freeze_epochs`), before all of the model is."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from models import classifier
from utils.training.groups import head_parameters


class Freezing:
    """What of a model is trained: its head, or everything that its optimizer holds.

    A frozen parameter has no gradient, so the optimizer neither updates nor decays it and makes no state for it: its
    first step after that is AdamW's first. The frozen part computes as in evaluation, without dropout and with the norm
    statistics that it has. As nothing in it needs a gradient, its activations are not stored and no backward pass goes
    through it.

    Attributes:
        is_on: whether only the head is trained. It is a function of the step (Plan.trains_all), so nothing of this is
            in a checkpoint.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer):
        self.is_on = False
        self._model = model
        self._head = head_parameters(model)
        head = set(self._head)
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._rest = [parameter for parameter in held if parameter not in head]

    def set(self, on: bool) -> None:
        """Freezes everything but the head, or nothing. To be called before the first step of every epoch."""
        if on == self.is_on:
            return
        self.is_on = on
        for parameter in self._rest:
            parameter.requires_grad_(not on)
        self._model.train(not on)
        classifier(self._model).train()

    @torch.no_grad()
    def average_gradients(self, accelerator: Accelerator) -> None:
        """While it is on, replaces the head's gradients by their means over the ranks. DDP, which waits for all
        parameters that needed a gradient when it was made, must not do so then (Accelerator.no_sync)."""
        if not self.is_on or accelerator.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in self._head if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        means = accelerator.reduce(flat, "mean").split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
