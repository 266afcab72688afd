"""A pipeline of albumentations in a file: read as albumentations reads it, and nothing of it is ignored or executed."""

import inspect
import io
import random
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import yaml
from albumentations.core.serialization import SERIALIZABLE_REGISTRY

from data.augment.augmentation import generators
from data.augment.pipeline_file import LARGEST_FILE, read_pipeline
from data.augment.saved_pipeline import DEEPEST, REFUSED, parse_pipeline
from tests.conftest import ROOT
from utils.system.errors import UserError

PIPELINES = sorted((ROOT / "recipes" / "augment").glob("*.yaml"))
# Arguments without a default, and sizes that fit the image.
NEEDED: dict[str, Any] = {
    "height": 64, "width": 64, "size": (64, 64), "min_max_height": (40, 60), "num_grid_xy": (4, 4), "magnitude": 5,
}  # fmt: skip
SMALLER = {
    "LongestMaxSize": {"max_size": 50}, "SmallestMaxSize": {"max_size": 50}, "CropAndPad": {"px": 3},
    "Crop": {"x_max": 64, "y_max": 64}, "PadIfNeeded": {"min_height": 150, "min_width": 150},
}  # fmt: skip
# Other than the defaults: everything that draws in another way.
VARIANTS = (
    A.CoarseDropout(fill="random", num_holes_range=(1, 4), p=1),
    A.CoarseDropout(fill="random_uniform", hole_height_range=(4, 12), hole_width_range=(4, 12), p=1),
    A.Erasing(fill="inpaint_telea", p=1),
    A.GridDropout(unit_size_range=(10, 20), fill="random", p=1),
    A.PixelDropout(per_channel=True, drop_value=None, p=1),
    A.AdditiveNoise("gaussian", "shared", {"mean_range": (0, 0), "std_range": (0.1, 0.2)}, p=1),
    A.AdditiveNoise("beta", "per_pixel", {"alpha_range": (1, 2), "beta_range": (1, 2), "scale_range": (0.1, 0.2)}, p=1),
    A.MultiplicativeNoise(multiplier=(0.5, 1.5), per_channel=True, elementwise=True, p=1),
    A.GlassBlur(mode="exact", p=1),
    A.RandomSunFlare(method="physics_based", p=1),
    A.RandomSnow(method="texture", p=1),
    A.Spatter(mode="mud", p=1),
    A.ChromaticAberration(mode="random", p=1),
    A.HEStain(method="macenko", p=1),
    A.ToGray(method="pca", p=1),
    A.Equalize(mode="pil", by_channels=False, p=1),
    A.Affine(scale={"x": (0.8, 1.2), "y": 1}, translate_px={"x": (-9, 9), "y": 0}, rotate=(-30, 30), shear=5, p=1),
    A.ElasticTransform(alpha=30, sigma=5, noise_distribution="uniform", same_dxdy=True, p=1),
    A.Downscale(scale_range=(0.3, 0.6), interpolation_pair={"downscale": 3, "upscale": 1}, p=1),
    A.PadIfNeeded(min_height=150, min_width=None, pad_width_divisor=32, position="random", border_mode=4, p=1),
    A.RandomCrop(90, 150, pad_if_needed=True, pad_position="random", fill=(9, 99, 199), p=1),
)
# Every composition, in others.
NESTED = A.Compose(
    [
        A.OneOf([A.GaussNoise(p=1), A.Sequential([A.CoarseDropout(fill="random", p=1), A.HorizontalFlip()], p=1)], p=1),
        A.SomeOf([A.ColorJitter(p=1), A.MotionBlur(p=1), A.OneOf([A.RandomGamma(), A.SaltAndPepper(p=1)])], n=2, p=0.9),
        A.RandomOrder([A.RandomBrightnessContrast(p=1), A.Rotate(p=1), A.Perspective()], n=2),
        A.OneOrOther(A.VerticalFlip(p=1), A.Compose([A.RandomShadow(p=1), A.PixelDropout(p=1)]), p=0.5),
        A.RandomResizedCrop((48, 64), scale=(0.3, 1.0), p=1),
    ]
)


def accepted_kinds() -> list[type]:
    """All transforms of albumentations that take an image alone, to an image."""
    kinds = [kind for name, kind in SERIALIZABLE_REGISTRY.items() if getattr(A, name, None) is kind]
    abstract = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D, A.BaseCompose)
    more = ("MaskDropout", "Mosaic", "OverlayElements", "RandomCropNearBBox", "TextImage")
    return [
        kind for kind in kinds
        if issubclass(kind, A.BasicTransform) and not issubclass(kind, A.Transform3D)
        and kind not in abstract and kind.__name__ not in (*REFUSED, *more)
    ]  # fmt: skip


def example(kind: type) -> A.BasicTransform:
    parameters = inspect.signature(kind).parameters.values()
    needed = {each.name: NEEDED[each.name] for each in parameters if each.default is each.empty}
    return kind(**needed, **SMALLER.get(kind.__name__, {}), p=1.0)


def saved(transform: Any) -> str:
    text = io.StringIO()
    A.save(transform, text, data_format="yaml")
    return text.getvalue()


def parsed(text: str) -> A.Compose:
    return parse_pipeline(text.encode(), "pipeline.yaml")


def image() -> np.ndarray:
    noise = np.random.default_rng(0).integers(256, size=(12, 16, 3), dtype=np.uint8)
    return cv2.resize(noise, (130, 100))


def augmented(pipeline: A.Compose, index: int, seed: int = 0) -> np.ndarray:
    pipeline.set_random_state(*generators(seed, 2, index))
    return pipeline(image=image())["image"]


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")  # A.load's own, of what A.save wrote
@pytest.mark.parametrize("transform", [*map(example, accepted_kinds()), *VARIANTS, NESTED], ids=repr)
def test_what_save_wrote_is_read_as_albumentations_reads_it_and_depends_on_the_image_alone(transform):
    text = saved(transform)
    pipeline, theirs = parsed(text), A.load(io.StringIO(text), data_format="yaml")
    theirs = theirs if isinstance(theirs, A.Compose) else A.Compose([theirs])
    expected = [augmented(theirs, index) for index in range(3)]
    for index in (2, 0, 1, 0):  # in any order, whatever the state of the global generators
        np.random.seed(index)  # noqa: NPY002 -- the global one is meant
        random.seed(index)
        cv2.setRNGSeed(index)
        np.testing.assert_array_equal(augmented(pipeline, index), expected[index])


def test_images_epochs_and_seeds_differ():
    pipeline = parsed(saved(NESTED))
    seen = {augmented(pipeline, index, seed).tobytes() for index in range(20) for seed in range(2)}
    assert len(seen) == 40


def test_json_is_read_too():
    text = io.StringIO()
    A.save(NESTED, text, data_format="json")
    pipeline = parse_pipeline(text.getvalue().encode(), "pipeline.json")
    np.testing.assert_array_equal(augmented(pipeline, 3), augmented(parsed(saved(NESTED)), 3))


def test_a_missing_probability_is_that_of_the_class():
    pipeline = parsed("transform: {__class_fullname__: RandomCrop, height: 8, width: 9}")
    assert {augmented(pipeline, index).shape for index in range(20)} == {(8, 9, 3)}


def test_some_channels_are_augmented_alone():
    pipeline = parsed(
        "transform: {__class_fullname__: SelectiveChannelTransform, channels: [1], p: 1.0, transforms: "
        "[{__class_fullname__: InvertImg, p: 1.0}]}"
    )
    np.testing.assert_array_equal(augmented(pipeline, 0)[..., 1], 255 - image()[..., 1])
    np.testing.assert_array_equal(augmented(pipeline, 0)[..., ::2], image()[..., ::2])


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_the_pipelines_of_the_recipes_give_images_of_one_size(path):
    pipeline = parse_pipeline(path.read_bytes(), str(path))
    results = [augmented(pipeline, index) for index in range(50)]
    assert {result.shape for result in results} == {(128, 128, 3)}
    assert len({result.tobytes() for result in results}) == 50


def test_the_medical_pipeline_leaves_grey_images_grey():
    pipeline = parse_pipeline((ROOT / "recipes/augment/medical.yaml").read_bytes(), "medical.yaml")
    grey = np.repeat(image()[..., :1], 3, axis=2)
    for index in range(50):
        pipeline.set_random_state(*generators(0, 0, index))
        result = pipeline(image=grey)["image"]
        assert (result == result[..., :1]).all()


# -- what is refused --------------------------------------------------------------------------------------------------


def one(name: str, **arguments: Any) -> str:
    return yaml.safe_dump({"transform": {"__class_fullname__": name, **arguments}})


def inside(name: str = "HorizontalFlip", **arguments: Any) -> dict[str, Any]:
    return {"__class_fullname__": name, **arguments}


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)
WRONG = {  # text of a file, words of the line
    "nothing": ("", "it has no entry `transform`"),
    "a list": ("[1, 2]", "it has no entry `transform`"),
    "options": ("epochs: 3", "it has no entry `transform`"),
    "another entry": ("transform: {__class_fullname__: D4}\nnonserializable: {}", "unknown entry nonserializable"),
    "a transform that is a name": ("transform: HorizontalFlip", "it must be a mapping with __class_fullname__"),
    "no name": ("transform: {p: 1}", "it must be a mapping with __class_fullname__"),
    "a number for a name": ("transform: {__class_fullname__: 3}", "it must be a mapping with __class_fullname__"),
    "no YAML": ("transform: [", "not a YAML file"),
    "not UTF-8": (b"\xff\xfe\x00", "not a YAML file"),
    "an alias": ("transform: &x {__class_fullname__: D4}\nmore: *x", "*x is an alias"),
    "aliases that double": (BOMB, "*a is an alias"),
    "a key twice": ("transform: {__class_fullname__: Blur, p: 1, p: 0}", "p is given more than once"),
    "an object": ("transform: !!python/object:data.photo.Photo {}", "could not determine a constructor"),
    "a call": ("transform: !!python/object/apply:os.system [touch broken]", "could not determine a constructor"),
    "a name of Python": ("transform: {__class_fullname__: !!python/name:os.system ''}", "could not determine"),
    "a date": (one("Blur", p=1).replace("p: 1", "p: 2026-01-01"), "2026"),
    "bytes": ("transform: {__class_fullname__: Blur, p: !!binary aGk=}", "is not allowed; values are numbers"),
    "a set": ("transform: {__class_fullname__: Blur, p: !!set {a, b}}", "is not allowed; values are numbers"),
    "a number as key": ("transform: {__class_fullname__: Blur, 3: 4}", "must be texts"),
    "not a number": (one("Blur", p=float("nan")), "nan is not allowed"),
    "without end": (one("Blur", p=float("inf")), "inf is not allowed"),
    "a huge number": (one("Resize", height=10**6, width=10**6), "1000000 is not allowed"),
    "a number of many digits": (f"transform: {{__class_fullname__: Blur, p: {'9' * 5000}}}", "pipeline.yaml"),
    "a number of many digits in hexadecimal": (
        f"transform: {{__class_fullname__: Blur, p: 0x{'f' * 50_000}}}", "a number of many digits is not allowed"
    ),
    "lists in lists": (f"transform: {'[' * 5000}{']' * 5000}", "nested too deep"),
    "deep": (f"transform: {'[' * DEEPEST}{']' * DEEPEST}", f"at most {DEEPEST} levels"),
    "a function": (one("os.system"), "os.system: albumentations 2.0.8 has no such transform"),
    "an attribute": (one("__class__"), "has no such transform; write its name as A.save does"),
    "a module": (one("albumentations.augmentations.geometric.flip.HorizontalFlip"), "did you mean HorizontalFlip?"),
    "a class of ours": (one("data.augment.augmentation.SingleImage", augment="x"), "has no such transform"),
    "a base class": (one("DualTransform"), "has no such transform"),
    "a class that builds others": (one("BboxParams", format="coco"), "has no such transform"),
    "a long name": (one("x" * 9999), "has no such transform"),
    "a misspelt name": (one("HorizontalFlop"), "did you mean HorizontalFlip?"),
    "Lambda": (one("Lambda", image="x"), "Lambda: its functions cannot be in a file; remove Lambda"),
    "normalisation": (one("Normalize"), "the model takes uint8 RGB images and normalises them by itself; remove"),
    "a tensor": (one("ToTensorV2"), "the model takes uint8 RGB images and normalises them by itself; remove"),
    "reference images": (one("FDA", reference_images=["x.png"]), "its reference images cannot be in a file"),
    "metadata": (one("Mosaic"), "it needs mosaic_metadata, and there are only images; remove Mosaic"),
    "a mask": (one("MaskDropout"), "it needs mask, and there are only images; remove MaskDropout"),
    "boxes": (one("BBoxSafeRandomCrop"), "it needs boxes or masks"),
    "volumes": (one("CenterCrop3D", size=[8, 8, 8]), "it is for volumes; remove CenterCrop3D"),
    "an old argument": (one("CoarseDropout", max_holes=1), "CoarseDropout: unknown argument max_holes; "),
    "a misspelt argument": (one("RandomCrop", heigth=8, width=8), "unknown argument heigth; did you mean height?"),
    "strict": (one("Blur", strict=False), "unknown argument strict"),
    "self": (one("Blur", self=1), "unknown argument self"),
    "always_apply": (one("Blur", always_apply=True), "unknown argument always_apply"),
    "an argument that save writes, changed": (
        one("PadIfNeeded", min_height=8, min_width=8, padding=5), "unknown argument padding"
    ),
    "a missing argument": (one("Resize", height=8), "Resize: width is missing"),
    "a probability of 2": (one("Blur", p=2), "Blur: p: 2 is not allowed; Input should be less than or equal to 1"),
    "a word for a number": (one("Resize", height="tall", width=8), "height: tall is not allowed; "),
    "a mapping for a number": (one("Resize", height={"a": 1}, width=8), "height: {'a': 1} is not allowed; "),
    "a range upside down": (one("RandomResizedCrop", size=[8, 8], scale=[1.0, 0.1]), "RandomResizedCrop: "),
    "an even blur, which would be made odd": (one("MotionBlur", blur_limit=[4, 8]), "MotionBlur: "),
    "a mask of pixels": (one("Equalize", mask=[[1, 0]]), "Equalize: mask: "),
    "no transforms": (one("Compose"), "Compose: transforms is None; it must be a list of transforms"),
    "empty transforms": (one("OneOf", transforms=[]), "OneOf: transforms is []; it must be a list of transforms"),
    "a wrong transform inside": (
        one("Compose", transforms=[inside(), inside("OneOf", transforms=[inside("Blur", q=1)])]),
        "pipeline.yaml: transform 2.1, Blur: unknown argument q",
    ),
    "one without a name inside": (one("Compose", transforms=[inside(), 3]), "pipeline.yaml: transform 2 is 3; "),
    "a probability that is a word": (one("OneOf", transforms=[inside()], p="x"), "p: x is not allowed; it must be a"),
    "a probability of true": (one("OneOf", transforms=[inside()], p=True), "p: True is not allowed"),
    "an unknown argument of a composition": (one("OneOf", transforms=[inside()], n=1), "unknown argument n"),
    "no weights": (one("OneOf", transforms=[inside(p=0)]), "OneOf: "),
    "more than there are": (one("SomeOf", transforms=[inside()], n=2), "`n` is greater than number of"),
    "one or the other of three": (one("OneOrOther", transforms=[inside(), inside(), inside()]), "is not equal to 2"),
    "a seed": (one("Compose", transforms=[inside()], seed=3), "seed: 3 is not allowed; it must be empty"),
    "parameters of boxes": (
        one("Compose", transforms=[inside()], bbox_params={"format": "coco"}), "it must be empty: there are only images"
    ),
    "more targets": (one("Compose", transforms=[inside()], additional_targets={"b": "image"}), "it must be empty"),
    "channels that save did not write": (
        one("SelectiveChannelTransform", transforms=[inside()]), "channels is missing; A.save does not write it"
    ),
    "a fourth channel": (
        one("SelectiveChannelTransform", transforms=[inside()], channels=[3]), "channels: [3] is not allowed"
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_pipeline_is_refused_in_one_line(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        parse_pipeline(text if isinstance(text, bytes) else text.encode(), "pipeline.yaml")
    line = str(refused.value)
    assert line.startswith("augment_file: pipeline.yaml: ")
    assert words in line
    assert "\n" not in line
    assert len(line) < 600
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_a_pipeline_is_not_read(tmp_path):
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (LARGEST_FILE + 1))
    for path, words in [
        (large, "more than such a file has"),
        (tmp_path, "is not a file"),
        (tmp_path / "none.yaml", "is missing"),
        (Path("/dev/zero"), "is not a file"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ]:
        with pytest.raises(UserError, match=words) as refused:
            read_pipeline(str(path))
        assert str(refused.value).startswith("augment_file: ")
