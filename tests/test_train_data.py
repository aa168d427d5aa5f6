"""Data sets of `thermoclaw train`: what is read, and that nothing in a pickle, a ZIP file or a folder can do harm."""

from __future__ import annotations

import io
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thermoclaw.train.archive import Limits, unpack_images
from thermoclaw.train.batches import statistics
from thermoclaw.train.cifar import CLASSES, read_cifar10
from thermoclaw.train.data import UNPACKED, fingerprint, load_data, sweep
from thermoclaw.train.errors import DataError
from thermoclaw.train.images import Labeled, stratified
from thermoclaw.train.pickled import read_pickle

Image = pytest.importorskip("PIL.Image")


def png(color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (12, 9), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def image_folder(root: Path, counts: dict[str, int], kind: str = "PNG") -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{i}.{kind.lower()}").write_bytes(png((40 * number, 5 * i, 90), kind=kind))
    return root


def zipped(path: Path, files: dict[str, bytes], **settings: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **settings) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


GOOD = {f"{part}/{name}/{i}.png": png((60 * i, 20, 90)) for part in ("train", "test") for name in "ab" for i in (0, 1)}


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes_is_split_class_by_class(tmp_path: Path) -> None:
    data = load_data(f"folder:{image_folder(tmp_path, {'cat': 10, 'dog': 20})}", image_size=16)
    assert data.classes == ("cat", "dog")
    assert np.bincount(data.train.labels).tolist() == [8, 16]
    assert np.bincount(data.test.labels).tolist() == [2, 4]
    assert data.train.images.shape == (24, 3, 16, 16)
    again = load_data(f"folder:{tmp_path}", image_size=16)
    other = load_data(f"folder:{tmp_path}", image_size=16, seed=1)
    assert fingerprint(again) == fingerprint(data) != fingerprint(other)


@pytest.mark.parametrize("test_name", ["test", "val", "Validation"])
def test_a_folder_with_train_and_test_is_taken_as_it_is(tmp_path: Path, test_name: str) -> None:
    image_folder(tmp_path / "inner" / "train", {"cat": 3, "dog": 2})
    image_folder(tmp_path / "inner" / test_name, {"dog": 4})
    data = load_data(f"folder:{tmp_path}")  # the folder that holds it stands for it
    assert (len(data.train), len(data.test)) == (5, 4)
    assert set(data.test.labels) == {1}


def test_pixels_keep_their_place_and_gray_images_have_one_channel(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            image = Image.new("L", (16, 8), 0)
            image.paste(255, (8, 0, 16, 8))
            image.save(tmp_path / name / f"{i}.png")
    data = load_data(f"folder:{tmp_path}", image_size=8)
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images[0, 0, 4, :3].max() == 0  # the middle of the image, its left half dark
    assert data.train.images[0, 0, 4, 5:].min() == 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP"])
def test_formats(tmp_path: Path, kind: str) -> None:
    data = load_data(f"folder:{image_folder(tmp_path, {'a': 2, 'b': 2}, kind)}")
    assert len(data.train) == 2


def test_what_is_no_image_by_name_is_left_out_and_counted(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".DS_Store").write_text("x")
    assert load_data(f"folder:{tmp_path}").left_out == 1


def broken_image(root: Path) -> None:
    (root / "a" / "0.png").write_bytes(b"no image")


def cut_image(root: Path) -> None:
    (root / "a" / "0.png").write_bytes(png(size=(300, 300))[:400])


def one_class(root: Path) -> None:
    for path in (root / "b").iterdir():
        path.unlink()
    (root / "b").rmdir()
    (root / "c.txt").write_text("")


def empty_class(root: Path) -> None:
    (root / "c").mkdir()


def lonely_image(root: Path) -> None:
    (root / "c").mkdir()
    (root / "c" / "0.png").write_bytes(png())


def no_train(root: Path) -> None:
    (root / "b").rename(root / "test")


def link_out(root: Path) -> None:
    outside = root.parent / "secret.png"
    outside.write_bytes(png())
    (root / "a" / "link.png").symlink_to(outside)


def class_link_out(root: Path) -> None:
    outside = root.parent / "elsewhere"
    image_folder(outside, {"x": 2})
    (root / "c").symlink_to(outside / "x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_image, r"0\.png is not an image"),
        (cut_image, r"0\.png is a damaged image"),
        (one_class, "at least 2 classes"),
        (empty_class, "c has no image"),
        (lonely_image, "has 1 image"),
        (no_train, "none called 'train'"),
        (link_out, "a link that leads out"),
        (class_link_out, "a link that leads out"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, damage: Any, message: str) -> None:
    root = image_folder(tmp_path / "data", {"a": 3, "b": 3})
    load_data(f"folder:{root}")
    damage(root)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{root}")


def test_a_class_in_test_alone_is_told(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 2, "b": 2})
    image_folder(tmp_path / "test", {"a": 2, "zebra": 2})
    with pytest.raises(DataError, match="zebra"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("side", [60_000, 8_000])  # beyond Pillow's own limit, and below it
def test_an_image_with_too_many_pixels_is_not_decoded(tmp_path: Path, side: int) -> None:
    root = image_folder(tmp_path, {"a": 2, "b": 2})
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = bytearray(png())
    bomb[16:29] = header
    bomb[29:33] = struct.pack(">I", __import__("zlib").crc32(b"IHDR" + header))
    (root / "a" / "bomb.png").write_bytes(bytes(bomb))
    with pytest.raises(DataError, match="pixels"):
        load_data(f"folder:{root}")


@pytest.mark.parametrize("spec", ["mnist", "folder:", "folder:/no/such/place", "zip:/no/file.zip", "cifar10:", ""])
def test_specs_that_name_nothing(spec: str) -> None:
    with pytest.raises(DataError, match=r"not known|there is no"):
        load_data(spec)


def test_digits_are_scikit_learns() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits")
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert len(data.train) + len(data.test) == 1797
    assert data.train.images.max() == 255
    shares = np.bincount(data.test.labels) / (np.bincount(data.test.labels) + np.bincount(data.train.labels))
    assert np.abs(shares - 0.2).max() < 0.005


def test_a_split_has_no_image_twice_and_every_class_on_both_sides() -> None:
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    labels = np.array([0] * 37 + [1] * 3)
    train, test = stratified(Labeled(images, labels), 2, seed=3)
    seen = np.concatenate([train.images, test.images]).ravel()
    assert sorted(seen) == list(range(40))
    assert {0, 1} == set(train.labels) == set(test.labels)
    assert all(labels[train.images.ravel()] == train.labels)


def test_statistics_are_those_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 2, 5, 5), dtype=np.uint8)
    mean, std = statistics(Labeled(images, np.zeros(7, dtype=np.int64)))
    assert np.allclose(mean, (images / 255).mean(axis=(0, 2, 3)))
    assert np.allclose(std, (images / 255).std(axis=(0, 2, 3)))


# -- ZIP files ---------------------------------------------------------------------------------------------------------


def test_a_zip_file_is_read_and_nothing_of_it_stays(tmp_path: Path) -> None:
    scratch = tmp_path / "run"
    data = load_data(f"zip:{zipped(tmp_path / 'good.zip', GOOD)}", scratch=scratch)
    assert (len(data.train), len(data.test), data.classes) == (4, 4, ("a", "b"))
    assert list(scratch.iterdir()) == []


def test_what_file_managers_add_is_passed_over(tmp_path: Path) -> None:
    extra = {"__MACOSX/train/a/._0.png": b"x", ".DS_Store": b"x", "train/a/Thumbs.db": b"x", "README.txt": b"x"}
    left_out = unpack_images(zipped(tmp_path / "z.zip", {**GOOD, **extra}), tmp_path / "out")
    assert left_out == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test", "train"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "train/../../evil.png",
        "/tmp/evil.png",
        "..\\evil.png",
        "C:\\evil.png",
        "C:/evil.png",
        "\\\\server\\share\\evil.png",
        "train//evil.png",
        "./evil.png",
        "train/a/\x1b[31m.png",
        "train/a/ evil.png",
        "a/" * 20 + "x.png",
        "train/" + "x" * 300 + ".png",
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "z.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("train/a/0.png", png())
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        opened.writestr(entry, png())
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"leads out|longer or deeper|characters"):
        unpack_images(archive, tmp_path / "out")
    assert set(tmp_path.rglob("*")) == before  # no folder stays either
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("train/a/link.png")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as opened:
        opened.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match="link or a device"):
        unpack_images(tmp_path / "z.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_content_decides_what_an_image_is(tmp_path: Path) -> None:
    for content in (b"#!/bin/sh\nrm -rf /", b"", b"GIF89a", b"%PDF-1.4", b"<svg onload=alert(1)>"):
        archive = zipped(tmp_path / "z.zip", {"train/a/0.png": content})
        with pytest.raises(DataError, match="not an image"):
            unpack_images(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def lying_archive(path: Path, name: str, content: bytes, claimed: int) -> Path:
    """A ZIP file that says that its entry is small, in both places."""
    zipped(path, {name: content})
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\x01\x02")
    raw[place + 24 : place + 28] = struct.pack("<I", claimed)
    raw[22:26] = struct.pack("<I", claimed)
    path.write_bytes(bytes(raw))
    return path


def test_sizes_are_counted_and_not_believed(tmp_path: Path) -> None:
    huge = png() + b"\0" * 3_000_000
    limits = Limits(file_bytes=1_000_000)
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        unpack_images(zipped(tmp_path / "z.zip", {"a/0.png": huge}), tmp_path / "out", limits)
    lying = lying_archive(tmp_path / "l.zip", "a/0.png", huge, claimed=100)
    with pytest.raises(DataError, match=r"was refused|cannot be unpacked|damaged"):
        unpack_images(lying, tmp_path / "out", limits)
    assert not (tmp_path / "out").exists()


def test_the_total_is_limited(tmp_path: Path) -> None:
    files = {f"a/{i}.png": png() + b"\0" * 400_000 for i in range(4)}
    with pytest.raises(DataError, match="holds more than 1,000,000 bytes"):
        unpack_images(zipped(tmp_path / "z.zip", files), tmp_path / "out", Limits(total_bytes=1_000_000))
    assert not (tmp_path / "out").exists()


def test_the_number_of_files_is_limited(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "z.zip", {f"a/{i}.txt": b"" for i in range(30)})
    with pytest.raises(DataError, match="more than 20 files"):
        unpack_images(archive, tmp_path / "out", Limits(files=20))
    with pytest.raises(DataError, match="lists 30 entries"):  # told before the list is read into memory
        unpack_images(archive, tmp_path / "out", Limits(files=10))


def test_a_file_that_is_there_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as opened:
        opened.writestr("a/0.png", png())
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("a/0.png", png())
    with pytest.raises(DataError, match="twice"):
        unpack_images(tmp_path / "z.zip", tmp_path / "out")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "z.zip", {"a.png": png(), "a.png/0.png": png()})
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack_images(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def encrypted(raw: bytearray) -> None:
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1


def other_method(raw: bytearray) -> None:
    raw[8] = 14
    raw[raw.index(b"PK\x01\x02") + 10] = 14


def cut(raw: bytearray) -> None:
    del raw[len(raw) // 2 :]


def flipped(raw: bytearray) -> None:
    raw[60] ^= 0xFF


def nothing(raw: bytearray) -> None:
    raw.clear()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (encrypted, "encrypted"),
        (other_method, "unusual"),
        (cut, "not a ZIP"),
        (flipped, "cannot be|damaged"),
        (nothing, "not a ZIP"),
    ],
)
def test_damaged_archives(tmp_path: Path, damage: Any, message: str) -> None:
    archive = zipped(tmp_path / "z.zip", {"a/0.png": png()})
    raw = bytearray(archive.read_bytes())
    damage(raw)
    archive.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=message):
        load_data(f"zip:{archive}", scratch=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_an_archive_without_images_names_the_archive(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "z.zip", {"README.txt": b"x"})
    with pytest.raises(DataError, match=r"z\.zip has 0 folder"):
        load_data(f"zip:{archive}")


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"{UNPACKED}x" / "images").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


# -- CIFAR-10 ----------------------------------------------------------------------------------------------------------


def batch(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, 10, count).tolist()


def as_the_authors_wrote(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A pickle as Python 2 and its NumPy wrote it: protocol 2, text as bytes."""
    raw = pixels.tobytes()

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + short(b"b") + b"\x87R"
    kind = (
        b"cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\0K\1\x87R(K\3"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    shape = b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
    state = b"(K\1" + shape + kind + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + state + short(b"labels") + numbers + b"u."


def cifar_folder(root: Path, write: Any) -> Path:
    root.mkdir(parents=True)
    for name, count, seed in (("data_batch_1", 12, 1), ("data_batch_2", 8, 2), ("test_batch", 6, 3)):
        (root / name).write_bytes(write(*batch(count, seed)))
    return root


def repickled(protocol: int) -> Any:
    return lambda pixels, labels: pickle.dumps({"data": pixels, b"labels": labels}, protocol=protocol)


@pytest.mark.parametrize("write", [as_the_authors_wrote, *map(repickled, range(6))])
def test_the_pickled_version(tmp_path: Path, write: Any) -> None:
    cifar_folder(tmp_path / "cifar-10-batches-py", write)
    data = read_cifar10(tmp_path)
    assert data.classes == CLASSES
    want = np.concatenate([batch(12, 1)[0], batch(8, 2)[0]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images, want)
    assert data.train.labels.tolist() == batch(12, 1)[1] + batch(8, 2)[1]
    assert np.array_equal(data.test.images.reshape(6, -1), batch(6, 3)[0])


def test_the_binary_version_is_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    cifar_folder(folder, lambda x, y: b"".join(bytes([label]) + row.tobytes() for row, label in zip(x, y, strict=True)))
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(".bin"))
    pickled = cifar_folder(tmp_path / "py", as_the_authors_wrote)
    assert fingerprint(load_data(f"cifar10:{folder}")) == fingerprint(load_data(f"cifar10:{pickled}"))


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made"
    path = tmp_path / "evil"
    calls = [(os.system, f"touch {target}"), (open, str(target), "w"), (eval, "1"), (exec, "1"), (getattr, "", "x")]
    calls += [(os.mkdir, str(target)), (__import__, "os"), (np.fromfile, str(path)), (np.zeros, 10)]
    for function, *arguments in calls:
        path.write_bytes(pickle.dumps({"data": Runs(function, *arguments)}, protocol=2))
        with pytest.raises(DataError, match="it asks for"):
            read_pickle(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable pickle"),
        (b"\x80\x02}", "not a readable pickle"),
        (b"no pickle", "not a readable pickle"),
        (b"\x80\x02].", "not a dictionary"),
        (b"\x80\x02}(U\4dataPsomething\nu.", "outside of itself"),
        (b"\x80\x02}U\4datac__main__\nRuns\n)Rs.", "asks for __main__.Runs"),
        (b"\x80\x02cnumpy\ndtype\n)R}(U\1xU\1yub}.", ""),  # it fills a stand-in, and is nothing
        (b"\x80\x02c_codecs\nencode\nN}(U\1xU\1yu\x86b}.", "sets attributes"),
        (b"\x80\x02cnumpy\nndarray\n}(U\1xU\1yub}.", "sets attributes"),
        (b"\x80\x02]r\xff\xff\xff\x7f0}.", ""),  # a memo that C would make 32 GiB large
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", "not a readable pickle"),  # 2^63 bytes that are not there
    ],
)
def test_pickles_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    if message:
        with pytest.raises(DataError, match=message):
            read_pickle(path)
    else:
        assert read_pickle(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, "not one of bytes"),
        ({"data": np.zeros((2, 3072), dtype=object), "labels": [0, 1]}, "not one of bytes"),
        ({"data": np.zeros((2, 99), dtype=np.uint8), "labels": [0, 1]}, "no images of"),
        ({"data": [1, 2], "labels": [0, 1]}, "no images of"),
        ({"labels": [0, 1]}, "no images of"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8)}, "no list"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0]}, "2 images and 1 labels"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, 10]}, "no number from 0 to 9"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, -1]}, "no number from 0 to 9"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, "1"]}, "no number from 0 to 9"),
    ],
)
def test_batches_that_are_none(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    cifar_folder(tmp_path / "c", as_the_authors_wrote)
    (tmp_path / "c" / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message):
        read_cifar10(tmp_path / "c")


def test_an_array_that_lies_about_its_shape(tmp_path: Path) -> None:
    raw = as_the_authors_wrote(*batch(4, 0)).replace(b"M" + struct.pack("<H", 4), b"M" + struct.pack("<H", 5), 1)
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(DataError, match="not that of its contents"):
        read_pickle(tmp_path / "x")


def test_cifar_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no CIFAR-10"):
        read_cifar10(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="unpack it"):
        load_data(f"cifar10:{tmp_path / 'cifar-10-python.tar.gz'}")
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(b"\0" * 3074)
    with pytest.raises(DataError, match="no whole number of records"):
        read_cifar10(tmp_path)
