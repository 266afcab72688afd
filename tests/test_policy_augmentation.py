"""Automatic augmentation draws as torchvision does, from (seed, epoch, index), and gives torchvision's pixels."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from torchvision.transforms import v2

from data.augment import BatchPipeline, ImagePipeline
from data.augment.batch_of_one import luma
from data.augment.operations import OPERATIONS, PIXELS_ON_CPU, apply_, slide
from data.augment.policy import KERNELS, AutomaticAugmentation
from data.augment.policy_tables import AUTO, CHOSEN_AT_RANDOM, NAMES, RAND, TABLES, WIDE, Space
from data.images import InMemory
from data.loaders import DeviceLoader, Steps, TrainLoader
from data.splits import Split
from utils.config import TrainConfig
from utils.config.policy import parse_policy

WORDS = ["trivial", "rand:2,9", "rand:3,30", "auto:imagenet", "auto:cifar10", "auto:svhn"]
SIZES = [(32, 32), (33, 21), (97, 128)]
TINY = [(8, 8), (8, 1), (1, 8), (1, 1), (2, 9), (3, 3)]
THEIRS = {WIDE: v2.TrivialAugmentWide, RAND: v2.RandAugment, AUTO: v2.AutoAugment}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small images on several threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def augmentation(word: str) -> AutomaticAugmentation:
    policy = parse_policy(word)
    assert policy
    return AutomaticAugmentation(policy)


def torchvision_policy(word: str) -> v2.Transform:
    policy = parse_policy(word)
    assert policy
    if policy.kind == "rand":
        return v2.RandAugment(policy.operations, policy.magnitude)
    return v2.AutoAugment(v2.AutoAugmentPolicy(policy.table)) if policy.kind == "auto" else v2.TrivialAugmentWide()


def images(kind: str, count: int, height: int, width: int) -> torch.Tensor:
    """Different ones, uint8 (count, height, width, 3): noise, greys (three equal channels), flat or smooth areas."""
    random, shape = np.random.default_rng(height * width + count), (count, height, width, 3)
    made = {
        "noise": lambda: random.integers(256, size=shape),
        "grey": lambda: np.repeat(random.integers(256, size=(*shape[:3], 1)), 3, axis=3),
        "flat": lambda: np.broadcast_to(random.integers(256, size=(count, 1, 1, 3)), shape),
        "smooth": lambda: (
            np.linspace(20, 200, height)[:, None, None] * np.linspace(0.3, 1, width)[:, None] * [1, 0.8, 0.5]
            + random.integers(9, size=(count, 1, 1, 3))
        ),
    }[kind]()
    return torch.from_numpy(np.ascontiguousarray(made, dtype=np.uint8))


def by_torchvision(image: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
    """torchvision's own operation on one image (height, width, 3)."""
    policy = v2.AutoAugment()
    planes = image.permute(2, 0, 1).contiguous()
    planes = policy._apply_image_or_video_transform(planes, name, magnitude, policy.interpolation, policy._fill)
    return planes.permute(1, 2, 0)


def magnitudes(space: Space, name: str, height: int, width: int) -> list[float]:
    """All that an operation may have, with both signs."""
    found = space.magnitudes(name, height, width)
    return [sign * magnitude for magnitude in found for sign in (1, -1)] if OPERATIONS[name].signed else found


@cache
def ties(name: str, magnitude: float, height: int, width: int) -> np.ndarray:
    """(height, width) of whether a pixel's source is in the middle between two pixels, but for rounding."""
    if not name.startswith(("Shear", "Rotate")):
        return np.zeros((height, width), bool)
    numbers = OPERATIONS[name].parameters(magnitude, height, width)
    a, b, c, d, e, f = (1, *numbers[:2], 0, 1, numbers[2]) if name == "ShearX" else numbers
    y, x = np.mgrid[:height, :width]
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    column, row = a * x + b * y + c + (width - 1) / 2, d * x + e * y + f + (height - 1) / 2
    return (np.abs(column % 1 - 0.5) < 1e-3) | (np.abs(row % 1 - 0.5) < 1e-3)


def steps_of(found: AutomaticAugmentation, choices: list[int], height: int, width: int) -> Iterator[tuple[str, float]]:
    """Operation and magnitude of each choice."""
    for choice in choices:
        operation, rest = divmod(choice, 2 * found.space.bins)
        name = NAMES[operation]
        magnitude = found.space.magnitudes(name, height, width)[rest // 2]
        yield name, -magnitude if OPERATIONS[name].signed and rest % 2 else magnitude


# -- what there is to choose from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", list(THEIRS))
@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 160), (1, 7)])
def test_magnitudes_and_signs_are_torchvisions(space, height, width):
    theirs = THEIRS[space]._AUGMENTATION_SPACE
    assert set(theirs) | {"Identity", "Invert"} == set(NAMES)
    for name, (make, signed) in theirs.items():
        expected = make(space.bins, height, width)
        found = space.magnitudes(name, height, width)
        assert len(found) == space.bins
        assert found == ([0.0] * space.bins if expected is None else expected.tolist()), name
        assert OPERATIONS[name].signed is signed, name


@pytest.mark.parametrize("kind", [v2.TrivialAugmentWide, v2.RandAugment])
def test_random_choice_is_among_torchvisions_operations(kind):
    assert NAMES[:CHOSEN_AT_RANDOM] == tuple(kind._AUGMENTATION_SPACE)


@pytest.mark.parametrize("name", list(TABLES))
def test_tables_of_autoaugment_are_torchvisions(name):
    expected = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    table = TABLES[name]
    found = [
        tuple((NAMES[place], *numbers) for place, *numbers in zip(*line, strict=True))
        for line in zip(table.operation, table.probability, table.bin, strict=True)
    ]
    assert found == [tuple((word, chance, place or 0) for word, chance, place in line) for line in expected]


# -- operations -------------------------------------------------------------------------------------------------------


def near_a_whole_number(image: torch.Tensor, magnitude: float) -> np.ndarray:
    """(height, width) of whether Contrast gives a value that is cut off to another one by rounding."""
    grey = luma(image.permute(2, 0, 1)).numpy().mean()
    values = image.numpy() * (1 + magnitude) - grey * magnitude
    return (np.abs(values - np.rint(values)) < 1e-4).any(2)


@pytest.mark.parametrize("name", [name for name in NAMES if OPERATIONS[name].kernel])
@pytest.mark.parametrize("kind", ["noise", "grey", "flat", "smooth"])
def test_operation_gives_torchvisions_bytes_at_every_magnitude(name, kind):
    """Several magnitudes in a batch. What is a matter of rounding, in torchvision too, may differ: which pixel is taken
    if the source is in the middle between two; by one level, what Contrast gives next to a whole number."""
    differing = count = 0
    for height, width in SIZES + TINY:
        for space in THEIRS:
            drawn = magnitudes(space, name, height, width)
            given = images(kind, len(drawn), height, width)
            found = given.clone()
            parameters = [OPERATIONS[name].parameters(magnitude, height, width) for magnitude in drawn]
            apply_(OPERATIONS[name].kernel, found, torch.tensor(parameters, dtype=torch.float64).float())
            for image, result, magnitude in zip(given, found, drawn, strict=True):
                expected = by_torchvision(image, name, magnitude)
                differs = (result != expected).any(2).numpy()
                if name == "Contrast" and differs.any():
                    assert (result.int() - expected.int()).abs().max() == 1
                    assert near_a_whole_number(image, magnitude)[differs].all()
                else:
                    assert not (differs & ~ties(name, magnitude, height, width)).any(), (magnitude, height, width)
                differing, count = differing + differs.sum(), count + differs.size
            if kind == "grey":
                assert (found == found[..., :1]).all()
    assert differing < 0.01 * count


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel], ids=lambda kernel: kernel.__name__)
def test_operation_on_an_image_does_not_depend_on_the_batch_or_on_threads(kernel):
    """As many images as do not go through the kernel at once, and an odd number of pixels."""
    height, width = 101, 77
    given = images("noise", 2 * PIXELS_ON_CPU // (height * width), height, width)
    parameters = torch.rand(len(given), 6, generator=torch.Generator().manual_seed(0)) * 2
    if kernel is slide:
        parameters = (8 * parameters).round_()
    found = given.clone()
    torch.set_num_threads(3)
    apply_(kernel, found, parameters)
    torch.set_num_threads(1)
    for part in (slice(0, 1), slice(7, 8), slice(30, 37), slice(len(given) - 3, None)):
        alone = given[part].clone()
        apply_(kernel, alone, parameters[part])
        assert torch.equal(alone, found[part])


# -- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", ["noise", "grey", "smooth"])
def test_batch_gets_torchvisions_operations_one_after_the_other(word, kind):
    height, width = 33, 27
    found, given = augmentation(word), images(kind, 200, height, width)
    pipeline = BatchPipeline([found], seed=5)
    choices = pipeline.draw(2, len(given))
    compared = 0
    for image, result, choice in zip(given, pipeline(given, choices), choices.tolist(), strict=True):
        steps = list(steps_of(found, choice, height, width))
        if any(ties(*step, height, width).any() for step in steps):
            continue
        for step in steps:
            image = by_torchvision(image, *step)
        assert torch.equal(result, image), steps
        compared += 1
    assert compared > 150


@pytest.mark.parametrize("word", WORDS)
def test_single_image_gets_torchvisions_operations_one_after_the_other(word):
    """The choices are found by a generator in the same state."""
    height, width = 33, 27
    found, given = augmentation(word), images("noise", 60, height, width)
    pipeline = ImagePipeline([found], seed=5)
    compared = 0
    for index, image in enumerate(given):
        result = pipeline(image.numpy(), 1, index)
        entropy = np.random.SeedSequence([5, 1, index]).generate_state(2, np.uint64)
        choice = found.choose(np.random.Generator(np.random.PCG64(int(entropy[0]))), 1)[:, 0]
        steps = list(steps_of(found, choice.tolist(), height, width))
        if any(ties(*step, height, width).any() for step in steps):
            continue
        for step in steps:
            image = by_torchvision(image, *step)
        np.testing.assert_array_equal(result, image.numpy())
        compared += 1
    assert compared > 40


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("height", "width"), TINY)
def test_policies_take_tiny_and_grey_images(word, height, width):
    given = images("grey", 100, height, width)
    pipelines = BatchPipeline([augmentation(word)]), ImagePipeline([augmentation(word)])
    batch = pipelines[0](given, pipelines[0].draw(0, len(given)))
    single = torch.from_numpy(np.stack([pipelines[1](image.numpy(), 0, index) for index, image in enumerate(given)]))
    for result in (batch, single):
        assert result.dtype == torch.uint8
        assert result.shape == given.shape
        assert (result == result[..., :1]).all()
        assert result.is_contiguous()


@pytest.mark.parametrize("word", WORDS)
def test_images_given_stay_as_they_are(word):
    given = images("noise", 100, 20, 30)
    before, array = given.clone(), given[0].numpy()
    array.flags.writeable = False  # as Pillow's are
    batch, single = BatchPipeline([augmentation(word)]), ImagePipeline([augmentation(word)])
    assert not torch.equal(batch(given, batch.draw(0, 100)), given)
    for index in range(20):
        single(array, 0, index)
    assert torch.equal(given, before)


# -- the draw ---------------------------------------------------------------------------------------------------------


def drawn_by_torchvision(word: str, count: int) -> list[list[tuple[str, float]]]:
    """Operation and magnitude of what torchvision itself applies to `count` images, those without effect left out."""
    policy, applied = torchvision_policy(word), []
    policy._apply_image_or_video_transform = lambda image, name, magnitude, **_: (
        applied[-1].append((name, magnitude)) or image
    )
    image = torch.zeros(3, 33, 27, dtype=torch.uint8)
    torch.manual_seed(0)
    for _ in range(count):
        applied.append([])
        policy(image)
    return applied


def p_value(ours: list, theirs: list) -> float:
    """That two lists come from one distribution; what is seen fewer than 10 times counts as one."""
    seen = sorted(set(ours) | set(theirs), key=str)
    table = np.array([[drawn.count(entry) for entry in seen] for drawn in (ours, theirs)])
    rare = table.sum(0) < 10
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], 1)
    return float(chi2_contingency(table[:, table.sum(0) > 0]).pvalue)


@pytest.mark.parametrize("word", ["trivial", "rand:2,9", "rand:1,20", "auto:imagenet", "auto:cifar10", "auto:svhn"])
@pytest.mark.parametrize("backend", ["tensor", "albumentations"])
def test_operations_magnitudes_and_signs_are_distributed_as_torchvisions(word, backend):
    count, found = 6000, augmentation(word)
    if backend == "tensor":
        choices = found.draw(0, 3, count).T.tolist()
    else:
        choices = [found.choose(np.random.default_rng([1, index]), 1)[:, 0].tolist() for index in range(count)]
    ours = [list(steps_of(found, choice, 33, 27)) for choice in choices]
    theirs = drawn_by_torchvision(word, count)
    if word.startswith("auto"):  # what is not applied
        ours = [[step for step in steps if step[0] != "Identity"] for steps in ours]

    def columns(drawn: list) -> dict[str, list]:
        flat = [step for steps in drawn for step in steps]
        return {
            "operations of an image": [tuple(name for name, _ in steps) for steps in drawn],
            "magnitudes of an operation": [(name, abs(magnitude)) for name, magnitude in flat],
            "signs of an operation": [(name, magnitude > 0) for name, magnitude in flat if OPERATIONS[name].signed],
        }

    for what, drawn in columns(ours).items():
        assert p_value(drawn, columns(theirs)[what]) > 1e-3, what


def test_choices_of_an_image_are_independent_of_each_other_and_of_the_next_epoch():
    found = augmentation("rand:2,9")
    both = np.concatenate([found.draw(0, epoch, 4000) for epoch in (0, 1)])
    whole = np.concatenate([both // 62, both % 2])  # operations, signs
    assert np.abs(np.corrcoef(whole) - np.eye(8)).max() < 0.07  # 0.016 is one standard deviation


@pytest.mark.parametrize("word", WORDS)
def test_choices_of_an_image_do_not_depend_on_how_many_there_are(word):
    found = augmentation(word)
    for epoch in (0, 3):
        many = found.draw(1, epoch, 1000)
        assert many.dtype == np.int64
        assert many.shape == (parse_policy(word).operations, 1000)
        assert many.min() >= 0
        assert many.max() < 2 * found.space.bins * len(NAMES)
        for count in (1, 2, 7, 999):
            assert (found.draw(1, epoch, count) == many[:, :count]).all()


@pytest.mark.parametrize("word", WORDS)
def test_result_does_not_depend_on_order_or_division_of_the_batch(word):
    given, pipeline = images("noise", 90, 31, 45), BatchPipeline([augmentation(word)], seed=2)
    choices = pipeline.draw(1, len(given))
    whole = pipeline(given, choices)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(given)))
    assert torch.equal(pipeline(given[order], choices[order]), whole[order])
    for size in (1, 7, 64):
        parts = [pipeline(*part) for part in zip(given.split(size), choices.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_every_seed_epoch_and_index_draws_anew():
    found = augmentation("rand:3,9")
    drawn = {found.draw(seed, epoch, 50).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(drawn) == 9
    assert len({tuple(row) for row in found.draw(0, 0, 1000).T.tolist()}) > 900


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_change_what_an_image_gets(num_workers):
    given = images("noise", 64, 24, 40).numpy()
    split, steps = Split(InMemory(given), np.arange(64)), Steps(64, 8, 0, 0, 1)
    pipeline = ImagePipeline([augmentation("trivial")])
    here, there = (TrainLoader(split, pipeline, steps, workers) for workers in (0, num_workers))
    for epoch in range(2):
        for ours, theirs in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("first_step", [0, 3])
def test_processes_and_resumes_give_each_image_the_same(first_step):
    """By the loader of the tensor backend, on 1 and 3 ranks."""
    given = images("noise", 64, 24, 40).numpy()
    split = Split(InMemory(given), np.arange(64))
    results = []
    for world_size in (1, 3):
        found = {}
        for rank in range(world_size):
            pipeline = BatchPipeline([augmentation("rand:2,9")], seed=4)
            loader = DeviceLoader(split, pipeline, Steps(64, 10, 4, rank, world_size), torch.device("cpu"))
            for batch in loader.epoch(1, first_step if world_size > 1 else 0):
                found |= {int(label): image for label, image in zip(batch.labels, batch.images, strict=True)}
        results.append(found)
    assert len(results[1]) == 64 - 10 * first_step
    assert all(torch.equal(image, results[0][label]) for label, image in results[1].items())


# -- the option -------------------------------------------------------------------------------------------------------


def test_option_turns_the_policy_on():
    def created(word: str) -> AutomaticAugmentation | None:
        return AutomaticAugmentation.from_config(TrainConfig(policy=word), None, None, None)

    assert created("none") is None
    for word in WORDS:
        assert created(word).policy == parse_policy(word)
