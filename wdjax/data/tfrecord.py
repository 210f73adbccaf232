"""Records of TFRecord files by position, without TensorFlow, each checked against its CRC.

TFDS gives no random access to this format at all, and reads it by TensorFlow (TFDS 4.9.10; shown by
`test_tfds_reads_no_tfrecord_without_tensorflow`).
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np

_BLOCK = 4096
_HEADER, _FOOTER = 12, 4


class Slice(NamedTuple):
    """`take` records of a file, after the first `skip`, of `num_records` that it must hold."""

    path: str
    skip: int
    take: int
    num_records: int


class TfRecords:
    """The records of several files, one after another; opened at each read, so it pickles.

    A record on disk is its length (8 bytes), the masked CRC-32C of the length, the payload,
    and the masked CRC-32C of the payload. Lengths are read and checked at once, payloads when
    asked for.

    Raises:
      ValueError: for a file that is missing, cut off or damaged, by name.

    Format: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """

    def __init__(self, slices: Iterable[Slice]):
        self._slices = list(slices)
        tables = [_payloads(piece)[piece.skip :][: piece.take] for piece in self._slices]
        self._file = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self._place = np.concatenate([np.zeros((0, 2), np.int64), *tables])

    def __len__(self) -> int:
        """The records in all files."""
        return len(self._place)

    def __getitems__(self, positions: Iterable[SupportsIndex]) -> list[bytes]:
        """The payloads of several records."""
        return [self[position] for position in positions]

    def __getitem__(self, position: SupportsIndex) -> bytes:
        """The payload of one record."""
        position = position.__index__()
        path = self._slices[self._file[position]].path
        offset, length = map(int, self._place[position])
        with open(path, "rb") as file:
            file.seek(offset)
            record = file.read(length + _FOOTER)
        payload, stored = record[:length], np.frombuffer(record[length:], "<u4")
        if len(record) < length + _FOOTER or stored[0] != _masked_crc32c(_as_rows([payload]))[0]:
            raise ValueError(
                f"{path!r} is damaged: the record at byte {offset - _HEADER} does not match its "
                "checksum; fetch or prepare the file again."
            )
        return payload


def _payloads(piece: Slice) -> np.ndarray:
    """Offset and length of each payload, `[record, 2]`."""
    path = Path(piece.path)
    if not path.is_file():
        raise ValueError(f"{piece.path!r} is missing; fetch or prepare the data again.")
    headers, places, end, size = [], [], 0, path.stat().st_size
    with path.open("rb") as file:
        while end < size:
            file.seek(end)
            headers.append(file.read(_HEADER))
            length = int.from_bytes(headers[-1][:8], "little")
            places.append((end + _HEADER, length))
            end += _HEADER + length + _FOOTER
    whole = end == size and all(len(header) == _HEADER for header in headers)
    if whole and headers:
        rows = _as_rows(headers)
        stored = rows[:, 8:].copy().view("<u4")[:, 0]
        whole = bool((stored == _masked_crc32c(rows[:, :8])).all())
    if not whole or len(places) != piece.num_records:
        raise ValueError(
            f"{piece.path!r} is cut off or damaged: it should hold {piece.num_records} whole "
            "records; fetch or prepare the file again."
        )
    return np.array(places, np.int64).reshape(-1, 2)


def crc32c(rows: np.ndarray) -> np.ndarray:
    """The CRC-32C (Castagnoli) of each row of bytes: `uint8[row, length] -> uint32[row]`.

    A CRC is linear over XOR, so a block's is the XOR of one table entry per byte, chosen by the
    byte and by how many bytes follow it; the state before the block is XORed into its head.
    """
    table = _crc_table()
    state = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].copy()
        length = block.shape[1]
        head = min(4, length)
        block[:, :head] ^= state.astype("<u4")[:, None].view(np.uint8)[:, :head]
        state = state >> np.uint32(8 * length) if length < 4 else np.zeros_like(state)
        followers = np.arange(length)[::-1]
        state = state ^ np.bitwise_xor.reduce(table[followers, block], axis=1)
    return ~state


def _masked_crc32c(rows: np.ndarray) -> np.ndarray:
    crc = crc32c(rows)
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


@cache
def _crc_table() -> np.ndarray:
    """`[followers, byte]`: what a byte adds to the CRC when that many bytes follow it."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(0x82F63B78), crc >> 1)
    table = np.empty((_BLOCK, 256), np.uint32)
    table[0] = crc
    for followers in range(1, _BLOCK):
        before = table[followers - 1]
        table[followers] = (before >> 8) ^ crc[before & 0xFF]
    return table


def _as_rows(payloads: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), -1)
