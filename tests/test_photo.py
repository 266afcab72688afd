"""Parts of photos: the same pixels however they are decoded, and the same errors."""

import io
import os
import random
import sys
import types
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from data import jpeg
from data.augment import ImagePipeline
from data.augment.resized_crop import ResizedCrop
from data.files import FilePhoto, ImageFiles, decode_file
from data.jpeg import reduced
from data.loaders import Steps, TrainLoader
from data.paths import Paths
from data.photo import ArrayPhoto, reduction_for, scaled
from data.photo_cache import cached_photos
from data.preprocessing import square
from data.sources import load_dataset
from data.splits import Split
from tests.processes import CONTEXT, run, tiny_config, train_script
from utils.system.errors import UserError

BILINEAR, BICUBIC, LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
PHOTOS = [np.ascontiguousarray(image) for image in load_sample_images().images]  # 427 x 640
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
BOX = 60, 100, 200, 300


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch) -> str:
    """JPEGs are decoded by simplejpeg, if it is installed, or by Pillow."""
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")
        assert jpeg._simplejpeg() is not None
    return request.param


def saved(path: Path, pixels: np.ndarray, orientation: int = 1, **options) -> Path:
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(path, "JPEG", **{"quality": 90, "exif": exif, **options})
    return path


def part(path: Path, box: jpeg.Box) -> np.ndarray:
    """Unscaled, exactly decoded."""
    return FilePhoto(path).cut(box, box[2:], BILINEAR, exact=True)


def boxes(height: int, width: int, count: int) -> list[jpeg.Box]:
    draw = np.random.default_rng(0)
    sides = draw.integers(8, [height + 1, width + 1], (count, 2)).tolist()
    return [
        (int(draw.integers(height - high + 1)), int(draw.integers(width - wide + 1)), high, wide)
        for high, wide in sides
    ]


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS.values(), ids=SUBSAMPLINGS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
def test_a_part_has_the_pixels_of_the_whole_photo(tmp_path, decoder, subsampling, options):
    for number, pixels in enumerate(PHOTOS):
        path = saved(tmp_path / f"{number}.jpg", pixels, subsampling=subsampling, **options)
        whole = np.asarray(decode_file(path))
        for top, left, height, width in boxes(*pixels.shape[:2], 8):
            expected = whole[top : top + height, left : left + width]
            assert (part(path, (top, left, height, width)) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_is_that_of_the_upright_photo(tmp_path, decoder, orientation):
    path = saved(tmp_path / "photo.jpg", PHOTOS[0], orientation)
    whole, photo = np.asarray(decode_file(path)), FilePhoto(path)
    assert (photo.height, photo.width) == whole.shape[:2]
    for top, left, height, width in boxes(*whole.shape[:2], 6):
        expected = whole[top : top + height, left : left + width]
        assert (part(path, (top, left, height, width)) == expected).all()
        close = photo.cut((top, left, height, width), (8, 8), BILINEAR).astype(int)
        assert np.abs(close - scaled(expected, (8, 8), BILINEAR)).mean() < 12


@pytest.mark.parametrize("subsampling", [*SUBSAMPLINGS.values(), "4:4:0", "4:1:1", "RGB"])
@pytest.mark.parametrize("size", [(20, 30), (50, 60), (90, 140), (180, 200)])
def test_both_decoders_give_the_same_pixels(tmp_path, monkeypatch, subsampling, size):
    simplejpeg = pytest.importorskip("simplejpeg")
    path = tmp_path / "photo.jpg"
    for pixels in PHOTOS:
        if subsampling in ("4:4:0", "4:1:1"):  # which Pillow reads and does not write
            path.write_bytes(simplejpeg.encode_jpeg(pixels, 90, colorsubsampling=subsampling.replace(":", "")))
        elif subsampling == "RGB":
            saved(path, pixels, keep_rgb=True)
        else:
            saved(path, pixels, subsampling=subsampling)
        for box in (BOX, (227, 340, 200, 300), (0, 0, *pixels.shape[:2])):
            with monkeypatch.context() as patched:
                mine = FilePhoto(path).cut(box, size, BILINEAR)
                patched.setattr(jpeg, "_simplejpeg", lambda: None)
                assert (mine == FilePhoto(path).cut(box, size, BILINEAR)).all()


def test_another_simplejpeg_that_gives_other_pixels_is_not_used(monkeypatch):
    def decode_jpeg(data, min_factor=1, **_):
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (image.width // min_factor, image.height // min_factor))
        return np.asarray(image) ^ 1

    try:
        for function in (decode_jpeg, lambda data: None):
            monkeypatch.setitem(sys.modules, "simplejpeg", types.SimpleNamespace(decode_jpeg=function))
            jpeg._simplejpeg.cache_clear()
            assert jpeg._simplejpeg() is None
    finally:
        jpeg._simplejpeg.cache_clear()


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "I;16", "RGBA", "1", "LA"])
def test_other_images_are_cut_as_they_are_shown(tmp_path, decoder, mode):
    kind = "JPEG" if mode in ("L", "CMYK") else "PNG"
    image = Image.fromarray(PHOTOS[0]).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image)[..., 0].astype(np.uint16) << 8) + 3)
    image.save(tmp_path / "image.jpg", kind)
    top, left, height, width = BOX
    whole = np.asarray(decode_file(tmp_path / "image.jpg"))
    assert (part(tmp_path / "image.jpg", BOX) == whole[top : top + height, left : left + width]).all()


@pytest.mark.parametrize("method", [BILINEAR, BICUBIC, LANCZOS])
def test_parts_are_scaled_as_pillow_does(method):
    for top, left, height, width in boxes(*PHOTOS[1].shape[:2], 12):
        pixels = PHOTOS[1][top : top + height, left : left + width]
        for size in ((24, 24), (100, 160), (300, 64), (height, width)):
            expected = Image.fromarray(pixels).resize((size[1], size[0]), method)
            difference = np.abs(scaled(pixels, size, method).astype(int) - np.asarray(expected))
            assert difference.max() <= (0 if method == LANCZOS else 2)
            assert (difference > 0).mean() < 0.03


# -- decoding at a fraction of the size -------------------------------------------------------------------------------


def test_a_photo_is_decoded_at_the_smallest_fraction_that_has_enough_pixels():
    assert [reduction_for((0, 0, side, 2 * side), (100, 150)) for side in (1, 100, 199, 200, 399, 400, 800, 5000)] == [
        *(1, 1, 1, 2, 2, 4, 8, 8)
    ]


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_edges_are_rounded_to_pixels_of_the_reduced_photo(reduction):
    for full in range(1, 60):
        for start in range(full):
            for length in range(1, full - start + 1):
                first, last = reduced(start, length, reduction)
                assert 0 <= first < last <= -(-full // reduction)
                if length >= reduction:
                    assert abs(reduction * first - start) <= reduction / 2
                    assert abs(reduction * last - start - length) <= reduction / 2


def test_exact_decoding_uses_every_pixel_and_other_decoding_comes_close(tmp_path, decoder):
    path = saved(tmp_path / "photo.jpg", np.array(Image.fromarray(PHOTOS[0]).resize((1600, 1200), BICUBIC)))
    whole = ArrayPhoto(np.asarray(decode_file(path)))
    for box in boxes(1200, 1600, 12):
        exact = FilePhoto(path).cut(box, (64, 64), BICUBIC, exact=True)
        assert (exact == whole.cut(box, (64, 64), BICUBIC)).all()
        assert np.abs(FilePhoto(path).cut(box, (64, 64), BICUBIC).astype(int) - exact).mean() < 8


# -- damage -----------------------------------------------------------------------------------------------------------


def outcome(function) -> np.ndarray | str:
    try:
        return function()
    except UserError as error:
        return str(error)


def test_truncated_photos_are_refused_wherever_they_end(tmp_path, decoder):
    whole = saved(tmp_path / "photo.jpg", PHOTOS[0]).read_bytes()
    for end in (0, 2, 3, 20, 300, 700, len(whole) // 4, len(whole) // 2, len(whole) - 1000, len(whole) - 2):
        (tmp_path / "cut.jpg").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut\.jpg is not a readable image"):
            FilePhoto(tmp_path / "cut.jpg").cut((0, 0, 16, 16), (16, 16), BILINEAR)


def damaged(whole: bytes, draw: random.Random) -> bytes:
    data, place = bytearray(whole), draw.randrange(2, len(whole))
    kind = draw.choice(["bits", "zeros", "gap", "marker"])
    if kind == "bits":
        for _ in range(5):
            data[draw.randrange(2, len(data))] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        data[place : place + 50] = bytes(len(data[place : place + 50]))
    elif kind == "gap":
        del data[place : place + draw.randrange(1, 3000)]
    else:
        data[place : place + 2] = bytes((0xFF, draw.choice([0xC0, 0xC4, 0xD0, 0xD9, 0xDA, 0xDB, 0xE1])))
    return bytes(data)


def test_a_damaged_photo_is_read_or_refused_as_a_whole_one_is(tmp_path, decoder):
    whole, draw, path = (
        saved(tmp_path / "photo.jpg", PHOTOS[1]).read_bytes(),
        random.Random(0),
        tmp_path / "damaged.jpg",
    )
    results = {"read": 0, "refused": 0}
    for _ in range(200):
        path.write_bytes(damaged(whole, draw))
        expected = outcome(lambda: np.asarray(decode_file(path)))
        if isinstance(expected, str):
            assert outcome(lambda: part(path, (0, 0, 8, 8))) == expected
            results["refused"] += 1
            continue
        height, width = expected.shape[:2]
        box = height // 8, width // 4, max(1, height // 2), max(1, width // 2)
        assert (part(path, box) == ArrayPhoto(expected).cut(box, box[2:], BILINEAR)).all()
        results["read"] += 1
    assert min(results.values()) > 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: None])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "photo.jpg")
    with pytest.raises(UserError, match=r"photo\.jpg is not a readable image"):
        _ = FilePhoto(tmp_path / "photo.jpg").height


# -- the cache of photos ----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path) -> Path:
    """An image folder: JPEGs of many sizes, one of them turned, and a small PNG."""
    for split in ("train", "test"):
        for number, name in enumerate("aab"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            size = 200 + 60 * number, 300
            pixels = np.array(Image.fromarray(PHOTOS[number % 2]).resize(size))
            saved(folder / f"{number}.jpg", pixels, orientation=6 if number == 1 else 1)
            Image.fromarray(pixels[:50, :40]).save(folder / f"{number}.png")
    return tmp_path / "images"


def load_cached(root: Path, side: int | None = 100):
    return load_dataset("imagefolder", root, 24, memory_fraction=0.0, train_from_disk=True, cache_side=side)


def stored(root: Path) -> list[str]:
    return sorted(path.name.rsplit("-", 1)[0] for path in (root / ".decoded").glob("photos-*"))


def test_cached_photos_are_the_photos_with_a_shorter_side(root, capsys):
    cached, originals = (load_cached(root, side).train.images for side in (100, None))
    sizes = set()
    for mine, original in zip(cached.photos(range(6)), originals.photos(range(6)), strict=True):
        assert min(mine.height, mine.width) == min(100, original.height, original.width)
        assert mine.height / mine.width == pytest.approx(original.height / original.width, abs=0.01)
        sizes.add((mine.height, mine.width))
        everything = 0, 0, original.height, original.width
        expected = original.cut(everything, (mine.height, mine.width), BILINEAR, exact=True).astype(int)
        assert np.abs(mine.whole() - expected).mean() < 5
    assert len(sizes) == 4
    assert (stored(root), "6 photos into a cache of 0.1 MiB" in capsys.readouterr().err) == (["photos-100"], True)


def test_only_training_crops_come_from_the_cache(root):
    mine, plain = load_cached(root), load_cached(root, None)
    assert (mine.train.images[:] == plain.train.images[:]).all()
    assert (mine.test.images[:] == plain.test.images[:]).all()
    assert (mine.mean, mine.std, mine.describe()) == (plain.mean, plain.std, plain.describe())


def test_a_second_start_decodes_no_photo_and_a_subset_has_its_own(root, monkeypatch, capsys):
    first = load_cached(root).train
    monkeypatch.setattr("data.photo_cache._shrunk", lambda *_: pytest.fail("a photo was decoded"))
    capsys.readouterr()
    second = load_cached(root).train.subset(np.array([4, 1]))
    for mine, expected in zip(second.images.photos([0, 1]), first.images.photos([4, 1]), strict=True):
        assert (mine.whole() == expected.whole()).all()
    assert (second.images[:] == first.images[np.array([4, 1])]).all()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: whole[:128], lambda whole: b"", "table"])
def test_a_damaged_cache_of_photos_is_made_again(root, damage):
    expected = [photo.whole().copy() for photo in load_cached(root).train.images.photos(range(6))]
    path = next((root / ".decoded").glob("photos-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:128] + b"\xff" * 8 + whole[136:] if damage == "table" else damage(whole))
    for mine, pixels in zip(load_cached(root).train.images.photos(range(6)), expected, strict=True):
        assert (mine.whole() == pixels).all()
    assert path.read_bytes() == whole


def test_a_cache_that_does_not_fit_is_refused_before_it_is_written(root, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(
        UserError, match=r"^cache_side: 100 is not allowed here; the cache takes 0\.\d MiB, more than is"
    ):
        load_cached(root)
    assert stored(root) == []


def test_an_unreadable_photo_leaves_no_cache(root):
    path = root / "train" / "a" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"0\.jpg is not a readable image"):
        load_cached(root)
    assert stored(root) == []


def test_a_training_uses_the_cache_or_says_that_it_has_no_effect(root, tmp_path):
    options = {"epochs": 1, "batch_size": 3, "cache_side": 64, "max_steps": 2}
    folder = {"dataset": "imagefolder", "data_dir": str(root)}
    written = []
    for case in ({**folder, "crop": "resized"}, {**folder, "crop": "pad"}, {"crop": "resized"}):
        log = tmp_path / f"log-{len(written)}"
        config = tiny_config(tmp_path / f"run-{len(written)}", **options, **case)
        assert run(train_script, config, log=log) == [0], log.read_text()
        written.append([line for line in log.read_text().splitlines() if "cache_side" in line])
    assert [len(lines) for lines in written] == [1, 1, 1]
    assert "decoding 6 photos into a cache of" in written[0][0]
    assert "no effect" in written[1][0]
    assert written[2] == ["note: no effect: cache_side with digits, which has no photos on disk"]


def test_the_exact_cache_is_another_one(root):
    files = ImageFiles(sorted((root / "train" / "b").glob("*.jpg")), square(24))
    for exact in (False, True):
        cached = cached_photos(files, root, 100, exact)
        box = 0, 0, 300, 320
        expected = FilePhoto(files.paths[0]).cut(box, cached.photos([0])[0].pixels.shape[:2], BILINEAR, exact)
        assert (cached.photos([0])[0].whole() == expected).all()
    assert stored(root) == ["photos-100", "photos-100-exact"]


# -- memory -----------------------------------------------------------------------------------------------------------


def test_paths_are_a_sequence():
    names = [f"/photos/{number}/ä {number}.jpg" for number in range(30)] + ["", os.fsdecode(b"/\xff.jpg")]
    paths = Paths(names)
    assert list(paths) == names
    assert (len(paths), paths[-1], paths[3:20:4]) == (32, names[-1], names[3:20:4])
    assert list(paths.subset(np.array([7, 7, 0]))) == [names[7], names[7], names[0]]
    assert names[3] in paths
    for place in (32, -33):
        with pytest.raises(IndexError):
            paths[place]
    assert (len(Paths([])), list(Paths([]))) == (0, [])


def unshared_after_reading(kind, count: int, sender) -> None:
    """Sends how much more memory a forked process holds alone once it has read all paths."""
    paths = kind(f"/a/folder/with/photos/of/one/class/photo-{number:08}.jpg" for number in range(count))
    receiver, child_sender = os.pipe()
    if os.fork() == 0:
        before = psutil.Process().memory_full_info().uss
        for place in range(count):
            len(paths[place])
        os.write(child_sender, str(psutil.Process().memory_full_info().uss - before).encode())
        os._exit(0)
    sender.send(int(os.read(receiver, 100)))
    os.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_loader_workers_share_the_paths():
    grown = {}
    for kind in (list, Paths):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=unshared_after_reading, args=(kind, 200_000, sender))
        process.start()
        grown[kind] = receiver.recv()
        process.join()
    assert grown[list] > 15 * 2**20
    assert grown[Paths] < 2 * 2**20


def worker_memory(folder: Path, sender) -> None:
    """Sends the resident bytes of a loader worker after each of six passes over 3,000 files."""
    names = [folder / f"{number}.jpg" for number in range(3000)]
    saved(names[0], PHOTOS[0][:32, :32])
    for name in names[1:]:
        os.link(names[0], name)
    split = Split(ImageFiles(names, square(16)), np.zeros(len(names), np.int64))
    loader = TrainLoader(split, ImagePipeline([ResizedCrop(square(16))]), Steps(3000, 100, 0, 0, 1), num_workers=1)
    resident = []
    for epoch in range(6):
        for _ in loader.epoch(epoch):
            pass
        resident.append(psutil.Process().children()[0].memory_info().rss)
    sender.send(resident)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a process's children")
def test_the_memory_of_a_loader_worker_does_not_grow_over_epochs(tmp_path):
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=worker_memory, args=(tmp_path, sender))
    process.start()
    resident = receiver.recv()
    process.join()
    assert max(resident[2:]) - resident[1] < 3 * 2**20
