"""The command `wdjax`: argument parsing, progress and printing, nothing else."""

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
import os
import pathlib
import re
import shlex
import signal
import sys
import threading
import types
import typing
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from wdjax.ending import DONE, FAILED, INTERRUPTED, STATUSES, TERMINATED, end, ending_of, naming
from wdjax.printing import let_go_of_outputs, named_path, one_line, write_error, write_out
from wdjax.screen import Screen

EXAMPLES = {
    "select": "wdjax select --data my.csv --target price --loss squared_error",
    "train": "wdjax train --strength 0.1 --epochs 50",
    "compare": "wdjax compare --vary optimizer --among sgd adam lion",
    "transfer": "wdjax transfer --rows 250 500 1000 --width 16 32 64 --to-rows 4000 --to-width 256",
    "audit": "wdjax audit --model mlp --decay decoupled --strength 0.1 --strict",
    "convert": "wdjax convert 1e-4 keras_l2 torch_adamw",
    "predict": "wdjax predict runs/train-20261122-120000 new.csv",
    "report": "wdjax report runs/select-20261122-120000",
}
FRESH = "ignore the cache of finished trainings (~/.cache/wdjax/trials)"
TRACEBACK = "show where an error came from, beside the sentence"


def command() -> int:
    """`main` in a process of its own, whose garbage collector it may set.

    It looked again and again at modules and traced programs, which stay, and at the exit once
    more at everything: up to a seventh of the processor time of a small run that compiles nothing.

    Raises:
      SystemExit: as `main`.
    """
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, _leave_at_once)
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    warnings.showwarning = _show_warning
    threading.excepthook = _end_of_thread
    try:
        return main()
    except KeyboardInterrupt as error:  # Once more, while `main` told of the first.
        return end(error, with_traceback=False)
    finally:
        if listens:  # What is left is the exit, and nothing that Python could tell of there.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        let_go_of_outputs()
        gc.freeze()


def main(argv: list[str] | None = None) -> int:
    """Runs the command; its exit status.

    - 0 if it did what was asked.
    - 1 if the system or a file failed it: a full disk, an output that cannot be written, a damaged
      file, a package that is missing, a loss that is not finite; of `wdjax audit --strict`, if
      there was a warning. A bug of the package too, which keeps its traceback.
    - 2 if what was asked cannot be done.
    - 130 on Ctrl-C, 143 if it was asked to end by SIGTERM, and saved.

    What fails is said in one sentence on the standard error; `--traceback` shows where it came
    from as well.

    Raises:
      SystemExit: after --help (0), and when it was asked to end by SIGTERM (143).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except (Exception, KeyboardInterrupt) as error:
        return end(error, with_traceback=_is_given("traceback", words))
    except SystemExit as error:
        if ending_of(error) is None or error.code == TERMINATED:
            raise
        return end(error, with_traceback=_is_given("traceback", words))


def _main(words: list[str]) -> int:
    _check_words(words)
    _set_up_jax(words)
    from wdjax import jobs  # start-up: what JAX is told must be told before it is imported.
    from wdjax.checks import check_text, nearest  # start-up: likewise.

    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    words = _with_recipe(jobs, words)
    shown = {"streamed"} if _is_given("stream", words) or _is_given("resume", words) else set()
    shown |= {"of_table"} if any(word.endswith(jobs.TABLE_ENDINGS) for word in words) else set()
    parser = _parser(jobs, frozenset(shown))
    parsed, unknown = parser.parse_known_args(words)
    arguments = vars(parsed)
    job = arguments.pop("job")
    arguments.pop("traceback", None)
    if unknown:
        known = [f"--{name.replace('_', '-')}" for name in arguments]
        raise ValueError(
            f"unknown argument {unknown[0]!r} of `wdjax {job}`.{nearest(unknown[0], known)}"
        )
    for name, value in arguments.items():
        if job in ("predict", "report") and isinstance(value, str):
            check_text(name, value)
    if job == "report":
        write_out(f"Wrote {named_path(jobs.run_report(arguments['run']))}")
    elif job == "predict":
        run, data = arguments.pop("run"), arguments.pop("data")
        path = jobs.run_predict(run, data, **arguments, say=write_error)
        write_out(f"Wrote {named_path(path)}")
    elif job == "audit":
        report = jobs.run_audit(jobs.AuditOptions(**arguments))
        write_out(str(report))
        return FAILED if arguments["strict"] and report.warnings else DONE
    elif job == "convert":
        value, source, target = (arguments.pop(n) for n in ("value", "source", "target"))
        found = jobs.run_convert(value, source, target, jobs.ConvertOptions(**arguments))
        write_out(str(found))
    else:
        write_out(jobs.summary(_run(jobs, job, arguments, words)))
    return DONE


def _with_recipe(jobs: Any, words: list[str]) -> list[str]:
    """The words that a recipe stands for in its place; all that follows knows of no recipe."""
    name = _value_of("--recipe", words)
    if not name or words[0] != "train":
        return words
    data_dir = _value_of("--data-dir", words)
    return jobs.recipe_words(name, words, data_dir=data_dir, say=write_error)


def _end_of_thread(thread: threading.ExceptHookArgs) -> None:
    """What fails beside the run is told as what fails in it, and ends nothing."""
    if isinstance(thread.exc_value, Exception):
        end(thread.exc_value, with_traceback=False)


def _leave_at_once(*_: object) -> None:
    """On Ctrl-C while importing: nothing is begun yet, and half imported libraries are not asked.

    Some of them would make another error of it.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"wdjax: stopped by Ctrl-C.\n")
    os._exit(INTERRUPTED)


def _check_words(words: list[str]) -> None:
    """Refuses what argparse takes in silence, or dies of."""
    seen: dict[str, str | None] = {}
    for word in itertools.takewhile(lambda word: word != "--", words):
        flag, equals, value = word.partition("=")
        if not re.fullmatch("--[a-z].*", flag, re.DOTALL):
            continue
        if equals and value == "--":
            raise ValueError(f"argument {flag}: `--` is no value; got {word!r}.")
        if flag in seen:
            raise ValueError(f"argument {flag} is given more than once; which of them is meant?")
        seen[flag] = value


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    """Without the line of code that it came from, which looks like a traceback."""
    del place, more
    write_error(f"wdjax: warning: {one_line(str(message))}")


def _run(jobs: Any, job: str, arguments: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """Runs `select`, `compare`, `transfer` or `train` under the screen; their results."""
    from wdjax.runners import join_processes  # start-up: after JAX was told, see `_main`.

    runs: dict[str, Any] = {
        "select": (jobs.SelectOptions, jobs.run_select),
        "compare": (jobs.CompareOptions, jobs.run_compare),
        "transfer": (jobs.TransferOptions, jobs.run_transfer),
        "train": (jobs.TrainOptions, jobs.run_train),
    }
    kind, run = runs[job]
    if job != "train":
        # What is cached changes no result, so it is the command's to say and in no run's options.
        cache = None if arguments.pop("fresh") else _cache_folder(say=write_error)
        run = functools.partial(run, cache=None if cache is None else cache / "trials")
    options = kind(**arguments)
    if job == "train" and options.distributed is not None:
        join_processes(options.distributed)
    folder = getattr(options, "resume", None)
    # What its files say may be wrong anywhere: of a run that goes on its folder is always named.
    with naming(f"`resume` {folder!r}", folder) if folder else contextlib.nullcontext():
        if folder is not None:
            given = {n: v for n, v in arguments.items() if _is_given(n, words)}
            options = jobs.resumed_options(folder, given)
        with Screen() as screen:
            command = shlex.join(["wdjax", *words])
            return run(options, say=screen.say, on_progress=screen.show, command=command)


def _set_up_jax(words: list[str]) -> None:
    """CPU devices for the cores, and a cache that spares the second run its compilation.

    Only what the environment leaves open, and before JAX starts its first device.

    Raises:
      ImportError: if JAX cannot be imported.
      ValueError: for more devices than JAX survives.
    """
    try:
        import jax
    except Exception as error:  # A broken installation, or a variable that it cannot read.
        raise ImportError(f"JAX cannot be imported: {error}", name="jax") from error

    from wdjax.runners import num_cores  # start-up: imports JAX.

    # Two CPU processes of several devices dead-lock on JAX 0.10 when steps queue up.
    default_devices = num_cores() if _value_of("--distributed", words) is None else 1
    cache = _cache_folder()
    settings = {
        "jax_num_cpu_devices": _devices_wanted(words) or default_devices,
        "jax_compilation_cache_dir": None if cache is None else str(cache / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            # Called from a program that has started JAX, the devices are what they are.
            with contextlib.suppress(RuntimeError):
                jax.config.update(name, value)


def _cache_folder(say: Callable[[str], None] | None = None) -> pathlib.Path | None:
    """The folder of what need not be done twice; none, which is said, where there can be none."""
    from wdjax.jobs.folder import cache_folder  # start-up: after JAX was told, see `_main`.

    try:
        folder = cache_folder()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            return folder
        reason = f"{str(there)!r} is no folder that can be written to"
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder.
        reason = str(error).rstrip(".")
    if say is not None:
        say(f"Without a cache of finished trainings: {reason}; XDG_CACHE_HOME gives another place.")
    return None


def _value_of(name: str, words: list[str]) -> str | None:
    """An option's value read ahead of the parser: what must be known before JAX starts."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == name:
            return value if equals else "".join(words[i + 1 : i + 2])
    return None


def _is_given(name: str, words: list[str]) -> bool:
    flag = f"--{name.replace('_', '-')}"
    return any(word == flag or word.startswith(f"{flag}=") for word in words)


def _devices_wanted(words: list[str]) -> int | None:
    """`--devices N` read ahead of the parser: a CPU must be split before JAX starts.

    Raises:
      ValueError: for more than JAX survives.
    """
    from wdjax.runners import check_num_devices  # start-up: imports JAX.

    try:
        number = int(_value_of("--devices", words) or "")
    except ValueError:
        return None  # The parser will say so.
    check_num_devices(number)
    return number if number > 0 else None


class _Parser(argparse.ArgumentParser):
    """argparse whose refusals are one sentence, for `main` to print."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # argparse takes -1e-3, -inf and -nan for options; as values they get their own refusal.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)
        self.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS, help=TRACEBACK
        )

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help, and all else that argparse prints."""
        del file
        if message:
            write_out(message.rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        from wdjax.checks import nearest  # start-up: likewise.

        misspelt = re.search(r"invalid choice: '(.*?)'", message)
        if misspelt and self._subparsers is not None:
            (commands,) = self._subparsers._group_actions
            hint = nearest(misspelt.group(1), commands.choices or ())
            message += f".{hint}" if hint else ""
        raise ValueError(f"{message} (see `{self.prog} --help`).")


def _parser(jobs: Any, shown: frozenset[str] = frozenset()) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wdjax",
        description="Weight decay for JAX: choose a strength, compare methods, audit, train.",
        epilog=f"example: {EXAMPLES['select']}\n\n{STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="job", required=True, metavar="COMMAND")
    for name, options in (
        ("select", jobs.SelectOptions),
        ("compare", jobs.CompareOptions),
        ("transfer", jobs.TransferOptions),
        ("train", jobs.TrainOptions),
        ("audit", jobs.AuditOptions),
    ):
        command = _add_command(commands, name, options, shown)
        if name in ("select", "compare", "transfer"):
            command.add_argument("--fresh", action="store_true", help=FRESH)
        elif name == "train":
            about = f"{', '.join(jobs.RECIPES)}: options beside it override"
            command.add_argument("--recipe", metavar="NAME", help=about, default=argparse.SUPPRESS)
    convert = _add_command(commands, "convert", jobs.ConvertOptions)
    convert.usage = "wdjax convert VALUE SOURCE TARGET [OPTION VALUE ...]"
    convert.add_argument(
        "value", metavar="VALUE", type=_number, help="the strength, C or timescale"
    )
    convert.add_argument("source", metavar="SOURCE", help=", ".join(jobs.CONVENTIONS))
    convert.add_argument("target", metavar="TARGET", help="one of the same")
    predict = commands.add_parser(
        "predict",
        help="Predict with the model of a finished run; one row an example, as .csv.",
        epilog=f"example: {EXAMPLES['predict']}",
        allow_abbrev=False,
    )
    predict.add_argument("run", metavar="RUN", help="the folder that select or train wrote")
    predict.add_argument(
        "data", metavar="DATA", help="FILE.csv, FILE.npz (array inputs), or a data set's name"
    )
    predict.add_argument("--model", metavar="FILE.py:make_model", help="again, if it was your own")
    predict.add_argument("--final", action="store_true", help="the model of `select --final all`")
    predict.add_argument("--out", metavar="FILE.csv", help="default: in the run's folder")
    predict.add_argument("--data-dir", metavar="FOLDER", help="where TFDS keeps its sets")
    report = commands.add_parser(
        "report",
        help="Draw a run's report.html again from its results.json.",
        epilog=f"example: {EXAMPLES['report']}",
        allow_abbrev=False,
    )
    report.add_argument("run", metavar="RUN", help="the folder that select or train wrote")
    return parser


def _add_command(
    commands: Any, name: str, options: type, shown: frozenset[str] = frozenset()
) -> argparse.ArgumentParser:
    purpose = (options.__doc__ or "").splitlines()[0]
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example: {EXAMPLES[name]}",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=98),
        usage=f"wdjax {name} [OPTION VALUE ...]",
    )
    kinds = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        argument = _argument(field, kinds[field.name])
        if any(field.metadata[when] and when not in shown for when in ("streamed", "of_table")):
            argument["help"] = argparse.SUPPRESS
        parser.add_argument(f"--{field.name.replace('_', '-')}", **argument)
    return parser


def _argument(field: Any, base: Any) -> dict[str, Any]:
    """The argparse form of an options field: type, number of values, choices, help."""
    if isinstance(base, types.UnionType):
        (base,) = (kind for kind in typing.get_args(base) if kind is not type(None))
    text, choices = field.metadata["help"], field.metadata["choices"]
    if base is bool:
        return {"action": "store_true", "default": field.default, "help": text}
    several = typing.get_origin(base) is tuple
    base = typing.get_args(base)[0] if several else base
    known = field.default not in (None, "") and "default" not in text
    shown = " ".join(map(str, field.default or ())) if several and known else field.default
    words = [", ".join(choices), text]
    default = f" (default {shown})" if known else ""
    argument = {
        "default": field.default,
        "type": {float: _number, int: _integer, str: str}[base],
        # argparse formats it with `%`: "10 % hold-out" would end the help in a TypeError.
        "help": ("; ".join(filter(None, words)) + default).replace("%", "%%"),
        "metavar": {float: "X", int: "N", str: "NAME"}[base],
    }
    if several:
        nargs = "*" if field.metadata["may_be_empty"] else "+"
        argument |= {"nargs": nargs, "action": _Tuple}
    if field.metadata["alone"] is not None:
        argument |= {"nargs": "?", "const": field.metadata["alone"]}
    return argument


class _Tuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values or ()))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number, such as 0.1 or 1e-3; got {text!r}"
        ) from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}") from None


if __name__ == "__main__":
    sys.exit(command())
