"""The store of decoded images: decoded once, one copy in memory per machine, and only ever a copy of the files."""

import io
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data.files
from data import decoded
from data.decoded import decode_once
from data.files import ImageFiles
from data.sources import download, load_dataset, load_split
from data.sources.cifar import cifar_class
from tests.conftest import ROOT
from tests.test_datasets import KINDS, cifar_archive, image_folder, load, mistake, picture, spoil
from utils.system.errors import UserError


@pytest.fixture
def root(tmp_path) -> Path:
    return image_folder(tmp_path / "images")


def stored(root: Path) -> list[str]:
    """The names in the store, without their digests."""
    return sorted(path.name.rsplit("-", 1)[0] for path in (root / ".decoded").glob("*"))


def from_files(root: Path, split: str, size: int = 32) -> np.ndarray:
    """What the images are, decoded one by one."""
    files = load_split("imagefolder", root, split, size, memory_fraction=0.0)[0].images
    assert isinstance(files, ImageFiles)
    return np.stack([files[index] for index in range(len(files))])


def refuse(*_):
    raise AssertionError("an image was decoded")


# -- decoded once -----------------------------------------------------------------------------------------------------


def test_second_start_decodes_nothing(root, monkeypatch):
    first = load(root)
    assert stored(root) == ["test-32", "train-32"]
    monkeypatch.setattr(data.files, "read_image", refuse)
    second = load(root)
    assert (second.train.images[:] == first.train.images[:]).all()
    assert (second.test.images[:] == first.test.images[:]).all()
    assert (second.train.labels == first.train.labels).all()
    assert (second.mean, second.std, second.class_names) == (first.mean, first.std, first.class_names)


def test_stored_images_are_those_of_the_files(root):
    for _ in range(2):
        data = load(root)
        for split, images in (("train", data.train.images.array), ("test", data.test.images.array)):
            assert (images == from_files(root, split)).all()
            assert (images.dtype, images.flags["C_CONTIGUOUS"]) == (np.uint8, True)


def test_moved_folder_keeps_its_store(root, monkeypatch):
    first = load(root)
    monkeypatch.setattr(data.files, "read_image", refuse)
    assert (load(root.rename(root.with_name("moved"))).train.images[:] == first.train.images[:]).all()


def replace(folder: Path) -> None:
    picture(77).save(folder / "0.png")


def touch(folder: Path) -> None:
    os.utime(folder / "0.png", ns=(0, 0))


def add(folder: Path) -> None:
    picture(77).save(folder / "00.png")


def remove(folder: Path) -> None:
    (folder / "0.png").unlink()


def rename(folder: Path) -> None:
    (folder / "0.png").rename(folder / "9.png")


def swap(folder: Path) -> None:
    (folder / "0.png").rename(folder / "x")
    (folder / "1.png").rename(folder / "0.png")
    (folder / "x").rename(folder / "1.png")


@pytest.mark.parametrize("change", [replace, touch, add, remove, rename, swap])
def test_changed_image_is_decoded_again(root, change):
    load(root)
    before = {path.name for path in (root / ".decoded").iterdir()}
    change(root / "train" / "dog")
    assert (load(root).train.images[:] == from_files(root, "train")).all()
    after = {path.name for path in (root / ".decoded").iterdir()}
    assert len(after - before) == len(before - after) == 1  # the stale array is gone, that of the test images stays


def test_sizes_stand_side_by_side(root, monkeypatch):
    for size in (32, 16):
        load(root, geometry=size)
    assert stored(root) == ["test-16", "test-32", "train-16", "train-32"]
    monkeypatch.setattr(data.files, "read_image", refuse)
    assert load(root, geometry=32).train.images.array.shape == (12, 32, 32, 3)
    assert load(root, geometry=16).train.images.array.shape == (12, 16, 16, 3)


@pytest.mark.parametrize(("module", "name"), [(decoded, "VERSION"), (decoded.PIL, "__version__")])
def test_another_decoder_decodes_again(root, monkeypatch, module, name):
    load(root)
    monkeypatch.setattr(module, name, "another")
    monkeypatch.setattr(data.files, "read_image", refuse)
    with pytest.raises(AssertionError, match="an image was decoded"):
        load(root)


def test_sets_that_stay_on_disk_store_their_mean_and_std_alone(root):
    decoded = load(root, memory_fraction=0.0)
    assert stored(root) == ["statistics-32"]
    again = load(root, memory_fraction=0.0)
    assert (again.mean, again.std) == (decoded.mean, decoded.std)


@pytest.mark.parametrize("split", ["train", "test"])
def test_unreadable_image_leaves_no_store(root, split):
    spoil(root / split / "cat" / "1.png", "truncated")
    line = mistake(root)
    assert line.startswith(f"data_dir: {root / split / 'cat' / '1.png'} is not a readable image")
    assert split not in {name.split("-")[0] for name in stored(root)}
    assert mistake(root) == line


def test_image_that_became_unreadable_is_not_served_from_the_store(root):
    load(root)
    spoil(root / "train" / "cat" / "1.png", "truncated")
    assert "is not a readable image" in mistake(root)


def test_missing_target_of_a_link_is_an_unreadable_image(root):
    (root / "train" / "cat" / "link.png").symlink_to(root / "nowhere.png")
    assert mistake(root).startswith(f"data_dir: {root / 'train' / 'cat' / 'link.png'} is not a readable image")


@pytest.mark.parametrize("pays_from", [0, 1 << 40])
def test_threads_change_nothing(root, monkeypatch, pays_from):
    monkeypatch.setattr(data.files, "THREADS_PAY_FROM", pays_from)
    monkeypatch.setattr(data.files, "available_cores", lambda: 4)
    files = load(root, memory_fraction=0.0).train.images
    assert (files.decode(range(12), block=2) == from_files(root, "train")).all()
    assert (files.decode([7, 3]) == from_files(root, "train")[[7, 3]]).all()


# -- one copy per machine ---------------------------------------------------------------------------------------------

LOAD = """
import hashlib, sys
from data.sources import load_split
images = load_split("imagefolder", sys.argv[1], "train", int(sys.argv[2]))[0].images
print(hashlib.md5(images.array).hexdigest())
"""
MEMORY = """
take = False
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        take = ".decoded/train" in line
    elif take and line.startswith(("Rss", "Private")):
        print(line.split()[0], line.split()[1])
"""


def loading(root: Path, more: str = "", before: str = "") -> subprocess.Popen:
    """Another process that loads the training images and prints their checksum."""
    command = [sys.executable, "-c", before + LOAD + more, str(root), "32"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_two_processes_share_one_copy(tmp_path):
    root = image_folder(tmp_path, train=40)
    images = load(root).train.images.array
    assert images.sum() > 0  # this process has touched every page
    output, errors = loading(root, MEMORY).communicate(timeout=60)
    assert not errors
    kilobytes = {name: int(value) for name, value in (line.split() for line in output.splitlines()[1:])}
    assert kilobytes["Rss:"] >= images.nbytes / 1024
    assert kilobytes["Private_Clean:"] == kilobytes["Private_Dirty:"] == 0


def test_processes_that_start_together_agree(root):
    processes = [loading(root) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert len(set(outputs)) == 1
    assert outputs[0][1] == ""
    assert stored(root) == ["train-32"]


def test_the_file_of_the_faster_process_stays(tmp_path):
    """Replaced on a network drive, it would be gone under the feet of those that have mapped it."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)

    def decode_while_another_does() -> np.ndarray:
        decode_once(tmp_path, "name", [], (2, 3), np.uint8, lambda: values)
        decode_while_another_does.inode = next((tmp_path / ".decoded").iterdir()).stat().st_ino
        return values

    decode_once(tmp_path, "name", [], (2, 3), np.uint8, decode_while_another_does)
    assert [path.stat().st_ino for path in (tmp_path / ".decoded").iterdir()] == [decode_while_another_does.inode]


def test_validation_split_copies_no_image(root):
    data = load(root, validation_fraction=0.25)
    assert data.train.images.images is data.validation.images.images
    assert (data.validation.images[:] == from_files(root, "train")[data.validation.images.indices]).all()
    again = data.train.subset(np.array([4, 1]))
    assert (again.images[:] == data.train.images[np.array([4, 1])]).all()
    assert again.images.in_memory[0] is data.train.images.in_memory[0]


@pytest.mark.filterwarnings("error")
def test_what_is_written_to_an_image_stays_in_the_process(root):
    images = load(root).train.images.array
    before = images.copy()
    torch.from_numpy(images).zero_()
    assert images.max() == 0
    assert (load(root).train.images[:] == before).all()


# -- where nothing can be stored --------------------------------------------------------------------------------------


def test_a_file_in_place_of_the_store_is_left_alone(root):
    (root / ".decoded").write_text("mine")
    for _ in range(2):
        assert (load(root).train.images[:] == from_files(root, "train")).all()
    assert (root / ".decoded").read_text() == "mine"


def in_own_mounts(script: str, *arguments: Path | int) -> subprocess.CompletedProcess:
    """Runs a shell script whose mounts nobody else sees and which end with it; skips where that is not allowed."""
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", *map(str, arguments)]
    try:
        allowed = subprocess.run([*command[:4], "mount -t tmpfs none /mnt"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs Linux")
    if allowed.returncode != 0:
        pytest.skip("needs the right to mount")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


CHECKSUM_THEN_STORE = f"{sys.executable} -c '{LOAD}' $1 $2; find $1/.decoded -type f"


def test_readonly_folder_still_loads(root):
    done = in_own_mounts("mount --bind $1 $1; mount -o remount,ro,bind $1; " + CHECKSUM_THEN_STORE, root, 32)
    assert "No such file" in done.stderr  # find's: there is no store
    assert done.stdout == loading(root).communicate()[0]


def test_full_disk_leaves_no_store(root):
    full = root.parent / "full"
    full.mkdir()
    copy = "mount -t tmpfs -o size=400k none $1; cp -r $3/* $1; "
    done = in_own_mounts(copy + CHECKSUM_THEN_STORE, full, 128, root)  # which makes 12 images of 48 KB each
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1  # the checksum, and no file in the store


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits on files")
def test_a_write_that_breaks_off_leaves_no_store(root):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 20_000_000))"
    lifted = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))"  # for what measures coverage
    limited = loading(root, before=limit, more=lifted).communicate(timeout=60)
    assert stored(root) == []
    assert limited == loading(root).communicate(timeout=60)


# -- what is in the store is only ever data ---------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, np.zeros((12, 32, 32, 3), np.uint8))
    return file.getvalue()


DAMAGES = {
    "empty": lambda whole: b"",
    "header only": lambda whole: whole[:128],
    "truncated": lambda whole: whole[:-1],
    "longer": lambda whole: whole + b"\0",
    "text": lambda whole: b"x" * len(whole),
    "another shape": lambda whole: npy(np.zeros((12, 32, 3, 32), np.uint8)),
    "fewer images": lambda whole: npy(np.zeros((11, 32, 32, 3), np.uint8)),
    "another dtype": lambda whole: npy(np.zeros((12, 32, 32, 3), np.int8)),
    "another order": lambda whole: npy(np.zeros((12, 32, 32, 3), np.uint8, order="F")),
    "gigantic": lambda whole: whole[:128].replace(b"(12, 32, 32, 3)", b"(99999999999,3)") + whole[128:],
    "objects": lambda whole: npy(np.array([Evil()] * 12), allow_pickle=True),
    "pickle": lambda whole: pickle.dumps(Evil()),
    "archive": lambda whole: npz(),
    "long header": lambda whole: b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + whole,
    "deep header": lambda whole: whole[:10] + b"(" * 118 + whole[128:],
    "no dictionary": lambda whole: whole[:10] + b"[" + b" " * 116 + b"]" + whole[128:],
    "negative": lambda whole: whole[:128].replace(b"(12, 32, 32, 3)", b"(-1,-2,-2,3,1 )") + whole[128:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.filterwarnings("error")
def test_damaged_store_is_decoded_again_and_never_executed(root, monkeypatch, damage):
    monkeypatch.chdir(root.parent)
    load(root)
    path = next((root / ".decoded").glob("train-*"))
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert (load(root).train.images[:] == from_files(root, "train")).all()
    assert not Path("executed").exists()
    assert (np.load(path) == from_files(root, "train")).all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_not_waited_for(root, make):
    load(root)
    path = next((root / ".decoded").glob("train-*"))
    path.unlink()
    make(path)
    assert (load(root).train.images[:] == from_files(root, "train")).all()


def test_leftovers_of_killed_processes_are_cleared_away(root):
    load(root)
    dead, alive = root / ".decoded" / "train-32-a.npy.1.tmp", root / ".decoded" / "train-32-a.npy.2.tmp"
    for path in (dead, alive):
        path.write_bytes(b"half an arr")
    os.utime(dead, (time.time() - 3600,) * 2)
    load(root)
    assert not dead.exists()
    assert alive.exists()


# -- CIFAR ------------------------------------------------------------------------------------------------------------


@KINDS
def test_second_start_unpickles_no_cifar(tmp_path, monkeypatch, name, kind):
    cifar_archive(kind, tmp_path, monkeypatch)
    download(name, tmp_path)
    first = load_dataset(name, tmp_path)
    parts = [f"{name}-{split}-{of}" for split in ("test", "train") for of in ("classes", "images", "labels")]
    assert stored(tmp_path) == parts
    monkeypatch.setattr(kind, "__init__", refuse)
    download(name, tmp_path)
    second = load_dataset(name, tmp_path)
    for ours, theirs in ((first.train, second.train), (first.test, second.test)):
        assert (ours.images[:] == theirs.images[:]).all()
        assert (ours.labels == theirs.labels).all()
        assert (theirs.labels.dtype, theirs.labels.flags["WRITEABLE"]) == (np.int64, True)
    assert (second.class_names, second.mean, second.std) == (first.class_names, first.mean, first.std)
    assert all(type(class_name) is str for class_name in second.class_names)


@KINDS
def test_cifar_that_changed_after_its_first_start_is_refused(tmp_path, monkeypatch, name, kind):
    cifar_archive(kind, tmp_path, monkeypatch)
    download(name, tmp_path)
    load_dataset(name, tmp_path)
    path = tmp_path / kind.base_folder / kind.test_list[0][0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"does not hold {name}"):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize("of", ["images", "labels", "classes"])
@pytest.mark.parametrize("damage", [DAMAGES["empty"], DAMAGES["truncated"], DAMAGES["text"]])
def test_damaged_store_of_cifar_is_made_again(tmp_path, monkeypatch, of, damage):
    cifar_archive(cifar_class("cifar10"), tmp_path, monkeypatch)
    download("cifar10", tmp_path)
    first = load_dataset("cifar10", tmp_path)
    path = next((tmp_path / ".decoded").glob(f"cifar10-train-{of}-*"))
    damaged = damage(path.read_bytes())
    path.unlink()  # `first` has mapped it
    path.write_bytes(damaged)
    second = load_dataset("cifar10", tmp_path)
    assert (second.train.images[:] == first.train.images[:]).all()
    assert (second.train.labels == first.train.labels).all()
    assert second.class_names == first.class_names
