"""CIFAR-10 from made files of every layout, damaged and hostile ones."""

import hashlib
import io
import os
import pickle
import struct
import tarfile

import jax.numpy as jnp
import numpy as np
import pyarrow
import pytest
from pyarrow.parquet import write_table

from dlf import data
from dlf.data import cifar, formats

NUM = 20  # examples of a file, two a class


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Return CIFAR-10 in small: images and labels by file, where nothing else is looked at."""
    monkeypatch.setattr(cifar, "_PER_FILE", NUM)
    monkeypatch.setattr(cifar, "_PER_SPLIT", {"train": 5 * NUM, "test": NUM})
    for name in ("CIFAR10_DIR", "TORCH_HOME", "TFDS_DATA_DIR", "KERAS_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    return {
        name: (rng.randint(0, 256, (NUM, 32, 32, 3)).astype(np.uint8), rng.permutation(np.arange(NUM) % 10))
        for name in cifar._FILES
    }


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its words."""

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def as_pickle(images, labels):
    content = {b"batch_label": b"made", b"labels": [*map(int, labels)], b"data": planes(images)}
    Python2(file := io.BytesIO(), protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def as_binary(images, labels):
    return np.concatenate([labels[:, None].astype(np.uint8), planes(images)], axis=1).tobytes()


def as_png(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def varint(value):
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def as_example(image, label, number):
    def feature(name, kind, value):
        return field(1, field(1, name) + field(2, field(kind, field(1, value))))

    parts = feature(b"id", 1, b"made_%d" % number), feature(b"image", 1, as_png(image))
    return field(1, b"".join((*parts, feature(b"label", 3, varint(int(label))))))


def as_tfrecord(records):
    def masked(content):
        return formats._masked_crcs([content])[0].tobytes()

    return b"".join(
        struct.pack("<Q", len(r)) + masked(struct.pack("<Q", len(r))) + r + masked(r) for r in records
    )


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def publish(monkeypatch, **content):
    monkeypatch.setattr(
        cifar, "_MD5", cifar._MD5 | {name: hashlib.md5(of).hexdigest() for name, of in content.items()}
    )


def splits(made):
    train, test = cifar._TRAIN, ("test_batch",)
    return {
        split: [np.concatenate(of) for of in zip(*(made[name] for name in names), strict=True)]
        for split, names in (("train", train), ("test", test))
    }


def write_pickles(folder, made, monkeypatch):
    files = {name: as_pickle(*of) for name, of in made.items()}
    publish(monkeypatch, **files)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_binary(folder, made, monkeypatch):
    folder.mkdir(parents=True)
    for name, of in made.items():
        (folder / f"{name}.bin").write_bytes(as_binary(*of))


def write_archive(name, convert, kind, suffix, inside):
    def write(folder, made, monkeypatch):
        files = {of: convert(*content) for of, content in made.items()}
        folder.mkdir(parents=True)
        archive(folder / name, {f"{inside}/{of}{suffix}": content for of, content in files.items()})
        publish(monkeypatch, **files, **{kind: (folder / name).read_bytes()})

    return write


def records(images, labels):
    return [as_example(*of, number) for number, of in enumerate(zip(images, labels, strict=True))]


def write_tfrecord(folder, made, monkeypatch):
    folder.mkdir(parents=True)
    for split, of in splits(made).items():
        (folder / f"cifar10-{split}.tfrecord-00000-of-00001").write_bytes(as_tfrecord(records(*of)))


def write_array_record(folder, made, monkeypatch):
    module = pytest.importorskip("array_record.python.array_record_module")
    folder.mkdir(parents=True)
    for split, of in splits(made).items():
        path = folder / f"cifar10-{split}.array_record-00000-of-00001"
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records(*of):
            writer.write(record)
        writer.close()


def write_parquet(folder, made, monkeypatch):
    folder.mkdir(parents=True)
    for split, (images, labels) in splits(made).items():
        pngs = [{"bytes": as_png(image), "path": None} for image in images]
        table = pyarrow.table({"img": pngs, "label": [*map(int, labels)]})
        write_table(table, folder / f"{split}-00000-of-00001.parquet")


python_archive = dict(convert=as_pickle, kind="python", suffix="", inside="cifar-10-batches-py")
binary_archive = dict(convert=as_binary, kind="binary", suffix=".bin", inside="cifar-10-batches-bin")
LAYOUTS = {
    "pickles": (".", write_pickles),
    "torchvision": ("cifar-10-batches-py", write_pickles),
    "binary": ("cifar-10-batches-bin", write_binary),
    "archive": (".", write_archive("cifar-10-python.tar.gz", **python_archive)),
    "archive of binary": (".", write_archive("cifar-10-binary.tar.gz", **binary_archive)),
    "keras 2": (".", write_archive("cifar-10-batches-py.tar.gz", **python_archive)),
    "keras 3": (".", write_archive("cifar-10-batches-py-target_archive", **python_archive)),
    "keras 3, unpacked": ("cifar-10-batches-py-target/cifar-10-batches-py", write_pickles),
    "tfds": ("cifar10/3.0.2", write_tfrecord),
    "tfds, array_record": ("cifar10/3.0.2", write_array_record),
    "tfds' download": (
        "downloads",
        write_archive("cs.toronto.edu_kriz_cifar-10-binaryODHPtIjLh3oL.tar.gz", **binary_archive),
    ),
    "hugging face": ("datasets--uoft-cs--cifar10/snapshots/0b2714987fa4/plain_text", write_parquet),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_back_equal(made, monkeypatch, tmp_path, name):
    place, write = LAYOUTS[name]
    write(tmp_path / "made" / place if place != "." else tmp_path / "made", made, monkeypatch)
    train, tests, num_classes = data.cifar10(str(tmp_path / "made"), 5 * NUM, 0, NUM)
    assert num_classes == 10 and [*tests] == ["test"] and train.inputs.dtype == jnp.uint8
    expected = splits(made)
    for batch, split in ((train, "train"), (tests["test"], "test")):
        np.testing.assert_array_equal(batch.inputs, expected[split][0])
        np.testing.assert_array_equal(batch.labels, expected[split][1])


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("CIFAR10_DIR", "cifar-10-batches-bin"),
        ("TFDS_DATA_DIR", "cifar10/3.0.2"),
        ("KERAS_HOME", "datasets/cifar-10-batches-py-target/cifar-10-batches-py"),
        ("HF_HUB_CACHE", "datasets--cifar10/snapshots/0/plain_text"),
        (None, "data/cifar-10-batches-py"),
        (None, "home/tensorflow_datasets/downloads/extracted/TAR_GZ.x/cifar-10-batches-bin"),
        (None, "home/.keras/datasets/cifar-10-batches-py-target"),
    ],
)
def test_each_usual_place_is_looked_at(made, monkeypatch, tmp_path, variable, below):
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    write_binary(tmp_path / below, made, monkeypatch)
    assert len(data.cifar10(num_train=50, num_validation=50, num_test=NUM).train.labels) == 50


def test_a_path_comes_before_all_other_places(made, monkeypatch, tmp_path):
    write_binary(tmp_path / "data", made, monkeypatch)
    other = {name: (255 - images, labels) for name, (images, labels) in made.items()}
    write_binary(tmp_path / "mine", other, monkeypatch)
    found = data.cifar10(str(tmp_path / "mine"), 5 * NUM, 0, NUM).train.inputs
    np.testing.assert_array_equal(found, splits(other)["train"][0])


def test_nothing_found_says_what_and_where(refused, made, tmp_path):
    refused(lambda: data.cifar10(str(tmp_path / "no")), "data_batch_1", str(tmp_path / "no"), ".keras")


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "hugging face"])
def test_half_a_file_is_named(refused, made, monkeypatch, tmp_path, name):
    place, write = LAYOUTS[name]
    write(folder := tmp_path / place if place != "." else tmp_path / "made", made, monkeypatch)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "made" if place == "." else tmp_path))
    refused(lambda: data.cifar10(num_train=5 * NUM, num_validation=0, num_test=NUM))


def test_half_a_table_is_named(refused, made, monkeypatch, tmp_path):
    folder = tmp_path / "plain_text"
    write_parquet(folder, made, monkeypatch)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: data.cifar10(str(tmp_path)), "parquet")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch stolen",)


@pytest.mark.parametrize("what", [Hostile(), print, np.random.RandomState(0), {b"data": Hostile()}])
def test_a_hostile_pickle_is_not_run(refused, made, monkeypatch, tmp_path, what):
    write_pickles(tmp_path / "made", made, monkeypatch)
    content = pickle.dumps(what)
    (tmp_path / "made" / "data_batch_3").write_bytes(content)
    refused(lambda: data.cifar10(str(tmp_path / "made")), "data_batch_3", "checksum")
    publish(monkeypatch, data_batch_3=content)  # as if it were the published one
    refused(lambda: data.cifar10(str(tmp_path / "made")), "data_batch_3", "pickle")
    assert not (tmp_path / "stolen").exists()


def test_a_pickle_cannot_ask_for_much_memory(refused):
    class Huge:
        def __reduce__(self):
            from numpy._core.multiarray import _reconstruct

            return _reconstruct, (np.ndarray, (10**12,), b"b")

    refused(lambda: formats.unpickled(pickle.dumps(Huge())), "no plain array")


def test_images_of_another_shape_or_number_of_classes_are_refused(refused, made, monkeypatch, tmp_path):
    pngs = {name: (images[:, :16], labels) for name, (images, labels) in made.items()}
    write_tfrecord(tmp_path / "small", pngs, monkeypatch)
    refused(lambda: data.cifar10(str(tmp_path / "small")), "small", "[100, 16, 32, 3]")
    few = {name: (images, labels % 9) for name, (images, labels) in made.items()}
    write_binary(tmp_path / "few", few, monkeypatch)
    refused(lambda: data.cifar10(str(tmp_path / "few")), "ten classes")
