"""Text as bytes: cut or padded to one length, and real text that every Python ships with."""

import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wdjax.checks import check_positive_int

PADDING = 0
"""The token after a text's end (a NUL byte, which text does not hold)."""

NUM_TOKENS = 256
DEFAULT_LENGTH = 256


def encode_text(texts: Iterable[bytes | str], length: int = DEFAULT_LENGTH) -> np.ndarray:
    """UTF-8 bytes as int32 tokens `[text, length]`: longer texts cut, shorter ones padded by 0.

    Raises:
      ValueError: if `length` is not a positive integer.
    """
    check_positive_int("length", length)
    rows = [_bytes_of(text)[:length] for text in texts]
    tokens = np.full((len(rows), length), PADDING, np.int32)
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return tokens


def next_byte_windows(
    texts: Iterable[bytes | str], length: int = DEFAULT_LENGTH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(inputs, targets, weights)`, each `[window, length]`, to predict every byte from the last.

    A text of n bytes gives ceil((n - 1) / length) windows that meet without overlap, so every
    byte but its first is a target exactly once; the padding behind the last has weight 0.

    Raises:
      ValueError: if `length` is not a positive integer.
    """
    check_positive_int("length", length)
    windows = []
    for text in map(_bytes_of, texts):
        windows += [text[i : i + length + 1] for i in range(0, len(text) - 1, length)]
    tokens = encode_text(windows, length + 1)
    ends = np.array([len(window) - 1 for window in windows], np.int32).reshape(-1, 1)
    weights = (np.arange(length) < ends).astype(np.float32)
    return tokens[:, :-1].copy(), tokens[:, 1:].copy(), weights


def standard_library_source() -> list[bytes]:
    """The top-level modules of this Python's standard library, by name: real text, a few MB.

    Raises:
      ValueError: if this Python ships without its source.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_bytes() for path in sorted(folder.glob("*.py"))]
    if not texts:
        raise ValueError(
            f"data 'stdlib' reads the standard library's source, and {str(folder)!r} holds none "
            "(this Python is packed); give your own text."
        )
    return texts


def _bytes_of(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text
