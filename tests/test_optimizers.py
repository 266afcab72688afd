"""Optimizers: what is decayed and how fast it learns, Muon, and a state by name that continues bit for bit."""

import copy
import math
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import create_model
from models.saved import tensors_from_bytes, tensors_to_bytes
from tests.optimizers import create_optimizer
from utils.system.errors import UserError
from utils.training.muon import COEFFICIENTS, REACH, Muon, _by_gram, _directly, orthogonalised
from utils.training.optimizers import (
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def small_model(channels_last: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, bias=False),
            norm1=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(16, 8, 3, bias=False),
            flatten=nn.Flatten(),
            fc=nn.Linear(8 * 4 * 4, 10),
        )
    )
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 8, 8, generator=generator)
        labels = torch.randint(10, (4,), generator=generator)
        set_learning_rate(optimizer, 0.01 * (step + 1))
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def decays(model: nn.Module, **options) -> dict[str, float]:
    optimizer = create_optimizer("sgd", model, weight_decay=0.1, **options)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: decay[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_weight_decay_spares_norm_and_bias_if_asked(norm):
    model = create_model("resnet18", 10, width=16, norm=norm)
    spared = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) or name == "bias"
    }
    found = decays(model, decay_norm_and_bias=False)
    assert len(spared) == 41
    assert {name for name, decay in found.items() if decay == 0} == spared
    assert {decay for name, decay in found.items() if name not in spared} == {0.1}


def test_weight_decay_is_for_all_parameters_if_not_asked():
    assert set(decays(small_model()).values()) == {0.1}


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_weight_decay_shrinks_what_it_should_and_nothing_else(name):
    """One step with a gradient of zero: only decay moves a weight."""
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = create_optimizer(name, model, momentum=0.0, weight_decay=0.1, decay_norm_and_bias=False)
    set_learning_rate(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.conv1.weight, before["conv1.weight"] * 0.95)
    assert torch.equal(model.norm1.weight, before["norm1.weight"])
    assert torch.equal(model.fc.bias, before["fc.bias"])


def test_options_reach_the_optimizer():
    sgd = create_optimizer("sgd", small_model(), momentum=0.8, nesterov=True)
    assert (type(sgd), sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (torch.optim.SGD, 0.8, True)
    assert create_optimizer("sgd", small_model(), momentum=0.8, nesterov=False).defaults["nesterov"] is False
    adamw = create_optimizer("adamw", small_model(), momentum=0.8)
    assert (type(adamw), adamw.defaults["betas"]) == (torch.optim.AdamW, (0.8, 0.999))
    assert type(create_optimizer("muon", small_model(), momentum=0.8)) is Muon


def test_sgd_without_momentum_is_possible():
    model = small_model()
    optimizer = create_optimizer("sgd", model, momentum=0.0, nesterov=True)
    train(model, optimizer, range(1))
    assert optimizer_tensors(optimizer, model) == {}


def test_learning_rate_reaches_every_group():
    optimizer = create_optimizer("sgd", small_model(), weight_decay=0.1, decay_norm_and_bias=False)
    set_learning_rate(optimizer, 0.123)
    assert [group["lr"] for group in optimizer.param_groups] == [0.123, 0.123]


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_frozen_parameters_are_left_out(name):
    model = small_model()
    model.conv1.weight.requires_grad_(False)
    model.norm1.bias.requires_grad_(False)
    optimizer = create_optimizer(name, model, weight_decay=0.1)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(2))
    assert torch.equal(model.conv1.weight, before["conv1.weight"])
    assert torch.equal(model.norm1.bias, before["norm1.bias"])
    assert not torch.equal(model.conv2.weight, before["conv2.weight"])
    assert not {name.split("/")[0] for name in optimizer_tensors(optimizer, model)} & {"conv1.weight", "norm1.bias"}


# -- the biases of norm layers ----------------------------------------------------------------------------------------


def by_parameter(optimizer: torch.optim.Optimizer, model: nn.Module, key: str) -> dict[str, float]:
    values = {id(parameter): group[key] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: values[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_norm_biases_and_nothing_else_learn_at_their_own_rate(name, norm):
    model = create_model("resnet18", 10, width=16, norm=norm)
    optimizer = create_optimizer(name, model, weight_decay=0.1, norm_bias_lr_factor=64.0)
    set_learning_rate(optimizer, 0.5)
    rates = by_parameter(optimizer, model, "lr")
    fast = {name for name, rate in rates.items() if rate == 32.0}
    assert fast == {
        f"{path}.bias" for path, module in model.named_modules() if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))
    }
    assert len(fast) == 20
    assert "fc.bias" not in fast
    assert {rate for name, rate in rates.items() if name not in fast} == {0.5}


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_faster_norm_biases_are_not_decayed_faster(name, decay_norm_and_bias):
    """One step with a gradient of zero: decay moves a weight by rate times decay, whatever its own rate."""
    model = small_model()
    with torch.no_grad():
        model.norm1.bias.fill_(1.0)
    optimizer = create_optimizer(
        name,
        model,
        momentum=0.0,
        weight_decay=0.1,
        decay_norm_and_bias=decay_norm_and_bias,
        norm_bias_lr_factor=64.0,
    )
    set_learning_rate(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expected = torch.full((16,), 0.95 if decay_norm_and_bias else 1.0)
    torch.testing.assert_close(model.norm1.bias.detach(), expected)
    torch.testing.assert_close(model.norm1.weight.detach(), expected)


def test_norm_biases_move_by_their_factor():
    moved = []
    for factor in (1.0, 64.0):
        model = small_model()
        optimizer = create_optimizer("sgd", model, momentum=0.0, norm_bias_lr_factor=factor)
        before = copy.deepcopy(model.state_dict())
        train(model, optimizer, range(1))
        moved.append({name: model.state_dict()[name] - before[name] for name in ("norm1.bias", "norm1.weight")})
    torch.testing.assert_close(moved[1]["norm1.bias"], 64 * moved[0]["norm1.bias"])
    torch.testing.assert_close(moved[1]["norm1.weight"], moved[0]["norm1.weight"])


# -- the state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_restored_state_continues_bit_for_bit(tmp_path, name, decay_norm_and_bias, channels_last):
    def fresh():
        model = small_model(channels_last)
        return model, create_optimizer(
            name, model, nesterov=True, weight_decay=0.01, decay_norm_and_bias=decay_norm_and_bias
        )

    straight, straight_optimizer = fresh()
    train(straight, straight_optimizer, range(4))

    first, first_optimizer = fresh()
    train(first, first_optimizer, range(2))
    weights = tensors_to_bytes(first.state_dict())
    state = tensors_to_bytes(optimizer_tensors(first_optimizer, first))
    second, second_optimizer = fresh()
    second.load_state_dict(tensors_from_bytes(weights, tmp_path))
    load_optimizer_tensors(second_optimizer, second, tensors_from_bytes(state, tmp_path))
    train(second, second_optimizer, range(2, 4))

    for key, tensor in straight.state_dict().items():
        assert torch.equal(second.state_dict()[key], tensor), key
    ours, theirs = optimizer_tensors(second_optimizer, second), optimizer_tensors(straight_optimizer, straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_without_the_state_training_would_go_another_way(tmp_path):
    """The promise above is worth something: momentum matters after two steps."""
    model = small_model()
    optimizer = create_optimizer("sgd", model)
    train(model, optimizer, range(2))
    other = copy.deepcopy(model)
    train(model, optimizer, range(2, 3))
    train(other, create_optimizer("sgd", other), range(2, 3))
    assert not torch.equal(model.conv1.weight, other.conv1.weight)


def test_state_is_named_by_parameter():
    model = small_model()
    optimizer = create_optimizer("adamw", model)
    train(model, optimizer, range(1))
    names = {name for name, _ in model.named_parameters()}
    assert optimizer_tensors(optimizer, model).keys() == {
        f"{name}/{key}" for name in names for key in ("exp_avg", "exp_avg_sq", "step")
    }


def test_loading_forgets_what_was_there():
    model = small_model()
    optimizer = create_optimizer("sgd", model)
    train(model, optimizer, range(1))
    load_optimizer_tensors(optimizer, model, {})
    assert optimizer_tensors(optimizer, model) == {}


@pytest.mark.parametrize(
    "tensors",
    [
        {"conv1.weight/momentum_buffer": torch.zeros(3)},
        {"conv1.weight/momentum_buffer": torch.zeros(16, 3, 3, 4)},
        {"nowhere.weight/momentum_buffer": torch.zeros(16, 3, 3, 3)},
        {"momentum_buffer": torch.zeros(16, 3, 3, 3)},
    ],
)
def test_state_of_another_model_is_refused(tensors):
    model = small_model()
    with pytest.raises(UserError, match=f"resume: the optimizer state {next(iter(tensors))} does not fit the model"):
        load_optimizer_tensors(create_optimizer("sgd", model), model, tensors)


def test_unknown_optimizer_names_what_there_is():
    with pytest.raises(UserError, match=r"optimizer: 'lion' is not allowed; choose from sgd, adamw, muon"):
        create_optimizer("lion", small_model())


# -- Muon -------------------------------------------------------------------------------------------------------------


SHAPES = [(16, 8, 3, 3), (64, 4, 1, 1), (8, 32, 5, 5), (12, 3, 2, 2), (256, 3, 3, 3)]


def set_gradients(model: nn.Module, seed: int) -> None:
    """Gradients of noise, in the layout of the parameters, the same whichever that is."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def as_matrix(filters: torch.Tensor) -> torch.Tensor:
    return filters.detach().flatten(1).clone()


def muon_step(model: nn.Module, rate: float, gradient: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """What one step adds to each parameter; without a gradient of the weight, that is noise too."""
    optimizer = create_optimizer("muon", model)
    set_learning_rate(optimizer, rate)
    before = copy.deepcopy(dict(model.named_parameters()))
    set_gradients(model, 0)
    if gradient is not None:
        model.weight.grad.copy_(gradient)
    optimizer.step()
    return {name: parameter.detach() - before[name].detach() for name, parameter in model.named_parameters()}


def matrix_of(rows: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    """A float64 matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(side, len(values), generator=generator, dtype=torch.float64))[0]
        for side in (rows, columns)
    )
    return left * values @ right.T


def by_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """What Muon is to make of a matrix, by definition: its polynomials of each singular value, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.pow(8).sum() ** (1 / 8)
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    return left * values @ right


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon_orthogonalises_the_update_of_filters(shape, channels_last):
    """All singular values come to between 0.8 and 1.2, here of a gradient that has them from 1 to 0.03."""
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    conv = conv.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    left, values, right = torch.linalg.svd(torch.randn(shape).flatten(1), full_matrices=False)
    gradient = (left * torch.logspace(0, -1.5, len(values)) @ right).reshape(shape)
    update = as_matrix(muon_step(conv, 0.01, gradient)["weight"])
    values = torch.linalg.svdvals(update) / (0.01 * 0.2 * max(update.shape) ** 0.5)
    assert values.min() > 0.8
    assert values.max() < 1.2


def test_muons_polynomials_bring_values_within_reach_near_1_and_let_none_explode():
    values = torch.cat([torch.linspace(0, REACH, 1000), torch.linspace(REACH, 1, 10_000)]).double()
    found = values
    for a, b, c in COEFFICIENTS:
        found = a * found + b * found**3 + c * found**5
    assert (found[1000:] - 1).abs().max() < 0.156
    assert (found[:1000] <= 1.156).all()
    slope = math.prod(a for a, _, _ in COEFFICIENTS)
    assert (found <= slope * values + 1e-12).all()
    assert slope == pytest.approx(64, abs=0.5)


SPECTRA = {
    "even": torch.ones(64),
    "as of a gradient": torch.logspace(0, -2, 64),
    "ill-conditioned": torch.logspace(0, -6, 64),
    "one value far above the others": torch.cat([torch.ones(1), torch.full((63,), 1e-3)]),
    "of rank 5": torch.cat([torch.linspace(1, 0.5, 5), torch.zeros(59)]),
    "of rank 1": torch.cat([torch.ones(1), torch.zeros(63)]),
}


@pytest.mark.parametrize("columns", [64, 80, 128, 576], ids=lambda columns: f"64x{columns}")
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_muon_in_float32_is_float64s_also_on_ill_conditioned_gradients(values, columns):
    """torch.optim.Muon's bfloat16 products are 2e-2 from it on even spectra and above 1e-1 on the others."""
    matrix = 1e-3 * matrix_of(64, columns, values.double())
    for found in (matrix, matrix.T):
        expected = by_singular_values(found)
        assert (orthogonalised(found.float()) - expected).norm() < 2e-4 * expected.norm()
        torch.testing.assert_close(orthogonalised(found), expected, rtol=0, atol=1e-10)  # in float64


def test_muon_computes_the_same_by_either_form():
    torch.manual_seed(0)
    for shape in SHAPES:
        wide = torch.randn(shape).double().flatten(1)
        wide = wide if len(wide) <= wide.shape[1] else wide.T
        torch.testing.assert_close(_by_gram(wide), _directly(wide), rtol=1e-10, atol=1e-10)


def test_muon_in_bfloat16_as_on_cuda_is_within_its_rounding():
    for values in (SPECTRA["even"], SPECTRA["as of a gradient"]):
        matrix = matrix_of(64, 576, values.double())
        expected = by_singular_values(matrix)
        assert (_directly(matrix.bfloat16()).double() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_muons_update_does_not_depend_on_the_gradients_size(scale):
    matrix = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalised(scale * matrix), orthogonalised(matrix), rtol=1e-4, atol=1e-5)


def test_muon_makes_nothing_of_a_gradient_of_zeros_and_hides_no_nan():
    assert torch.equal(orthogonalised(torch.zeros(16, 64)), torch.zeros(16, 64))
    assert orthogonalised(torch.full((16, 64), torch.nan)).isnan().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_updates_are_a_fifth_of_the_rate_whatever_the_shape(shape):
    """As large as AdamW's usually are, so that both can have one learning rate (Liu et al. 2025)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    update = muon_step(conv, 0.01)["weight"]
    assert update.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.3)


def test_muon_goes_down_the_gradient():
    model = small_model()
    moved = muon_step(model, 0.01)
    for name, parameter in model.named_parameters():
        assert (moved[name] * parameter.grad).sum() < 0, name


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_is_its_formula_on_filters_and_adamw_on_everything_else(channels_last, weight_decay):
    """Nesterov's momentum as in Jordan's code, and the factor 0.2 * sqrt(longer side) of Liu et al., in float64."""
    model = small_model(channels_last)
    reference = copy.deepcopy(model)
    ours = create_optimizer(
        "muon", model, momentum=0.9, weight_decay=weight_decay, decay_norm_and_bias=False, norm_bias_lr_factor=4.0
    )
    others = {name: p for name, p in reference.named_parameters() if p.ndim != 4}
    adamw = torch.optim.AdamW(
        [
            {"params": [others["norm1.weight"]], "weight_decay": 0.0, "lr_factor": 1.0},
            {"params": [others["norm1.bias"]], "weight_decay": 0.0, "lr_factor": 4.0},
            {"params": [others["fc.weight"]], "weight_decay": weight_decay, "lr_factor": 1.0},
            {"params": [others["fc.bias"]], "weight_decay": 0.0, "lr_factor": 1.0},
        ],
        betas=(0.9, 0.999),
    )
    matrices = {name: as_matrix(p).double() for name, p in reference.named_parameters() if p.ndim == 4}
    momenta = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}
    for step in range(4):
        rate = 0.01 * (step + 1)
        set_learning_rate(adamw, rate)
        set_learning_rate(ours, rate)
        set_gradients(model, step)
        set_gradients(reference, step)
        for optimizer in (ours, adamw):
            optimizer.step()
        for name, matrix in matrices.items():
            gradient = as_matrix(reference.get_parameter(name).grad).double()
            momenta[name] = 0.9 * momenta[name] + 0.1 * gradient
            update = by_singular_values(0.1 * gradient + 0.9 * momenta[name])
            matrix *= 1 - rate * weight_decay
            matrix -= rate * 0.2 * max(matrix.shape) ** 0.5 * update
        for name, parameter in model.named_parameters():
            if name in others:
                assert torch.equal(parameter, others[name]), name
            else:
                difference = (as_matrix(parameter).double() - matrices[name]).abs().max()
                assert difference < 2e-4 * rate, name


def test_muon_does_the_same_in_both_memory_layouts():
    """Up to rounding, over a whole training step by step."""
    models = [small_model(channels_last) for channels_last in (False, True)]
    optimizers = [create_optimizer("muon", model, weight_decay=0.1) for model in models]
    travelled = [copy.deepcopy(model.state_dict()) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        for step in range(5):
            set_learning_rate(optimizer, 0.01)
            set_gradients(model, step)
            optimizer.step()
    assert models[1].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not models[1].conv1.weight.is_contiguous()
    for name in ("conv1.weight", "conv2.weight"):
        one, other = (model.state_dict()[name] - start[name] for model, start in zip(models, travelled, strict=True))
        assert (one - other).norm() < 1e-4 * one.norm()
    assert torch.equal(models[0].fc.weight, models[1].fc.weight)


def test_muon_takes_gradients_in_any_layout():
    """Where DDP or a kernel lays them out otherwise than the parameter."""
    updates = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = small_model(channels_last=True)
        optimizer = create_optimizer("muon", model)
        set_learning_rate(optimizer, 0.01)
        set_gradients(model, 0)
        for parameter in (model.conv1.weight, model.conv2.weight):
            parameter.grad = parameter.grad.contiguous(memory_format=layout)
        optimizer.step()
        updates.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(value, updates[1][name]) for name, value in updates[0].items())


def test_muon_leaves_a_filter_without_a_gradient_alone():
    model = small_model()
    optimizer = create_optimizer("muon", model, weight_decay=0.1)
    set_gradients(model, 0)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    set_gradients(model, 1)
    model.conv1.weight.grad = model.fc.bias.grad = None
    optimizer.step()
    assert torch.equal(model.conv1.weight, before["conv1.weight"])
    assert torch.equal(model.fc.bias, before["fc.bias"])
    assert not torch.equal(model.conv2.weight, before["conv2.weight"])


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(3, 4, 3, bias=False)])
def test_muon_takes_models_with_filters_only_or_without_any(layer):
    model = copy.deepcopy(layer)
    moved = muon_step(model, 0.01)
    assert all(update.abs().min() > 0 for update in moved.values())


def test_muon_state_is_one_momentum_for_filters_and_adamws_for_the_rest():
    model = small_model(channels_last=True)
    optimizer = create_optimizer("muon", model)
    train(model, optimizer, range(1))
    tensors = optimizer_tensors(optimizer, model)
    filters = {"conv1.weight", "conv2.weight"}
    others = {name for name, _ in model.named_parameters()} - filters
    assert tensors.keys() == {f"{name}/momentum_buffer" for name in filters} | {
        f"{name}/{key}" for name in others for key in ("exp_avg", "exp_avg_sq", "step")
    }
    assert tensors["conv1.weight/momentum_buffer"].shape == (16, 3, 3, 3)


def test_muon_momentum_matters():
    """That the state is restored bit for bit is worth something."""
    model = small_model()
    optimizer = create_optimizer("muon", model)
    train(model, optimizer, range(2))
    other = copy.deepcopy(model)
    train(model, optimizer, range(2, 3))
    train(other, create_optimizer("muon", other), range(2, 3))
    assert not torch.equal(model.conv1.weight, other.conv1.weight)
    assert not torch.equal(model.fc.weight, other.fc.weight)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("restored", [False, True])
def test_accelerate_changes_nothing(name, restored):
    """prepare() loads the optimizer's own state_dict into it, which puts new groups and a new state in their place."""
    from accelerate import Accelerator

    plain, wrapped = small_model(), small_model()
    plain_optimizer, optimizer = (create_optimizer(name, model, weight_decay=0.1) for model in (plain, wrapped))
    if restored:
        train(plain, plain_optimizer, range(2))
        wrapped.load_state_dict(plain.state_dict())
        load_optimizer_tensors(optimizer, wrapped, optimizer_tensors(plain_optimizer, plain))
    prepared_model, prepared = Accelerator(cpu=True).prepare(wrapped, optimizer)
    train(plain, plain_optimizer, range(2, 5))
    train(prepared_model, prepared, range(2, 5))
    assert all(torch.equal(value, wrapped.state_dict()[key]) for key, value in plain.state_dict().items())
    ours, theirs = optimizer_tensors(prepared, wrapped), optimizer_tensors(plain_optimizer, plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_state_dict_of_muon_can_be_loaded():
    first, second = small_model(), small_model()
    ours, theirs = (create_optimizer("muon", model) for model in (first, second))
    train(first, ours, range(2))
    second.load_state_dict(first.state_dict())
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for model, optimizer in ((first, ours), (second, theirs)):
        train(model, optimizer, range(2, 4))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_loss_goes_down(name, channels_last):
    """32 images of noise are learned by heart."""
    model = small_model(channels_last).train()
    optimizer = create_optimizer(name, model, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (32,), generator=generator)
    losses = []
    for _ in range(40):
        set_learning_rate(optimizer, 0.01)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert sum(after < before for before, after in pairwise(losses)) > 30
