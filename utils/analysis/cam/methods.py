"""The methods of the grad-cam library, and what each of them needs to give the maps that its authors meant."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_grad_cam as grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget, FinerWeightedTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils.analysis.cam.layers import CamLayer
from utils.config.resolution import Size
from utils.system.errors import UserError, suggestion

# Methods of the library that cannot be used here, and why.
REFUSED = {"RefineCAM": "it multiplies the maps of several layers, and here each map is of one layer"}
CLASSLESS = {"EigenCAM", "FEM", "KPCA_CAM"}  # show what is salient in the activation, the same for every class
AUG_SMOOTH_COST = 6  # maps of three brightnesses, each mirrored too
FINER_COMPARED = 3  # classes that FinerCAM tells the explained one from, as in the library


def cam_methods() -> dict[str, type]:
    """The methods by name: classes of the library that take target layers and release their hooks."""
    return {
        name: kind
        for name, kind in inspect.getmembers(grad_cam, inspect.isclass)
        if "target_layers" in inspect.signature(kind).parameters and hasattr(kind, "__exit__")
    }


def choose_method(name: str, aug_smooth: bool = False, eigen_smooth: bool = False) -> type:
    """The class of that name. Raises UserError if it is unknown or cannot be used with these settings."""
    methods = cam_methods()
    if name in REFUSED:
        raise UserError(f"cam_method: {name} is not allowed; {REFUSED[name]}; choose from {', '.join(methods)}")
    if name not in methods:
        raise UserError(f"cam_method: {name!r} is not allowed; {suggestion(name, list(methods))}")
    if aug_smooth and not takes_aug_smooth(methods[name]):
        smooth = [other for other, method in methods.items() if takes_aug_smooth(method)]
        raise UserError(f"aug_smooth: true is not allowed; {name} has no such smoothing; it is in {', '.join(smooth)}")
    if eigen_smooth and methods[name] is grad_cam.FullGrad:
        raise UserError("eigen_smooth: true is not allowed; FullGrad would shrink its maps to an eighth of the image")
    return methods[name]


def takes_aug_smooth(method: type) -> bool:
    return "aug_smooth" in inspect.signature(method.__call__).parameters


def layers_of(method: type, layers: Sequence[CamLayer], image_size: Size) -> Sequence[CamLayer]:
    """The layers that a method explains one by one; FullGrad adds up the gradients of all biases at once."""
    return [CamLayer("all layers", None, 3, image_size)] if method is grad_cam.FullGrad else layers


@contextlib.contextmanager
def opened(method: type, model: nn.Module, layer: CamLayer) -> Iterator[Any]:
    """An instance of the method, whose hooks are released in the end.

    The library's own `with` would swallow an IndexError, and the maps would be missing. Attention is computed in its
    plain form, the only one with the second derivatives that ShapleyCAM needs.
    """
    modules = [] if layer.module is None else [layer.module]
    arguments: dict[str, Any] = {"reshape_transform": layer.as_map} if modules else {}
    if method is grad_cam.AblationCAM:
        arguments["ablation_layer"] = _ZeroedChannels(layer.form)
    if method in (grad_cam.FinerCAM, grad_cam.SESS):
        arguments["base_method"] = upright(grad_cam.GradCAM)
    else:
        method = upright(ADAPTED.get(method, method))
    with sdpa_kernel(SDPBackend.MATH):
        cam = method(model, modules, **arguments)
        handles = [module.register_forward_hook(_passed_on_as_a_copy) for module in modules]
        try:
            yield cam
        finally:
            for handle in handles:
                handle.remove()
            cam.__exit__(None, None, None)


def targets(method: type, model: nn.Module, inputs: Tensor, classes: Sequence[int]) -> list[Any]:
    """What is explained in each image (N, 3, H, W): a function of its logits, for most methods the logit of the class.

    - FinerCAM: by how much its logit exceeds those of the classes with the most similar ones (Zhang et al. 2025,
      arXiv:2501.11309). Given a plain logit it would be GradCAM.
    - ShapleyCAM: the logit and its log-probability (Cai 2025, arXiv:2501.06261). Of a plain logit of a network of ReLUs
      the second derivative is zero, and ShapleyCAM would be GradCAM.
    - AblationCAM: the logit, raised to 1. It divides by this number, which turns the map of a negative logit around.
    """
    if method is grad_cam.ShapleyCAM:
        return [ClassifierOutputReST(index) for index in classes]
    if method not in (grad_cam.FinerCAM, grad_cam.AblationCAM):
        return [ClassifierOutputTarget(index) for index in classes]
    with torch.no_grad():
        logits = model(inputs)
    if method is grad_cam.AblationCAM:
        return [_raised_logit(index, row[index].item()) for index, row in zip(classes, logits, strict=True)]
    similar = (logits - logits.gather(1, torch.tensor(classes, device=logits.device)[:, None])).abs().argsort(1)
    return [
        FinerWeightedTarget(index, [other for other in row if other != index][:FINER_COMPARED], alpha=1)
        for index, row in zip(classes, similar.tolist(), strict=True)
    ]


def forward_passes(cam: Any, layer: CamLayer, inputs: Tensor) -> int:
    """How many forward passes of one image a map costs; 1 for all quick methods. A backward pass counts as two.

    ScoreCAM and AblationCAM try every channel; SESS scores and explains crops of the enlarged image.
    """
    if isinstance(cam, (grad_cam.ScoreCAM, grad_cam.AblationCAM)):
        return layer.channels
    if isinstance(cam, grad_cam.SESS):
        return 4 * len(cam.collect_patches(inputs[:1], *2 * [min(inputs.shape[2:])])[0])
    return 1


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Silences stderr: ScoreCAM and AblationCAM draw a progress bar for every image, with no option against it."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def upright(method: type) -> type:
    """The method with principal components that have the sign of the sum over channels.

    By itself the sign of a component is arbitrary, and the maps of some images would be inverted.
    """
    return type(method.__name__, (_Upright, method), {})


class _Upright:
    """Mixed into a method; activations and gradients are (N, C, h, w), maps and sums (N, h, w)."""

    weights: np.ndarray | None

    def get_cam_weights(self, *inputs: Any) -> np.ndarray:
        if self.weights is None:  # asked for twice, and costly or random
            self.weights = super().get_cam_weights(*inputs)  # type: ignore[misc]
        return self.weights

    def get_cam_image(
        self, input_tensor, target_layer, targets, activations, grads, eigen_smooth: bool = False
    ) -> np.ndarray:
        self.weights = None
        image = super().get_cam_image  # type: ignore[misc]
        maps = image(input_tensor, target_layer, targets, activations, grads, eigen_smooth)
        if isinstance(self, (grad_cam.EigenCAM, grad_cam.KPCA_CAM)):
            sums = activations.sum(axis=1)
        elif isinstance(self, grad_cam.EigenGradCAM):
            sums = (grads * activations).sum(axis=1)
        elif eigen_smooth:
            sums = image(input_tensor, target_layer, targets, activations, grads, False)
        else:
            return maps
        sums = sums - sums.mean(axis=(1, 2), keepdims=True)
        return np.where((maps * sums).sum(axis=(1, 2), keepdims=True) < 0, -maps, maps)


def _raised_logit(index: int, logit: float) -> Callable[[Tensor], Tensor]:
    """A logit, shifted so that it is 1 for the image itself."""
    raised_by = 1 - logit
    return lambda output: output[..., index] + raised_by


def _passed_on_as_a_copy(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook after the library's, whose activation the next module would otherwise overwrite."""
    return output.clone()


class _ZeroedChannels(grad_cam.AblationLayer):
    """Sets a channel to zero (Desai and Ramaswamy 2020), in activations of any form.

    The library's own layer sets it to minus ten million wherever an activation is negative, as behind a GELU.
    """

    def __init__(self, form: str):
        super().__init__()
        self.axis = 1 if form == "channels first" else -1

    def set_next_batch(self, input_batch_index: int, activations: Tensor, num_channels_to_ablate: int) -> None:
        self.activations = activations[[input_batch_index] * num_channels_to_ablate]

    def __call__(self, x: Tensor) -> Tensor:
        output = self.activations
        channels = torch.from_numpy(self.indices[: len(output)]).long()
        output.movedim(self.axis, 1)[torch.arange(len(output)), channels] = 0
        return output


class _AnyFormShapleyCAM(grad_cam.ShapleyCAM):
    """ShapleyCAM for activations of any form: the library assumes feature maps when it weights the channels."""

    def get_cam_image(
        self, input_tensor, target_layer, targets, activations, grads, eigen_smooth: bool = False
    ) -> np.ndarray:
        weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        weighted = weights[:, :, None, None] * self.reshape_transform(activations).detach().cpu().numpy()
        held = self.activations_and_grads
        held.activations, held.gradients = [], []  # it would detach them in place, which views of others refuse
        return get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)


ADAPTED = {grad_cam.ShapleyCAM: _AnyFormShapleyCAM}
