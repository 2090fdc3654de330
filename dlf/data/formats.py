"""Readers of the files that images lie in, each of which ends in ValueError for what it cannot read.

Nothing is executed: a pickle may only put NumPy's arrays together.
"""

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

_NUMPY = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_CLASSES = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
_IDX = 0x0800  # bytes, with the number of axes in the last digit


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return _empty
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        raise ValueError(f"its pickle asks for {module}.{name}, which no data need")


def _empty(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Return what NumPy's own function makes before the content is read, and nothing of another size."""
    if kind is not np.ndarray or shape != (0,):
        raise ValueError("its pickle holds no plain array")
    return np.ndarray(shape, np.uint8)


def unpickled(content: bytes) -> Any:
    """Return what a pickle of Python 2 or 3 holds: words, numbers, lists, mappings and arrays of NumPy.

    >>> unpickled(pickle.dumps({"data": np.arange(3, dtype=np.uint8)}))["data"].tolist()
    [0, 1, 2]
    >>> unpickled(pickle.dumps(print))
    Traceback (most recent call last):
    ValueError: its pickle asks for builtins.print, which no data need
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # whatever half a pickle makes of it
        raise ValueError(f"it is no pickle: {type(error).__name__}") from error


def idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Return the array of bytes in a file of MNIST's format, compressed or not."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    magic = int.from_bytes(content[:4], "big")
    num_axes = magic - _IDX
    if not 1 <= num_axes <= 4 or len(content) < 4 + 4 * num_axes:
        raise ValueError("it does not begin as a file of bytes in MNIST's format does")
    shape = struct.unpack_from(f">{num_axes}I", content, 4)
    found = np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes)
    if found.size != np.prod(shape, dtype=object):
        raise ValueError(f"it announces {shape} bytes and holds {found.size}")
    return found.reshape(shape)


def decoded(content: bytes) -> UInt8[np.ndarray, "height width channels"]:
    """Return the pixels of a PNG, as bytes in red, green and blue."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("its images are PNG: pip install pillow (extra `data`)") from error
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        raise ValueError(f"an image cannot be decoded: {error}") from error


def examples(records: Iterable[bytes]) -> tuple[list[np.ndarray], list[int]]:
    """Return images and labels of TensorFlow's tf.train.Example messages, as TFDS writes them.

    Source: the messages Example, Features and Feature of TensorFlow's example.proto and feature.proto.
    """
    images, labels = [], []
    for record in records:
        features = {}
        for _, group in _fields(record):
            for _, entry in _fields(group):
                key, feature = (value for _, value in sorted(_fields(entry)))
                ((_, values),) = _fields(feature)
                _, features[key] = next(_fields(values), (0, None))
        label = features.get(b"label")
        if not isinstance(features.get(b"image"), bytes) or label is None:
            raise ValueError("its records hold no image and label")
        # int64 values lie packed in bytes
        labels.append(label if isinstance(label, int) else _varint(label, 0)[0])
        images.append(decoded(features[b"image"]))
    return images, labels


def tfrecords(content: bytes) -> list[bytes]:
    """Return the records of a file of TensorFlow's: length, its checksum, bytes, theirs; all are checked."""
    records, checks, at = [], [], 0
    while at < len(content):
        if len(content) < at + 12:
            raise ValueError("it ends amid a record")
        length, check = struct.unpack_from("<QI", content, at)
        if check != _masked_crcs([content[at : at + 8]])[0]:
            raise ValueError("the checksum of a record's length is wrong")
        if len(content) < at + 16 + length:
            raise ValueError("it ends amid a record")
        records.append(content[at + 12 : at + 12 + length])
        checks += struct.unpack_from("<I", content, at + 12 + length)
        at += 16 + length
    wrong = np.flatnonzero(_masked_crcs(records) != np.asarray(checks, np.uint32))
    if len(wrong):
        raise ValueError(f"the checksum of record {wrong[0]} is wrong")
    return records


def array_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file of Google's array_record."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise ValueError("it needs array_record: pip install array-record, or give another layout") from error
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.read_all()
        reader.close()
    except Exception as error:  # of C++
        raise ValueError(f"it cannot be read: {' '.join(str(error).split())}") from error
    yield from found


def parquet(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """Return images and labels of a file of Hugging Face's: PNG under `img`, or `image`, and `label`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise ValueError("it needs pyarrow: pip install pyarrow (extra `data`)") from error
    try:
        table = read_table(path).to_pydict()
    except (ArrowException, OSError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    images = table.get("img", table.get("image"))
    if images is None or "label" not in table:
        raise ValueError(f"it has no images and labels, but {', '.join(table)}")
    for row, (image, label) in enumerate(zip(images, table["label"], strict=True)):
        is_image = isinstance(image, dict) and isinstance(image.get("bytes"), bytes)
        if not is_image or type(label) is not int:
            raise ValueError(f"row {row} has no image as bytes, or no whole number as a label")
    return [decoded(image["bytes"]) for image in images], table["label"]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of the fields of a protocol buffer: numbers and bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise ValueError(f"a record holds a field of wire type {tag & 7}")
        if at > len(message):
            raise ValueError("a record ends amid a field")
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a record ends amid a number")


def _table() -> np.ndarray:
    found = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        found = found >> 1 ^ np.where(found & 1, np.uint32(0x82F63B78), np.uint32(0))
    return found


_CRC_TABLE = _table()


def _masked_crcs(records: Sequence[bytes]) -> np.ndarray:
    """Return the CRC-32C of each record as TensorFlow writes it, byte by byte of all records at once."""
    order = sorted(range(len(records)), key=lambda i: -len(records[i]))
    lengths = np.asarray([len(records[i]) for i in order])
    columns = np.zeros((max(lengths, default=0), len(records)), np.uint8)
    for place, i in enumerate(order):
        columns[: lengths[place], place] = np.frombuffer(records[i], np.uint8)
    crcs = np.full(len(records), 2**32 - 1, np.uint32)
    for at, column in enumerate(columns):
        num = np.searchsorted(-lengths, -at)  # records that are longer
        crcs[:num] = crcs[:num] >> 8 ^ _CRC_TABLE[(crcs[:num] ^ column[:num]) & 255]
    crcs = ~crcs
    found = np.empty_like(crcs)
    found[order] = (crcs >> 15 | crcs << 17) + np.uint32(0xA282EAD8)
    return found
