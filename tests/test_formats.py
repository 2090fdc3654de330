"""Files of records and tables whose content is broken: one line that names it, never another error."""

import io
import struct

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow.parquet import write_table

from dlf.data import formats


def framed(records, spoil=None):
    found = bytearray()
    for record in records:
        head = struct.pack("<Q", len(record))
        checks = [formats._masked_crcs([of])[0].tobytes() for of in (head, record)]
        found += head + checks[0] + record + checks[1]
    if spoil is not None:
        found[spoil] ^= 1
    return bytes(found)


def field(number, content):
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def example(**features):
    entries = (field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items())
    return field(1, b"".join(entries))


def png():
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_the_checksum_is_the_published_one_whatever_the_lengths():
    of_digits = 0xE3069283  # CRC-32C of "123456789", RFC 3720
    masked = ((of_digits >> 15 | of_digits << 17) + 0xA282EAD8) & 0xFFFFFFFF
    records = [b"", b"1", b"123456789", b"x" * 100]
    together = formats._masked_crcs(records)
    assert together[2] == masked
    assert [*together] == [formats._masked_crcs([of])[0] for of in records]


def test_every_byte_of_a_record_is_checked(refused):
    records = [b"first", b"", b"another one"]
    assert formats.tfrecords(framed(records)) == records
    for at in range(len(framed(records))):
        refused(lambda at=at: formats.tfrecords(framed(records, spoil=at)), "")
    refused(lambda: formats.tfrecords(framed(records, spoil=14)), "checksum of record 0")


SMALL = png()
BROKEN = {
    "no label": example(image=field(1, field(1, SMALL))),
    "an empty label": example(image=field(1, field(1, SMALL)), label=field(3, b"")),
    "an empty feature": example(image=field(1, b""), label=field(3, field(1, b"\x01"))),
    "an image that is a number": example(image=field(3, b"\x08\x01"), label=field(3, field(1, b"\x01"))),
    "nothing": b"",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_record_without_image_or_label_is_named(refused, case):
    refused(lambda: formats.examples([BROKEN[case]]), "")


TABLES = {
    "no label": ([{"bytes": SMALL}], [None]),
    "no image": ([None], [3]),
    "an image without bytes": ([{"bytes": None}], [3]),
    "bytes alone": ([SMALL], [3]),
    "a label that is none": ([{"bytes": SMALL}], [0.5]),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_row_without_image_or_label_is_named(refused, tmp_path, case):
    images, labels = TABLES[case]
    write_table(pyarrow.table({"img": images, "label": labels}), tmp_path / "made.parquet")
    refused(lambda: formats.parquet(tmp_path / "made.parquet"), "row 0")
