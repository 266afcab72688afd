"""The methods of the grad-cam library, and what each of them needs to say what its authors meant."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam import SESS, AblationCAM, AblationLayer, FinerCAM, FullGrad, ScoreCAM, ShapleyCAM, base_cam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget, FinerWeightedTarget
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils.analysis.cam.layers import CamLayer
from utils.system.errors import UserError, suggestion

# The library's methods that cannot be used here, and why.
REFUSED = {"RefineCAM": "it multiplies the maps of several layers, and here each map is of one layer"}
CLASSLESS = {"EigenCAM", "FEM", "KPCA_CAM"}  # show what stands out in the activation, whichever class is asked about
AUG_SMOOTH_COST = 6  # maps of three brightnesses, each mirrored too
FINER_COMPARED = 3  # classes that FinerCAM tells the explained one from, as in the library


def cam_methods() -> dict[str, type]:
    """The methods by name: classes of the library that take target layers and release their hooks."""
    return {
        name: kind
        for name, kind in inspect.getmembers(pytorch_grad_cam, inspect.isclass)
        if "target_layers" in inspect.signature(kind).parameters and hasattr(kind, "__exit__")
    }


def choose_method(name: str, aug_smooth: bool = False, eigen_smooth: bool = False) -> type:
    """The class of that name; raises UserError where it is not there or not to be used so."""
    methods = cam_methods()
    if name in REFUSED:
        raise UserError(f"cam_method: {name} is not allowed; {REFUSED[name]}; choose from {', '.join(methods)}")
    if name not in methods:
        raise UserError(f"cam_method: {name!r} is not allowed; {suggestion(name, list(methods))}")
    if aug_smooth and not takes_aug_smooth(methods[name]):
        smooth = [other for other, method in methods.items() if takes_aug_smooth(method)]
        raise UserError(f"aug_smooth: true is not allowed; {name} has no such smoothing; it is in {', '.join(smooth)}")
    if eigen_smooth and methods[name] is FullGrad:
        raise UserError("eigen_smooth: true is not allowed; FullGrad would shrink its maps to an eighth of the image")
    return methods[name]


def takes_aug_smooth(method: type) -> bool:
    return "aug_smooth" in inspect.signature(method.__call__).parameters


def layers_of(method: type, layers: Sequence[CamLayer], image_size: int) -> Sequence[CamLayer]:
    """Those of the layers that a method looks at one by one; FullGrad adds up the gradients of all biases at once."""
    return [CamLayer("all layers", None, 3, (image_size, image_size))] if method is FullGrad else layers


@contextlib.contextmanager
def opened(method: type, model: nn.Module, layer: CamLayer) -> Iterator[Any]:
    """An instance of the method, whose hooks are released in the end.

    The library's own `with` would swallow an IndexError, and with it the maps that are missing then. Attention is
    computed in its plain form, which alone has the second derivatives that ShapleyCAM needs.
    """
    modules = [] if layer.module is None else [layer.module]
    arguments = {"reshape_transform": layer.as_map} if modules else {}
    if method is AblationCAM:
        arguments["ablation_layer"] = _ZeroedChannels(layer.form)
    patches = {"tqdm": _no_bars, "get_2d_projection": _upright, "get_2d_projection_kernel": _upright}
    with _replaced(patches), sdpa_kernel(SDPBackend.MATH):
        cam = ADAPTED.get(method, method)(model, modules, **arguments)
        handles = [module.register_forward_hook(_passed_on_as_a_copy) for module in modules]
        try:
            yield cam
        finally:
            for handle in handles:
                handle.remove()
            cam.__exit__(None, None, None)


def targets(method: type, model: nn.Module, inputs: Tensor, classes: Sequence[int]) -> list[Any]:
    """What is explained in each image (N, 3, H, W): a number made of its logits, for most methods that of the class.

    - FinerCAM: by how much its logit exceeds those of the classes with the most similar ones (Zhang et al. 2025,
      arXiv:2501.11309). Given a plain logit it would be GradCAM.
    - ShapleyCAM: the logit and its log-probability (Cai 2025, arXiv:2501.06261). Of a plain logit of a network of ReLUs
      the second derivative is zero, and ShapleyCAM would be GradCAM.
    - AblationCAM: the logit, raised to 1. It divides by this number, which turns the map of a negative logit around.
    """
    if method is ShapleyCAM:
        return [ClassifierOutputReST(index) for index in classes]
    if method not in (FinerCAM, AblationCAM):
        return [ClassifierOutputTarget(index) for index in classes]
    with torch.no_grad():
        logits = model(inputs)
    if method is AblationCAM:
        return [_RaisedLogit(index, row[index].item()) for index, row in zip(classes, logits, strict=True)]
    similar = (logits - logits.gather(1, torch.tensor(classes, device=logits.device)[:, None])).abs().argsort(1)
    return [
        FinerWeightedTarget(index, [other for other in row if other != index][:FINER_COMPARED], alpha=1)
        for index, row in zip(classes, similar.tolist(), strict=True)
    ]


def forward_passes(cam: Any, layer: CamLayer, inputs: Tensor) -> int:
    """How many forward passes of one image a map costs; 1 for all that are quick. A backward pass counts as two.

    ScoreCAM and AblationCAM try every channel; SESS scores and explains crops of the enlarged image.
    """
    if isinstance(cam, (ScoreCAM, AblationCAM)):
        return layer.channels
    if isinstance(cam, SESS):
        return 4 * len(cam.collect_patches(inputs[:1], *2 * [min(inputs.shape[2:])])[0])
    return 1


@contextlib.contextmanager
def _replaced(makers: dict[str, Callable[[Any], Any]]) -> Iterator[None]:
    """In all modules of the library, what has one of these names is replaced by what its maker makes of it."""
    modules = [module for module in vars(pytorch_grad_cam).values() if inspect.ismodule(module)]
    originals = [(module, name, vars(module)[name]) for module in modules for name in makers if name in vars(module)]
    for module, name, original in originals:
        setattr(module, name, makers[name](original))
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _no_bars(tqdm: Any) -> Any:
    """Instead of the module tqdm, with which the library draws a progress bar for each single image."""
    return SimpleNamespace(tqdm=iter)


def _upright(project: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The first principal component of weighted activations (N, C, h, w), with the sign of their sum.

    By itself its sign is arbitrary, and the maps of some images would be turned around.
    """

    def projected(activations: np.ndarray, *settings: Any) -> np.ndarray:
        maps, sums = project(activations, *settings), activations.sum(axis=1)
        sums = sums - sums.mean(axis=(1, 2), keepdims=True)
        return np.where((maps * sums).sum(axis=(1, 2), keepdims=True) < 0, -maps, maps)

    return projected


class _RaisedLogit:
    """A logit, raised by as much as makes it 1 in the image itself."""

    def __init__(self, index: int, logit: float):
        self.index, self.raised_by = index, 1 - logit

    def __call__(self, output: Tensor) -> Tensor:
        return output[..., self.index] + self.raised_by


def _passed_on_as_a_copy(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook behind the library's, whose activation the next module would otherwise overwrite."""
    return output.clone()


class _ZeroedChannels(AblationLayer):
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


class _AnyFormShapleyCAM(ShapleyCAM):
    """ShapleyCAM where an activation is no feature map: the library weights the channels of one all the same."""

    def get_cam_image(
        self, input_tensor, target_layer, targets, activations, grads, eigen_smooth: bool = False
    ) -> np.ndarray:
        weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        weighted = weights[:, :, None, None] * self.reshape_transform(activations).detach().cpu().numpy()
        held = self.activations_and_grads
        held.activations, held.gradients = [], []  # it would detach them in place, which views of others refuse
        return base_cam.get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)


ADAPTED = {ShapleyCAM: _AnyFormShapleyCAM}
