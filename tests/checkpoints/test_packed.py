"""Header and table of a file of low-bit adapters."""

import struct

import pytest

from checkpoints.packed import PACKED, Record, add_header, split_header, table

RECORDS = [Record("a", (3, 5), 1), Record("b", (7,), 4), Record("c", (2, 2), 32), Record("d", (0, 4), 8)]


def test_bytes_of_a_record() -> None:
    """Codes are rounded up to whole bytes, and 8 bytes hold mean and standard deviation."""
    assert [record.nbytes for record in RECORDS] == [2 + 8, 4 + 8, 16, 8]
    for bits in (1, 2, 4, 8):
        for size in range(1, 20):
            assert Record("x", (size,), bits).nbytes == (size * bits + 7) // 8 + 8


def test_records_of_a_table_fill_the_payload() -> None:
    rows = table(RECORDS)
    ends = [row["offset"] + row["nbytes"] for row in rows]
    assert [row["offset"] for row in rows] == [0, *ends[:-1]]
    assert ends[-1] == sum(record.nbytes for record in RECORDS)
    assert [row["kind"] for row in rows] == ["q", "q", "f32", "q"]
    assert [Record(row["name"], tuple(row["shape"]), row["bits"]) for row in rows] == RECORDS


@pytest.mark.parametrize("payload", [b"", b"\x00\xff" * 30, PACKED + b"in the payload"])
def test_header_and_payload_come_back(payload: bytes) -> None:
    header, rest = split_header(add_header(payload, {"form": "lora", "name": "ä"}, RECORDS))
    assert rest == payload
    assert header == {"form": "lora", "name": "ä", "records": table(RECORDS)}


def test_a_raw_file_has_no_header() -> None:
    for data in (b"", b"\x01\x02", PACKED[:-1], b"x" + PACKED):
        assert split_header(data) == ({}, data)


def test_every_cut_through_the_header_is_noticed() -> None:
    whole = add_header(b"", {"form": "lora"}, RECORDS)
    for length in range(len(PACKED), len(whole)):
        with pytest.raises(ValueError, match="truncated: its header ends at byte"):
            split_header(whole[:length])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "its header is no valid JSON"),
        (b"\xff\xfe", "its header is no valid JSON"),
        (b"[1]", "its header is no JSON object, or an empty one"),
        (b"{}", "its header is no JSON object, or an empty one"),
        (b"", "its header is no valid JSON"),
    ],
)
def test_damaged_headers_are_refused(header: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_header(PACKED + struct.pack("<I", len(header)) + header + b"payload")
