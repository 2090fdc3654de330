"""CIFAR-10, wherever and in whichever of its usual layouts it lies on this machine."""

import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlf.data import formats
from dlf.data.subsets import subsets
from dlf.types import Dataset

__all__ = ["cifar10"]

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of red, green and blue, from 0 to 1

_SIDE, _CLASSES = 32, 10
_PER_FILE, _PER_SPLIT = 10_000, {"train": 50_000, "test": 10_000}
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_FILES = *_TRAIN, "test_batch"
_MD5 = {  # as published
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "python": "c58f30108f718f92721af3b95e74349a",  # the archives
    "binary": "c32a1d4ab5d03f1284b67883e8d87530",
}
_WRONG = "the checksum is not the published one: fetch it again"
_FOLDERS = (  # below a place that is looked at: the authors', torchvision's, Keras', those of TFDS, a hub's
    "", "cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-batches-py-target/cifar-10-batches-py",
    "cifar-10-batches-py-target", "cifar10/*", "downloads", "downloads/extracted/*/cifar-10-batches-bin",
    "plain_text", "snapshots/*/plain_text", "datasets--*cifar10/snapshots/*/plain_text",
)  # fmt: skip

Split = tuple[np.ndarray, np.ndarray]  # images [examples, height, width, channels], labels


def cifar10(
    path: str = "",
    num_train: int = 45_000,
    num_validation: int = 5_000,
    num_test: int = 10_000,
    seed: int = 0,
) -> Dataset:
    """Return CIFAR-10, photographs of 32x32 pixels in ten classes, as bytes.

    Looked for in `path`, the folder CIFAR10_DIR of the environment, ./data, and where torchvision, TFDS,
    Keras and Hugging Face keep what they have fetched: as pickles, binary files, their archives, tfrecord,
    array_record or parquet. Test sets are "test" and, of the 50,000 to train on, "validation" (none of 0);
    see `dlf.data.subsets` for how they are chosen by `seed`. Networks take the bytes as they are, with `MEAN`
    and `STD` as settings.

    Raises ValueError where it is not found or damaged, or for an impossible subset.

    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    looked = _places(path)
    for place in looked:
        for folder in (
            found for below in _FOLDERS for found in sorted(place.glob(below) if below else [place])
        ):
            for name, layout in _LAYOUTS.items():
                if (reader := layout(folder)) is not None:
                    return _dataset(f"{name} in {folder}", reader, num_train, num_validation, num_test, seed)
    where = ", ".join(map(str, looked))
    raise ValueError(
        "CIFAR-10 was not found: looked for data_batch_1 to 5 and test_batch (or .bin), their archives "
        f"cifar-10-python.tar.gz or -binary, tfrecord, array_record and parquet in {where}: set dataset.path"
    )


def _dataset(name, reader, num_train, num_validation, num_test, seed) -> Dataset:
    images, labels = {}, {}
    for split, num in _PER_SPLIT.items():
        images[split], labels[split] = reader(split)
        found = images[split]
        if found.shape != (num, _SIDE, _SIDE, 3) or found.dtype != np.uint8 or len(labels[split]) != num:
            raise ValueError(
                f"{name}: the {split} set is {found.dtype}{list(found.shape)}, not {num:,} images"
            )
        if {*np.unique(labels[split])} != {*range(_CLASSES)}:
            raise ValueError(f"{name}: the labels of the {split} set are not those of ten classes")
    return subsets(images, labels, dict(train=num_train, validation=num_validation, test=num_test), seed)


def _places(path: str) -> list[Path]:
    """Return the folders in which data may lie, in the order in which they are looked at."""
    asked = [path, os.environ.get("CIFAR10_DIR", ""), "data"]
    home, of = Path.home(), os.environ.get
    caches = [
        Path(of("TORCH_HOME", home / ".cache" / "torch")),
        Path(of("TFDS_DATA_DIR", home / "tensorflow_datasets")),
        Path(of("KERAS_HOME", home / ".keras")) / "datasets",
        Path(of("HF_HUB_CACHE", Path(of("HF_HOME", home / ".cache" / "huggingface")) / "hub")),
    ]
    return [*(Path(place).expanduser() for place in asked if place), *caches]


def _pickles(folder: Path):
    if all((folder / name).is_file() for name in _FILES):
        return lambda split: _joined(split, lambda name: _unpickled(name, (folder / name).read_bytes()))
    return None


def _binaries(folder: Path):
    if all((folder / f"{name}.bin").is_file() for name in _FILES):
        return lambda split: _joined(
            split, lambda name: _records(name, (folder / f"{name}.bin").read_bytes())
        )
    return None


def _archive(kind: str, patterns: tuple[str, ...], parse: Callable[[str, bytes], Split], suffix: str):
    def layout(folder: Path):
        found = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
        if not found:
            return None
        content = {}

        def reader(split: str) -> Split:
            if not content:
                content.update(_members(found[0], kind, suffix))
            return _joined(split, lambda name: parse(name, content[name]))

        return reader

    return layout


def _members(path: Path, kind: str, suffix: str) -> dict[str, bytes]:
    """Return the files of an archive that are needed, without writing any."""
    if hashlib.md5(whole := path.read_bytes()).hexdigest() != _MD5[kind]:
        raise ValueError(f"{path}: {len(whole):,} bytes, {_WRONG}")
    with tarfile.open(path) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        return {name: archive.extractfile(members[name + suffix]).read() for name in _FILES}


def _sharded(ending: str, read: Callable[[Path], Split]):
    def layout(folder: Path):
        found = {split: sorted(folder.glob(f"*{split}*{ending}*")) for split in _PER_SPLIT}
        if not all(found.values()):
            return None

        def reader(split: str) -> Split:
            parts = [_blamed(path, read) for path in found[split]]
            return tuple(np.concatenate(of) for of in zip(*parts, strict=True))

        return reader

    return layout


def _blamed(path: Path, read: Callable[[Path], Split]) -> Split:
    try:
        images, labels = read(path)
        return np.stack(images), np.array(labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


_LAYOUTS = {
    "pickles": _pickles,
    "binary files": _binaries,
    "archive of pickles": _archive(
        "python",
        ("cifar-10-python.tar.gz", "cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive"),
        lambda name, content: _unpickled(name, content),
        "",
    ),
    "archive of binary files": _archive(
        "binary", ("*cifar-10-binary*.tar.gz",), lambda name, content: _records(name, content), ".bin"
    ),
    "tfrecord": _sharded(".tfrecord", lambda path: formats.examples(formats.tfrecords(path.read_bytes()))),
    "array_record": _sharded(".array_record", lambda path: formats.examples(formats.array_records(path))),
    "parquet": _sharded(".parquet", formats.parquet),
}


def _joined(split: str, of_file: Callable[[str], Split]) -> Split:
    names = _TRAIN if split == "train" else ("test_batch",)
    pixels, labels = zip(*map(of_file, names), strict=True)
    # red, green and blue planes, row by row
    images = np.concatenate(pixels).reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.concatenate(labels)


def _unpickled(name: str, content: bytes) -> Split:
    if hashlib.md5(content).hexdigest() != _MD5[name]:
        raise ValueError(f"{name}: {len(content):,} bytes, {_WRONG}")
    try:
        found = formats.unpickled(content)
        return found[b"data"], np.array(found[b"labels"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _records(name: str, content: bytes) -> Split:
    if len(content) != _PER_FILE * (1 + 3 * _SIDE**2):
        raise ValueError(f"{name}.bin has {len(content):,} bytes, not {_PER_FILE * (1 + 3 * _SIDE**2):,}")
    rows = np.frombuffer(content, np.uint8).reshape(_PER_FILE, -1)
    return rows[:, 1:], rows[:, 0].astype(np.int64)
