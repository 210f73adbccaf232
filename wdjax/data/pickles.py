"""Pickled NumPy arrays, read without trust: of what a pickle can name nothing is ever called."""

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_DTYPE = re.compile(r"[|<>=]?([bui])([1248])")


def read_pickle(path: Path, content: bytes) -> Any:
    """What a pickle of dicts, lists, numbers, texts and arrays holds; Python 2's texts are bytes.

    A pickle is a program. The few names that one of such arrays needs stand here for functions
    that check what they are given and build an array themselves; a pickle that names anything
    else is refused there, with nothing of it executed.

    Raises:
      ValueError: by the file's name, for a pickle that names anything else, or a damaged one.
    """
    try:
        return _Arrays(path, io.BytesIO(content), encoding="bytes").load()
    except _OtherNameError as error:
        raise ValueError(str(error)) from None
    except MemoryError:
        raise ValueError(f"{str(path)!r} claims more than memory holds; fetch it again.") from None
    except Exception as error:  # A damaged pickle raises what it likes.
        raise ValueError(
            f"{str(path)!r} cannot be read as a pickle of arrays "
            f"({type(error).__name__}: {str(error)[:100]}); fetch it again."
        ) from None


class _OtherNameError(Exception):
    pass


class _Dtype:
    """In place of `numpy.dtype`: whole numbers of 1 to 8 bytes, little endian unless it says so."""

    def __init__(self, code: Any):
        code = code.decode() if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ValueError(f"an array of {str(code)[:20]!r}, not of whole numbers")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.code = f"{'>' if order == '>' else '<'}{self.code.lstrip('|<>=')}"


class _Array:
    """In place of `numpy.ndarray`, from the bytes of its state."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = _array(content, dtype, shape, "F" if is_fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise ValueError("an array that does not hold its bytes")
    if math.prod(int(size) for size in shape) * np.dtype(dtype.code).itemsize != len(content):
        raise ValueError(f"an array of shape {shape} and {len(content)} bytes")
    return np.frombuffer(bytes(content), dtype.code).reshape(shape, order=order)


def _text(text: Any, encoding: Any) -> bytes:
    """In place of `codecs.encode`: how Python 3 writes bytes for Python 2."""
    return str(text).encode("latin1")


def plain(value: Any) -> Any:
    """A value read by `read_pickle` with its arrays as arrays and keys of bytes as texts."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        texts = (key.decode() if isinstance(key, bytes) else key for key in value)
        return dict(zip(texts, map(plain, value.values()), strict=True))
    return value


class _Arrays(pickle.Unpickler):
    def __init__(self, path: Path, *args: Any, **how: Any):
        super().__init__(*args, **how)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        stands_for: dict[str, Callable[..., Any] | str] = {
            # Fresh each time: a pickle can set attributes of what it is given.
            "numpy.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.numeric._frombuffer": lambda *given: _array(*given),
            "numpy.ndarray": "ndarray",  # An argument of the first, and no function.
            "numpy.dtype": lambda code, *_: _Dtype(code),
            "_codecs.encode": lambda *given: _text(*given),
        }
        asked = f"{re.sub(r'^numpy._?core.', 'numpy.', module)}.{name}"
        if asked not in stands_for:
            raise _OtherNameError(
                f"{str(self._path)!r} is a pickle that names {f'{module}.{name}'[:80]!r}, which no "
                "array needs: it would run code, and was not read; fetch the file again from where "
                "it was published."
            )
        return stands_for[asked]
