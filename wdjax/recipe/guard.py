"""A user's own code, called: whatever it raises becomes one sentence with its file and line."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wdjax.checks import LabelError
from wdjax.ending import OWN_MODULE
from wdjax.interfaces import what
from wdjax.types import Model

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_MOST = 200


class OwnCodeError(ValueError):
    """What a user's own file raised or gave, by its file and line."""

    def __init__(self, about: str, reason: str):
        super().__init__(f"{about}: {reason}")
        self.reason = reason


def guarded(about: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose every error is an `OwnCodeError`, and of what it gives as well.

    What it gives may be a function or a `Model`: those are called later, inside a trace. An exit
    that the code asks for is an error too; Ctrl-C and what says that memory ran out pass through.

    Args:
      about: the option and what it named, as the sentence begins.
      function: of the user's own.

    Raises:
      OwnCodeError: when it is called, for whatever the function raises.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
        except (OwnCodeError, LabelError, MemoryError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            # Of an exit the file's own: that of a signal is another kind of it.
            if isinstance(error, SystemExit) and type(error) is not SystemExit:
                raise
            raise OwnCodeError(about, reason_of(error, function)) from error
        return _guarded_result(about, result)

    return call


def reason_of(error: BaseException, function: Any = None) -> str:
    """Where a user's own file went wrong and how: `line 3 in make_model: TypeError: ...`."""
    if isinstance(error, OwnCodeError):
        return error.reason
    place = _place(error) or _definition(function)
    said = " ".join(str(error).split())
    said = said if len(said) <= _MOST else f"{said[:_MOST]}..."
    return ": ".join(filter(None, [place, type(error).__name__, said]))


def shown(value: Any) -> str:
    """What a user's file gave, in words; even if it does not want to be shown."""
    try:
        words = " ".join(what(value).split())
    except Exception:  # Its own __repr__ may raise anything.
        words = f"an object of {type(value).__name__}"
    return words if len(words) <= _MOST else f"{words[:_MOST]}..."


def _guarded_result(about: str, result: Any) -> Any:
    if isinstance(result, Model):
        init, apply = (guarded(f"{about}: {n}", getattr(result, n)) for n in Model._fields)
        return Model(
            _giving_pair(f"{about}: init", init, "(params, model_state)"),
            _giving_pair(f"{about}: apply", apply, "(outputs, model_state)"),
        )
    return guarded(about, result) if isinstance(result, _FUNCTIONS) else result


def _giving_pair(about: str, function: Callable, pair: str) -> Callable:
    def call(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        result = function(*args, **kwargs)
        if not isinstance(result, tuple | list) or len(result) != 2:
            number = f" of {len(result)}" if isinstance(result, tuple | list) else ""
            raise OwnCodeError(about, f"must return {pair}, got {shown(result)}{number}.")
        for leaf in jax.tree.leaves(tuple(result)):
            if not _is_array(leaf):
                raise OwnCodeError(about, f"must return arrays in {pair}, got {shown(leaf)} there.")
        return result[0], result[1]

    return call


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc" or leaf.dtype.name in ("bfloat16",)
    return isinstance(leaf, bool | int | float | complex) or hasattr(leaf, "aval")


def _place(error: BaseException) -> str:
    """The innermost line of the file that the error came through."""
    if isinstance(error, SyntaxError) and error.lineno is not None and error.filename:
        inner = error.filename
    else:
        inner = None
    found, trace = "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith(OWN_MODULE):
            inside = frame.f_code.co_name
            within = "" if inside == "<module>" else f" in {inside}"
            found = f"line {trace.tb_lineno}{within}"
        trace = trace.tb_next
    # Of a file that cannot be compiled nothing was run: there is no frame of it.
    return found if found or inner is None else f"line {getattr(error, 'lineno', 0)}"


def _definition(function: Any) -> str:
    """Where it stands, if calling it failed before its first line."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    return "" if code is None else f"line {code.co_firstlineno} in {code.co_name}"
