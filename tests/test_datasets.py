"""Data sets: what is in them, splits, statistics, and the one line that names the path of whatever is wrong."""

import contextlib
import hashlib
import io
import pickle
import random
import shutil
import socket
import tarfile
import threading
import warnings
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.datasets import CIFAR10, CIFAR100

from data import sources
from data.files import ImageFiles, read_image
from data.images import InMemory
from data.paths import Paths
from data.preprocessing import Geometry, channel_statistics, square
from data.sources import download, load_dataset
from data.splits import Dataset, stratified_split
from utils.config.images import DATASETS
from utils.system.errors import EnvironmentFault, UserError, one_line

ROOT = Path(__file__).parents[1]
REAL_CIFAR = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"


def picture(seed: int, width: int = 40, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth coloured picture, different for every seed."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    slopes, starts = rng.uniform(-3, 3, (2, 3)), rng.uniform(60, 190, 3)
    pixels = starts + x[..., None] * slopes[0] + y[..., None] * slopes[1]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def image_folder(root: Path, classes=("cat", "dog"), train: int = 6, test: int = 3, test_name: str = "test") -> Path:
    seed = 0
    for split, count in (("train", train), (test_name, test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                picture(seed).save(root / split / name / f"{index}.png")
                seed += 1
    return root


def load(root: Path, **options) -> Dataset:
    return load_dataset("imagefolder", root, **{"geometry": 32, **options})


def mistake(root: Path, **options) -> str:
    """The line of a data set that must be refused."""
    with pytest.raises(UserError) as refused:
        load(root, **options)
    return one_line(refused.value)


# -- digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", "nowhere")


def test_digits_are_rgb_images_with_labels(digits):
    assert (len(digits.train), len(digits.test), digits.validation) == (1437, 360, None)
    assert digits.train.images[:].shape == (1437, 32, 32, 3)
    assert digits.train.images[:].dtype == np.uint8
    assert digits.train.labels.dtype == np.int64
    assert digits.class_names == tuple("0123456789")
    assert digits.geometry.size == (32, 32)
    assert (digits.train.images[:][..., 0] == digits.train.images[:][..., 2]).all()
    assert digits.train.images[:].min() == 0
    assert digits.train.images[:].max() == 255


def test_digits_in_train_and_test_are_different_images(digits):
    train = {image.tobytes() for image in digits.train.images}
    assert len(train) == 1437
    assert not train & {image.tobytes() for image in digits.test.images}


def test_digits_have_the_same_share_of_every_class_in_train_and_test(digits):
    train, test = (np.bincount(split.labels, minlength=10) for split in (digits.train, digits.test))
    assert (np.abs(test - (train + test) * 0.2) <= 1).all()


def test_digits_are_the_same_in_every_run_and_whatever_the_seed(digits):
    again = load_dataset("digits", "elsewhere", seed=5)
    assert (again.train.images[:] == digits.train.images[:]).all()
    assert (again.test.labels == digits.test.labels).all()


def test_digits_come_in_the_size_asked_for():
    small = load_dataset("digits", "nowhere", 16)
    assert small.train.images[:].shape == (1437, 16, 16, 3)
    assert small.geometry.size == (16, 16)


# -- statistics -------------------------------------------------------------------------------------------------------


def test_mean_and_std_are_those_of_the_training_images(digits):
    values = digits.train.images[:] / 255
    np.testing.assert_allclose(digits.mean, values.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(digits.std, values.std((0, 1, 2)), atol=1e-9)


def test_test_images_do_not_touch_the_statistics(tmp_path):
    root = image_folder(tmp_path)
    before = load(root)
    for path in (root / "test").rglob("*.png"):
        Image.new("RGB", (40, 40), "white").save(path)
    after = load(root)
    assert (after.mean, after.std) == (before.mean, before.std)
    np.testing.assert_allclose(after.mean, (after.train.images[:] / 255).mean((0, 1, 2)), atol=1e-12)


def test_validation_images_do_not_touch_the_statistics(tmp_path):
    data = load(image_folder(tmp_path), validation_fraction=0.5)
    np.testing.assert_allclose(data.mean, (data.train.images[:] / 255).mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(data.std, (data.train.images[:] / 255).std((0, 1, 2)), atol=1e-9)


@pytest.mark.parametrize("value", [0, 1, 77, 128, 254, 255])
def test_images_of_one_colour_have_finite_statistics(value):
    mean, std = channel_statistics(InMemory(np.full((3, 8, 8, 3), value, np.uint8)))
    np.testing.assert_allclose(mean, value / 255)
    assert std == pytest.approx((1e-3,) * 3)


def test_statistics_are_exact_over_more_images_than_a_block():
    images = np.random.default_rng(0).integers(0, 256, (2500, 32, 32, 3), dtype=np.uint8)
    images[2400:] //= 8
    mean, std = channel_statistics(InMemory(images))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), atol=1e-9)


def test_statistics_are_the_same_in_memory_and_on_disk(tmp_path, monkeypatch):
    """Where the images lie depends on the machine and on the number of processes."""
    monkeypatch.setattr(sources, "STATISTICS_SAMPLE", 5)
    root = image_folder(tmp_path)
    held, on_disk = load(root), load(root, memory_fraction=0.0)
    assert held.train.images.in_memory is not None
    assert on_disk.train.images.in_memory is None
    assert (held.mean, held.std) == (on_disk.mean, on_disk.std)
    sample = held.train.images[np.linspace(0, 11, 5).astype(int)]
    np.testing.assert_allclose(held.mean, (sample / 255).mean((0, 1, 2)), atol=1e-12)


# -- folders of images ------------------------------------------------------------------------------------------------


def test_classes_are_sorted_by_name_and_labels_follow(tmp_path):
    root = image_folder(tmp_path, classes=("zebra", "Ape", "dog"))
    data = load(root)
    assert data.class_names == ("Ape", "dog", "zebra")
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert data.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert (data.train.images[0] == read_image(root / "train" / "Ape" / "0.png", square(32))).all()


def test_val_stands_in_for_test(tmp_path):
    data = load(image_folder(tmp_path, test_name="val"))
    assert len(data.test) == 6


def test_unicode_and_spaces_in_names(tmp_path):
    root = image_folder(tmp_path / "mes données 数据", classes=("chat noir", "été", "犬 one"))
    data = load(root)
    assert data.class_names == ("chat noir", "été", "犬 one")
    assert len(data.train) == 18


def test_hidden_files_and_folders_and_other_files_are_left_out(tmp_path):
    root = image_folder(tmp_path)
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "cat" / "._0.png").write_bytes(b"resource fork")
    (root / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "README.md").write_text("not a class")
    data = load(root)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) == 12


@pytest.mark.parametrize("memory_fraction", [0.0, 0.25])
def test_images_know_their_files_in_memory_and_out_of_it(tmp_path, memory_fraction):
    train = load(image_folder(tmp_path), memory_fraction=memory_fraction).train.subset(np.array([7, 2]))
    assert [read_image(path, square(32)).tolist() for path in train.paths] == [
        train.images[i].tolist() for i in range(2)
    ]


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "PNG", "JPG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_grey_and_colour(tmp_path, suffix, mode):
    original = picture(1, 32, 32, mode)
    original.save(tmp_path / f"image.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(tmp_path / f"image.{suffix}", square(32))
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    close = 12 if suffix.lower().startswith("jp") else 0
    assert np.abs(image.astype(int) - np.asarray(original.convert("RGB"))).max() <= close


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_transparent_palette_and_bilevel_png(tmp_path, mode):
    original = picture(2, 32, 32).convert({"LA": "L"}.get(mode, "RGB")).convert(mode)
    original.save(tmp_path / "image.png")
    assert (read_image(tmp_path / "image.png", square(32)) == np.asarray(original.convert("RGB"))).all()


def test_cmyk_jpeg(tmp_path):
    original = picture(3, 32, 32)
    original.convert("CMYK").save(tmp_path / "image.jpg", quality=95)
    image = read_image(tmp_path / "image.jpg", square(32))
    assert np.abs(image.astype(int) - np.asarray(original)).mean() < 4


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (32, 1))).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png", square(32))
    assert np.abs(image[0, :, 0] - ramp / 257).max() <= 1


def test_photo_taken_sideways_is_upright(tmp_path):
    upright = Image.new("RGB", (32, 32), "black")
    upright.paste("white", (0, 0, 32, 16))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise by a quarter
    upright.rotate(90).save(tmp_path / "photo.jpg", quality=95, exif=exif)
    image = read_image(tmp_path / "photo.jpg", square(32))
    assert image[:14].min() > 200
    assert image[18:].max() < 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_every_way_to_hold_the_camera_ends_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(4, 32, 32).save(tmp_path / f"photo.{suffix}", exif=exif)
    with Image.open(tmp_path / f"photo.{suffix}") as photo:
        assert (
            read_image(tmp_path / f"photo.{suffix}", square(32)) == np.asarray(ImageOps.exif_transpose(photo))
        ).all()


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (640, 480), (31, 33), (1500, 20)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_any_size_becomes_a_square_of_image_size(tmp_path, size, suffix):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / f"image.{suffix}")
    image = read_image(tmp_path / f"image.{suffix}", square(24))
    assert image.shape == (24, 24, 3)
    assert np.abs(image.astype(int) - (10, 200, 30)).max() <= 4


def test_a_wide_picture_is_cropped_at_its_centre_not_squeezed(tmp_path):
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    wide.save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", square(32)) == (0, 0, 255)).all()


def test_images_from_disk_are_those_from_memory(tmp_path):
    root = image_folder(tmp_path)
    picture(99, 300, 200).save(root / "train" / "cat" / "large.jpg")
    kept, read = load(root, memory_fraction=1.0), load(root, memory_fraction=0.0)
    assert isinstance(kept.train.images, InMemory)
    for ours, theirs in ((kept.train, read.train), (kept.test, read.test)):
        assert (np.stack([theirs.images[index] for index in range(len(theirs))]) == ours.images[:]).all()
        assert (ours.labels == theirs.labels).all()
    assert (kept.mean, kept.std) == (read.mean, read.std)


def test_large_sets_hold_paths_not_pixels(tmp_path):
    data = load(image_folder(tmp_path), memory_fraction=0.0, validation_fraction=0.5)
    for split in (data.train, data.validation, data.test):
        assert isinstance(split.images, ImageFiles)
        assert len(split.images) == len(split.labels)
        assert all(isinstance(value, (Geometry, Paths)) for value in vars(split.images).values())
        assert all(isinstance(path, str) for path in split.images.paths)


# -- what is wrong with a folder --------------------------------------------------------------------------------------


def test_missing_root_names_the_path(tmp_path):
    assert mistake(tmp_path / "nowhere") == f"data_dir: {tmp_path / 'nowhere'} is not a folder"


def test_missing_train_names_the_path(tmp_path):
    assert mistake(tmp_path) == f"data_dir: {tmp_path} has no folder train/<class>/"


def test_missing_test_names_the_path(tmp_path):
    root = image_folder(tmp_path)
    shutil.rmtree(root / "test")
    assert mistake(root) == f"data_dir: {root} has neither a folder test/ nor val/"


def test_train_without_classes_names_the_path(tmp_path):
    root = image_folder(tmp_path)
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    assert mistake(root) == f"data_dir: {root / 'train'} has no class folders"


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_without_images_names_the_path(tmp_path, split):
    root = image_folder(tmp_path)
    for path in (root / split / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    assert mistake(root).startswith(f"data_dir: {root / split / 'dog'} holds no image")


def test_class_missing_in_test_names_the_path(tmp_path):
    root = image_folder(tmp_path)
    shutil.rmtree(root / "test" / "dog")
    assert mistake(root) == f"data_dir: class 'dog' has no folder in {root / 'test'}"


def test_class_only_in_test_names_the_path(tmp_path):
    root = image_folder(tmp_path)
    shutil.copytree(root / "test" / "dog", root / "test" / "fox")
    assert mistake(root) == f"data_dir: class 'fox' has no folder in {root / 'train'}"


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    spoiled = {"empty": b"", "text": b"not an image", "truncated": content[: len(content) // 2]}
    path.write_bytes(spoiled[how])


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_unreadable_file_names_the_path(tmp_path, how, suffix, split):
    root = image_folder(tmp_path, train=2, test=2)
    path = root / split / "cat" / f"new.{suffix}"
    picture(5).save(path)
    spoil(path, how)
    assert mistake(root).startswith(f"data_dir: {path} is not a readable image")


def test_unreadable_file_on_disk_names_the_path_when_it_is_asked_for(tmp_path):
    root = image_folder(tmp_path)
    data = load(root, memory_fraction=0.0)
    spoil(Path(data.test.images.paths[2]), "truncated")
    with pytest.raises(UserError, match=r"test/cat/2\.png is not a readable image"):
        data.test.images[2]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_no_damage_to_a_file_ends_in_anything_but_the_one_line(tmp_path, suffix):
    path, chance = tmp_path / f"image.{suffix}", random.Random(0)
    picture(7, 48, 64).save(path)
    whole, refused = path.read_bytes(), 0
    for trial in range(150):
        damaged = bytearray(whole)
        for _ in range(1 + trial % 5):
            damaged[chance.randrange(min(len(damaged), 150))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own, on odd metadata
                assert read_image(path, square(32)).shape == (32, 32, 3)
        except UserError as error:
            refused += f"{path} is not a readable image" in str(error)
    assert refused > 20


def test_a_file_that_claims_to_be_gigantic_is_refused(tmp_path):
    picture(8).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(UserError, match=r"bomb\.png is not a readable image"):
        read_image(tmp_path / "bomb.png", square(32))


# -- the validation split ---------------------------------------------------------------------------------------------


def test_validation_is_stratified_disjoint_and_complete():
    labels = np.repeat(np.arange(5), [100, 200, 40, 60, 80])
    rest, held_out = stratified_split(labels, 0.25, seed=0)
    assert sorted([*rest, *held_out]) == list(range(480))
    assert np.bincount(labels[held_out]).tolist() == [25, 50, 10, 15, 20]
    assert (np.diff(rest) > 0).all()
    assert (np.diff(held_out) > 0).all()


def test_validation_is_a_function_of_the_seed():
    labels = np.arange(300) % 3
    once, again, other = (stratified_split(labels, 0.2, seed)[1] for seed in (1, 1, 2))
    assert (once == again).all()
    assert set(once) != set(other)


def test_validation_images_are_training_images_that_are_not_trained_on(digits):
    data = load_dataset("digits", "nowhere", validation_fraction=0.1, seed=3)
    train, validation = ({image.tobytes() for image in part.images} for part in (data.train, data.validation))
    assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
    assert not train & validation
    assert train | validation == {image.tobytes() for image in digits.train.images}
    assert (data.test.images[:] == digits.test.images[:]).all()


@pytest.mark.parametrize("classes", [("cat", "dog"), tuple("abcdefgh")])
def test_impossible_validation_split_is_one_line(tmp_path, classes):
    root = image_folder(tmp_path, classes=classes, train=1 if len(classes) == 2 else 2, test=1)
    assert mistake(root, validation_fraction=0.1).startswith("validation_fraction: 0.1 cannot be split off")


# -- CIFAR ------------------------------------------------------------------------------------------------------------


def cifar_archive(kind: type, folder: Path, monkeypatch) -> Path:
    """A small archive in CIFAR's own format; the checksums that torchvision verifies are set to its files'."""
    rng, folder = np.random.default_rng(0), Path(folder)
    count = 10 if kind is CIFAR10 else 100
    label_key = "labels" if kind is CIFAR10 else "fine_labels"

    def content(size: int) -> bytes:
        pixels = rng.integers(0, 256, (size, 3072), dtype=np.uint8)
        return pickle.dumps({"data": pixels, label_key: [index % count for index in range(size)]})

    names = [name for name, _ in kind.train_list + kind.test_list]
    files = {name: content(count) for name in names}
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: [f"class {index}" for index in range(count)]})
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(kind, "train_list", [[name, md5[name]] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, md5[name]] for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5[kind.meta["filename"]]})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / kind.filename
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "url", unreachable())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return path


def unreachable() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/archive.tar.gz"


KINDS = pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])


@KINDS
def test_cifar_is_read_from_an_archive_that_was_put_into_the_folder(tmp_path, monkeypatch, name, kind):
    cifar_archive(kind, tmp_path, monkeypatch)
    download(name, tmp_path)
    data = load_dataset(name, tmp_path)
    classes = 10 if kind is CIFAR10 else 100
    assert data.class_names == tuple(f"class {index}" for index in range(classes))
    assert data.train.images[:].shape == (len(kind.train_list) * classes, 32, 32, 3)
    assert data.train.images.array.flags["C_CONTIGUOUS"]
    assert data.train.labels.dtype == np.int64
    assert Counter(data.train.labels.tolist()) == dict.fromkeys(range(classes), len(kind.train_list))
    assert len(data.test) == classes
    first = pickle.loads((tmp_path / kind.base_folder / kind.train_list[0][0]).read_bytes())["data"][0]
    assert (data.train.images[0] == first.reshape(3, 32, 32).transpose(1, 2, 0)).all()
    np.testing.assert_allclose(data.mean, (data.train.images[:] / 255).mean((0, 1, 2)), atol=1e-12)


@contextlib.contextmanager
def served(file: Path, bytes_sent: int | None = None):
    """The address of a file on a server of this machine, which hangs up after `bytes_sent`."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(file.stat().st_size))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(file.read_bytes()[:bytes_sent])

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{file.name}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@KINDS
def test_cifar_is_downloaded_on_first_use_and_only_then(tmp_path, monkeypatch, name, kind):
    archive = cifar_archive(kind, tmp_path / "server", monkeypatch)
    with served(archive) as url:
        monkeypatch.setattr(kind, "url", url)
        download(name, tmp_path / "datasets")
    assert len(load_dataset(name, tmp_path / "datasets").test) > 0
    download(name, tmp_path / "datasets")  # the server is gone


def test_a_download_that_breaks_off_is_a_fault_and_the_next_one_starts_afresh(tmp_path, monkeypatch):
    archive = cifar_archive(CIFAR10, tmp_path / "server", monkeypatch)
    with served(archive, bytes_sent=1000) as url:
        monkeypatch.setattr(CIFAR10, "url", url)
        with pytest.raises(EnvironmentFault, match="cifar10 could not be downloaded"):
            download("cifar10", tmp_path / "datasets")
    with served(archive) as url:
        monkeypatch.setattr(CIFAR10, "url", url)
        download("cifar10", tmp_path / "datasets")
    assert len(load_dataset("cifar10", tmp_path / "datasets").test) > 0


@KINDS
def test_without_a_connection_the_line_says_how_to_go_on(tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr(kind, "url", unreachable())
    with pytest.raises(EnvironmentFault) as fault:
        download(name, tmp_path / "datasets")
    line = one_line(fault.value)
    assert f"put {kind.filename} into {tmp_path / 'datasets'}" in line
    assert "--dataset digits" in line
    assert fault.value.exit_code == 1


@KINDS
def test_a_changed_byte_in_cifar_is_refused(tmp_path, monkeypatch, name, kind):
    cifar_archive(kind, tmp_path, monkeypatch)
    download(name, tmp_path)
    path = tmp_path / kind.base_folder / kind.test_list[0][0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path} does not hold {name}"):
        load_dataset(name, tmp_path)


@KINDS
def test_a_changed_byte_in_the_archive_is_refused(tmp_path, monkeypatch, name, kind):
    path = cifar_archive(kind, tmp_path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(EnvironmentFault, match="could not be downloaded"):
        download(name, tmp_path)
    assert not (tmp_path / kind.base_folder).exists()


def test_missing_cifar_names_folder_and_file(tmp_path):
    with pytest.raises(UserError, match=rf"data_dir: {tmp_path} does not hold cifar10 \(put cifar-10-python.tar.gz"):
        load_dataset("cifar10", tmp_path)


def test_every_data_set_is_registered_with_its_source():
    for name in DATASETS:
        assert {"train", "test"} <= set(sources.get_source(name).splits)


def test_digits_and_folders_need_no_download(tmp_path):
    for name in ("digits", "imagefolder"):
        download(name, tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not REAL_CIFAR.exists(), reason="the copy of CIFAR-10 is not on this machine")
def test_real_cifar_images_are_read_as_they_are(tmp_path):
    with tarfile.open(REAL_CIFAR, "r|xz") as archive:
        count = 0
        for member in archive:
            if member.isfile():
                folder = tmp_path / ("train" if count % 4 else "test") / Path(member.name).parent.name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / Path(member.name).name).write_bytes(archive.extractfile(member).read())
                count += 1
            if count == 200:
                break
    data = load(tmp_path)
    assert (len(data.train), len(data.test), data.class_names) == (150, 50, ("airplane",))
    paths = sorted((tmp_path / "train" / "airplane").iterdir())
    for image, path in zip(data.train.images, paths, strict=True):
        assert (image == np.asarray(Image.open(path))).all()
    assert all(0.4 < value < 0.65 for value in data.mean)  # airplanes are bright
    assert all(0.15 < value < 0.35 for value in data.std)
