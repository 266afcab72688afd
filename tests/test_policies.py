"""What training does beside the plain step: mixing, resolutions, averages of the weights, test-time augmentation."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from data.loaders import Steps
from utils.config.consistency import SMALLEST_ALPHA
from utils.config.resolution import Phase, parse_resolution, phase_at, resolution_phases
from utils.evaluation.tta import TTA, tta_logits
from utils.system.errors import UserError
from utils.training.averaging import Ema, Lookahead
from utils.training.micro_batch import Piece, micro_batches
from utils.training.mixing import Mixing
from utils.training.norm_statistics import fresh_statistics

CLASSES = 10
MIXINGS = {"mixup": (1.0, 0.0), "cutmix": (0.0, 1.0), "both": (0.4, 1.0)}


def random_images(count: int, size: int = 8, seed: int = 0, channels_last: bool = False) -> Tensor:
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return images.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def random_labels(count: int, seed: int = 0) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def mix_whole(mixing: Mixing, inputs: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A whole global batch on one rank: the last image is the first one's partner."""
    return mixing(torch.cat([inputs[-1:], inputs]), torch.cat([labels[-1:], labels]), seed)


# -- mixing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", MIXINGS)
def test_every_image_is_mixed_the_same_on_any_number_of_ranks(kind, world_size, count, channels_last):
    inputs, labels = random_images(count, channels_last=channels_last), random_labels(count)
    order = next(Steps(count, count, 0, 0, 1).positions(0))
    for seed in range(5):
        expected = mix_whole(Mixing(*MIXINGS[kind], CLASSES), inputs[order], labels[order], seed)
        parts = []
        for rank in range(min(world_size, count)):
            mine = next(Steps(count, count, 0, rank, world_size, lead=True).positions(0))
            parts.append(Mixing(*MIXINGS[kind], CLASSES)(inputs[mine], labels[mine], seed))
        for found, wanted in zip(map(torch.cat, zip(*parts, strict=True)), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_and_shares_are_those_of_the_paper(kind):
    """With the share that each image kept read off the targets."""
    inputs = random_images(6)
    for seed in range(20):
        mixed, shares = mix_whole(Mixing(*MIXINGS[kind], CLASSES), inputs, torch.arange(6), seed)
        kept = float(shares[0, 0])
        expected = kept * F.one_hot(torch.arange(6), CLASSES) + (1 - kept) * F.one_hot(
            torch.tensor([5, 0, 1, 2, 3, 4]), CLASSES
        )
        torch.testing.assert_close(shares, expected)
        partners = inputs.roll(1, 0)
        if kind == "mixup":
            torch.testing.assert_close(mixed, kept * inputs + (1 - kept) * partners)
        else:
            own = (mixed == inputs).all(1)
            assert ((mixed == partners).all(1) | own).all()
            assert (own == own[0]).all()  # one box for the batch
            assert kept == pytest.approx(own[0].float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("kind", MIXINGS)
def test_shares_of_every_image_sum_to_one(kind):
    for seed in range(20):
        _, shares = mix_whole(Mixing(*MIXINGS[kind], CLASSES), random_images(16), random_labels(16), seed)
        assert shares.shape == (16, CLASSES)
        assert shares.dtype == torch.float32
        assert shares.min() >= 0
        torch.testing.assert_close(shares.sum(1), torch.ones(16))


def test_image_mixed_with_one_of_its_class_keeps_the_class():
    _, shares = mix_whole(Mixing(1.0, 0.0, CLASSES), random_images(4), torch.full((4,), 7), 0)
    torch.testing.assert_close(shares, F.one_hot(torch.full((4,), 7), CLASSES).float())


@pytest.mark.parametrize("kind", MIXINGS)
def test_mixing_leaves_the_global_generator_and_the_images_alone(kind):
    inputs, labels = random_images(4), random_labels(4)
    before, inputs_before, labels_before = torch.get_rng_state(), inputs.clone(), labels.clone()
    Mixing(*MIXINGS[kind], CLASSES)(inputs, labels, 123)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inputs, inputs_before)
    assert torch.equal(labels, labels_before)


def test_mixing_is_a_function_of_its_seed_whatever_was_drawn_before():
    inputs, labels, mixing = random_images(4), random_labels(4), Mixing(*MIXINGS["both"], CLASSES)
    first = [mixing(inputs, labels, seed)[1] for seed in range(10)]
    torch.rand(17)
    again = [mixing(inputs, labels, seed)[1] for seed in reversed(range(10))]
    assert all(torch.equal(*pair) for pair in zip(first, reversed(again), strict=True))
    assert len({tuple(shares.flatten().tolist()) for shares in first}) >= 9


def test_both_mixings_are_drawn_equally_often():
    """In CutMix every pixel is one image's or the other's."""
    inputs, mixing = random_images(2), Mixing(*MIXINGS["both"], CLASSES)
    cut = [bool((mixing(inputs, torch.arange(2), seed)[0] == inputs[1]).any()) for seed in range(200)]
    assert 60 < sum(cut) < 140


def test_alpha_may_be_a_whole_number():
    assert torch.equal(
        Mixing(1, 0, CLASSES)(random_images(4), random_labels(4), 0)[0],
        Mixing(1.0, 0.0, CLASSES)(random_images(4), random_labels(4), 0)[0],
    )


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 10.0])
def test_mixing_is_torchvisions_to_the_bit(kind, alpha):
    """A resumed run draws what it drew before."""
    inputs, labels = random_images(4), random_labels(4)
    theirs = v2.RandomChoice([kind(alpha=alpha, num_classes=CLASSES)])
    alphas = (alpha, 0.0) if kind is v2.MixUp else (0.0, alpha)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = theirs(inputs, labels)
        found = Mixing(*alphas, CLASSES)(inputs, labels, seed)
        assert all(torch.equal(ours, whole[1:]) for ours, whole in zip(found, expected, strict=True))


def test_mixup_with_a_small_alpha_hardly_mixes():
    """Beta(0.2, 0.2) has its mass at 0 and 1; Beta(1, 1) is uniform. Below the smallest that is allowed, draws
    underflow to one half."""
    inputs, labels = random_images(2), torch.arange(2)
    spread = {}
    for alpha in (SMALLEST_ALPHA, 0.2, 1.0, 8.0):
        kept = torch.tensor([float(Mixing(alpha, 0.0, CLASSES)(inputs, labels, seed)[1][0, 1]) for seed in range(300)])
        assert kept.mean().item() == pytest.approx(0.5, abs=0.1)
        assert (kept != 0.5).all()
        spread[alpha] = kept.var().item()
    assert spread == pytest.approx({alpha: 1 / (4 * (2 * alpha + 1)) for alpha in spread}, rel=0.2)


# -- micro-batches of class shares ------------------------------------------------------------------------------------


def sums(model: nn.Module, pieces: list[Piece]) -> list[Tensor]:
    """Loss and gradients, summed over the pieces."""
    losses = [F.cross_entropy(model(piece.inputs), piece.targets, reduction="sum") * piece.weight for piece in pieces]
    return [sum(losses), *torch.autograd.grad(sum(losses), list(model.parameters()))]


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 64])
@pytest.mark.parametrize(("count", "world_size"), [(7, 1), (7, 2), (7, 3), (2, 4), (1, 2)])
def test_pieces_of_mixed_images_add_up_to_the_whole_batch(count, world_size, micro_batch_size):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)).double()
    inputs, labels = random_images(count).double(), random_labels(count)
    mixing, order = Mixing(1.0, 0.0, CLASSES), next(Steps(count, count, 0, 0, 1).positions(0))
    whole = mix_whole(mixing, inputs[order], labels[order], 0)
    expected = sums(model, [Piece(*whole, 1.0)])
    found, numbers = [], set()
    for rank in range(world_size):
        steps = Steps(count, count, 0, rank, world_size, lead=True)
        mine = next(steps.positions(0))
        weighted = steps.batch(0, inputs[mine], labels[mine]).count
        mixed = mixing(inputs[mine], labels[mine], 0)
        pieces = micro_batches(*mixed, weighted, count, micro_batch_size, world_size)
        assert all(len(piece.inputs) == len(piece.targets) >= 1 for piece in pieces)
        assert all(piece.targets.shape[1:] == (CLASSES,) for piece in pieces)
        assert sum(len(piece.inputs) for piece in pieces if piece.weight) == weighted
        numbers.add(len(pieces))
        found.append(sums(model, pieces))
    assert len(numbers) == 1
    for parts, wanted in zip(zip(*found, strict=True), expected, strict=True):
        torch.testing.assert_close(sum(parts), wanted)


def test_filler_moves_neither_loss_nor_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    for targets in (random_labels(1), F.one_hot(random_labels(1), CLASSES).float()):
        pieces = micro_batches(random_images(1), targets, 0, 1, None, 2)
        assert [piece.weight for piece in pieces] == [0.0]
        assert not any(value.any() for value in sums(model, pieces))


# -- progressive resolution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "entries"),
    [
        ("32", [((32, 32), 1.0)]),
        ("16@0.5,32", [((16, 16), 0.5), ((32, 32), 1.0)]),
        ("16@0.3,24@0.6,32", [((16, 16), 0.3), ((24, 24), 0.6), ((32, 32), 1.0)]),
        (" 8 @ .25 , 9@ 0.9,10 ", [((8, 8), 0.25), ((9, 9), 0.9), ((10, 10), 1.0)]),
        ("12x16@0.5,24x32", [((12, 16), 0.5), ((24, 32), 1.0)]),
    ],
)
def test_plan_is_read_as_sizes_and_where_they_end(plan, entries):
    assert parse_resolution(plan) == entries


@pytest.mark.parametrize(
    "plan",
    [
        "",
        ",",
        "32,",
        "big",
        "16x@0.5,32",
        "16x40@0.5,32",
        "16x4@0.5,32",
        "-16@0.5,32",
        "16@-0.5,32",
        "16@50%,32",
        "16.5@0.5,32",
        "16@0.5@0.6,32",
        "16,32",  # where does the first one end?
        "16@0.5,32@1.0",  # the last one ends with the training
        "32@0.5",
        "16@0,32",
        "16@1,32",
        "16@1.5,32",
        "16@0.5,24@0.5,32",
        "16@0.6,24@0.5,32",
        "32@0.5,16",
        "16@0.5,16",
        "4@0.5,32",
        "7",
    ],
)
def test_plan_that_cannot_be_followed_names_what_is_allowed(plan):
    with pytest.raises(UserError) as error:
        parse_resolution(plan)
    message = str(error.value)
    assert message.startswith(f"resolution: {plan!r} is not allowed; it must be")
    assert "16@0.3,24@0.6,32" in message
    assert "\n" not in message


def test_plan_below_the_smallest_size_says_how_small_it_may_be():
    with pytest.raises(UserError, match="of at least 8 pixels"):
        parse_resolution("4@0.5,32")


def test_without_a_plan_there_is_one_size():
    assert resolution_phases(None, (28, 20), 100) == [Phase((28, 20), 0)]


def test_plan_must_end_at_the_size_of_the_images():
    with pytest.raises(UserError, match=r"'16@0.5,24' is not allowed; it must end at the image size, 32"):
        resolution_phases("16@0.5,24", (32, 32), 100)


def test_every_phase_begins_where_the_one_before_ends():
    phases = resolution_phases("16@0.3,24@0.6,32", (32, 32), 100)
    assert phases == [Phase((16, 16), 0), Phase((24, 24), 30), Phase((32, 32), 60)]
    sizes = {step: phase_at(phases, step).size[0] for step in (-1, 0, 1, 29, 30, 31, 59, 60, 99, 100, 1000)}
    assert sizes == {-1: 16, 0: 16, 1: 16, 29: 16, 30: 24, 31: 24, 59: 24, 60: 32, 99: 32, 100: 32, 1000: 32}


@pytest.mark.parametrize("total_steps", [1, 2, 3, 7, 10])
def test_short_training_follows_its_plan_as_far_as_it_can(total_steps):
    """Sizes never shrink, and a training of some steps ends at the full size."""
    phases = resolution_phases("16@0.3,24@0.6,32", (32, 32), total_steps)
    sizes = [phase_at(phases, step).size[0] for step in range(total_steps)]
    assert sizes == sorted(sizes)
    if total_steps > 1:
        assert sizes[-1] == 32
    if total_steps > 3:
        assert set(sizes) == {16, 24, 32}


# -- batch norm at another size ---------------------------------------------------------------------------------------


def norm_model(momentum: float | None = 0.1) -> nn.Module:
    """Batch norm with statistics far from the images', and a layer without any."""
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum), nn.GroupNorm(1, 3), nn.BatchNorm2d(3, momentum=0.4))
    for layer in (model[0], model[2]):
        layer.running_mean.fill_(7.0)
        layer.running_var.fill_(9.0)
    return model


def test_fresh_statistics_are_those_of_the_step_alone():
    model, images = norm_model(), 3 * random_images(16) + 1
    with fresh_statistics(model, begin=True):
        model(images)
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(model[0].running_var, images.var((0, 2, 3)))
    assert (model[2].running_mean.abs() < 1).all()


def test_fresh_statistics_are_those_of_all_micro_batches():
    model, images = norm_model(), 3 * random_images(16) + 1
    model(random_images(8))
    with fresh_statistics(model, begin=True):
        for piece in images.split(4):
            model(piece)
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))


def test_fresh_statistics_change_no_output_of_the_step():
    images = random_images(16)
    plain, fresh = norm_model(), norm_model()
    with fresh_statistics(fresh, begin=True):
        assert torch.equal(fresh(images), plain(images))


def test_without_a_begin_statistics_go_on_as_ever():
    model, other, images = norm_model(), norm_model(), random_images(16)
    with fresh_statistics(model, begin=False):
        assert model[0].momentum == 0.1
        model(images)
    other(images)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("momentum", [0.1, None])
def test_momentum_comes_back_also_after_an_exception(momentum):
    model = norm_model(momentum)
    with fresh_statistics(model, begin=True):
        assert [model[0].momentum, model[2].momentum] == [None, None]
    assert [model[0].momentum, model[2].momentum] == [momentum, 0.4]
    with pytest.raises(KeyboardInterrupt), fresh_statistics(model, begin=True):
        raise KeyboardInterrupt
    assert [model[0].momentum, model[2].momentum] == [momentum, 0.4]


# -- test-time augmentation -------------------------------------------------------------------------------------------


def any_model(size: int = 8, seed: int = 0) -> nn.Module:
    """Sensitive to where every pixel is."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, CLASSES)).double()


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Pixel by pixel: what lies at (y + down, x + right), mirrored at the border without repeating it."""
    size = images.shape[2]

    def inside(position: int) -> int:
        return -position if position < 0 else min(position, 2 * (size - 1) - position)

    result = torch.empty_like(images)
    for y, x in itertools.product(range(size), repeat=2):
        result[:, :, y, x] = images[:, :, inside(y + down), inside(x + right)]
    return result


def by_hand(model: nn.Module, images: Tensor, tta: str) -> Tensor:
    """The weighted sum over all views: 1, or 2, or 6 of them."""
    views = {
        "none": [(1, images, False)],
        "flip": [(1 / 2, images, mirror) for mirror in (False, True)],
        "flip_translate": [(1 / 4, images, mirror) for mirror in (False, True)]
        + [(1 / 8, shifted(images, by, by), mirror) for by in (-1, 1) for mirror in (False, True)],
    }[tta]
    assert sum(weight for weight, _, _ in views) == 1
    return sum(weight * model(view.flip(3) if mirror else view) for weight, view, mirror in views)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tta", TTA)
def test_tta_is_the_mean_over_its_views(tta, channels_last):
    model, images = any_model(), random_images(5, channels_last=channels_last).double()
    found = tta_logits(model, images, tta)
    assert found.shape == (5, CLASSES)
    torch.testing.assert_close(found, by_hand(model, images, tta))


def test_every_tta_is_another():
    model, images = any_model(), random_images(5).double()
    logits = [tta_logits(model, images, tta) for tta in TTA]
    assert not any(torch.allclose(*pair) for pair in itertools.combinations(logits, 2))


def test_model_that_sees_no_difference_in_a_mirror_is_left_alone():
    class Invariant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(3).flatten(1)

    images = random_images(5).double()
    torch.testing.assert_close(tta_logits(Invariant(), images, "flip"), Invariant()(images))


@pytest.mark.parametrize("tta", TTA)
def test_tta_leaves_the_images_as_they_are_and_mirrors_change_nothing(tta):
    model, images = any_model(), random_images(5).double()
    before = images.clone()
    found = tta_logits(model, images, tta)
    assert torch.equal(images, before)
    if tta == "flip":
        torch.testing.assert_close(tta_logits(model, images.flip(3), tta), found)


@pytest.mark.parametrize(("tta", "calls"), [("none", 1), ("flip", 2), ("flip_translate", 6)])
def test_tta_costs_as_many_views_as_it_says(tta, calls):
    sizes = []

    def model(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape))
        return images.mean((2, 3))

    tta_logits(model, random_images(5), tta)
    assert sizes == [(5, 3, 8, 8)] * calls


# -- averages of the weights ------------------------------------------------------------------------------------------


def small_model(channels_last: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, CLASSES)
    model = nn.Sequential(*layers)
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def take_a_step(model: nn.Module, seed: int) -> None:
    """Something like training: every weight and the norm statistics move."""
    generator = torch.Generator().manual_seed(seed)
    model.train()(random_images(4, seed=seed))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def mixed(keep: float, average: dict[str, Tensor], current: dict[str, Tensor]) -> dict[str, Tensor]:
    """The formula, tensor by tensor; counters are copied."""
    return {
        name: keep * average[name] + (1 - keep) * value if value.is_floating_point() else value
        for name, value in current.items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], exact: bool = False) -> None:
    assert found.keys() == expected.keys()
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_follows_its_formula_step_by_step(decay, channels_last):
    """Statistics of the norm included: they are the running mean and variance of state_dict."""
    model = small_model(channels_last)
    ema, expected = Ema(model, decay), snapshot(model)
    assert_same(snapshot(ema.model), expected, exact=True)
    for update in range(30):
        take_a_step(model, update)
        current = snapshot(model)
        ema.update(model, update)
        expected = mixed(min(decay, (1 + update) / (10 + update)), expected, current)
        assert_same(snapshot(ema.model), expected)
        assert_same(snapshot(model), current, exact=True)  # training goes on with its own weights
    assert int(ema.model[1].num_batches_tracked) == 30


def test_ema_forgets_the_random_start():
    """However long its memory: after 100 updates next to nothing of the first weights is left."""
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e6)
    ema = Ema(model, 0.9999)
    for parameter in model.parameters():
        parameter.detach().fill_(1.0)
    for update in range(100):
        ema.update(model, update)
    share = (ema.model[0].weight.mean().item() - 1) / 1e6
    assert share == pytest.approx(math.prod((1 + n) / (10 + n) for n in range(100)), rel=0.1, abs=1e-6)
    assert share < 1e-5


def test_ema_decay_ends_at_the_one_asked_for():
    model = small_model()
    ema = Ema(model, 0.9)
    before = snapshot(ema.model)
    take_a_step(model, 0)
    ema.update(model, 10_000)
    assert_same(snapshot(ema.model), mixed(0.9, before, snapshot(model)))


@pytest.mark.parametrize("kind", ["ema", "lookahead"])
def test_average_keeps_the_memory_layout(kind):
    model = small_model(channels_last=True)
    if kind == "ema":
        average = Ema(model, 0.9)
        average.update(model, 0)
    else:
        average = Lookahead(model, 1, 0.9)
        average.update(model, 1, 10)
    for weight in (average.model[0].weight, model[0].weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_average_is_a_model_of_its_own():
    model = small_model()
    ema = Ema(model, 0.9)
    take_a_step(model, 0)
    assert not torch.equal(ema.model[0].weight, model[0].weight)
    assert not {p.data_ptr() for p in ema.model.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_average_that_is_restored_goes_on_to_the_bit():
    """All of it is in the state_dict of its model and the number of the update."""
    model = small_model()
    straight, resumed = Ema(model, 0.99), None
    for update in range(12):
        if update == 6:
            resumed = Ema(small_model(), 0.99)
            resumed.model.load_state_dict(snapshot(straight.model))
        take_a_step(model, update)
        straight.update(model, update)
        if resumed:
            resumed.update(model, update)
    assert_same(snapshot(resumed.model), snapshot(straight.model), exact=True)


@pytest.mark.parametrize(("every", "total_steps"), [(1, 7), (3, 10), (5, 20), (4, 3)])
def test_lookahead_follows_its_formula_every_few_steps(every, total_steps):
    """And training goes on from the slow weights."""
    model, decay = small_model(), 0.95
    lookahead, slow = Lookahead(model, every, decay), snapshot(model)
    for step in range(1, total_steps + 1):
        take_a_step(model, step)
        fast = snapshot(model)
        lookahead.update(model, step, total_steps)
        if step % every == 0:
            slow = mixed(decay**every * (step / total_steps) ** 3, slow, fast)
        elif step == total_steps:
            slow = mixed(1.0, slow, fast)
        else:
            assert_same(snapshot(model), fast, exact=True)
            continue
        assert_same(snapshot(model), slow)
        assert_same(snapshot(lookahead.model), snapshot(model), exact=True)


def test_lookahead_ends_with_the_slow_weights():
    """Of the last pull, where the last step is none."""
    model = small_model()
    lookahead = Lookahead(model, 5, 0.95)
    for step in range(1, 12):
        slow = snapshot(lookahead.model)
        take_a_step(model, step)
        lookahead.update(model, step, 11)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, slow[name])


def test_lookahead_keeps_the_parameters_that_the_optimizer_holds():
    """In place: an optimizer that was made before goes on with the same tensors, and its momentum stays."""
    model = small_model()
    held, before = list(model.parameters()), [parameter.data_ptr() for parameter in model.parameters()]
    lookahead = Lookahead(model, 1, 0.5)
    take_a_step(model, 0)
    lookahead.update(model, 1, 10)
    assert [parameter.data_ptr() for parameter in held] == before
    assert all(one is other for one, other in zip(held, model.parameters(), strict=True))


def test_averages_take_no_part_in_the_gradient():
    model = small_model()
    ema, lookahead = Ema(model, 0.9), Lookahead(model, 1, 0.9)
    F.cross_entropy(model(random_images(4)), random_labels(4)).backward()
    gradients = copy.deepcopy([parameter.grad for parameter in model.parameters()])
    ema.update(model, 0)
    lookahead.update(model, 1, 10)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.grad is None for average in (ema, lookahead) for p in average.model.parameters())
    assert all(p.grad_fn is None for p in model.parameters())
