"""How the command ends when something fails: a sentence and a status, or a bug that says it is."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
import warnings

import jax
import pytest

import wdjax
from wdjax import cli, jobs
from wdjax.checkpoint import CheckpointError
from wdjax.cli import main
from wdjax.ending import ending_of
from wdjax.jobs import NonFiniteError
from wdjax.printing import printable, write_error, write_out
from wdjax.screen import Screen
from wdjax.selection import Progress
from wdjax.writing import DamagedFileError, WriteError

NO_SUCH = FileNotFoundError(2, "No such file or directory", "mine.csv")


def failing(monkeypatch, function):
    """`main` of a command whose job is `function`."""
    monkeypatch.setattr(jobs, "run_report", function)
    return lambda *words: main(["report", "run", *words])


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (NO_SUCH, 1, "'mine.csv': No such file or directory; check the path."),
        (PermissionError(13, "Permission denied", "a"), 1, "'a': Permission denied; check who"),
        (IsADirectoryError(21, "Is a directory", "runs"), 1, "give a file in place of a folder"),
        (NotADirectoryError(20, "Not a directory", "x"), 1, "give a folder in place of a file"),
        (OSError(36, "File name too long", "n" * 9), 1, "give a shorter name"),
        (OSError(18, "Cross-device link", "a", None, "b"), 1, "'a' to 'b': Cross-device link."),
        (WriteError(28, "No space left on device", "r.json"), 1, "'r.json' could not be written"),
        (DamagedFileError("'r.json' is not what was written."), 1, "not what was written"),
        (CheckpointError("step_3 could not be written."), 1, "step_3 could not"),
        (NonFiniteError("the loss is not finite."), 1, "not finite"),
        (ImportError("the report needs matplotlib: pip install it."), 1, "pip install"),
        (MemoryError("Unable to allocate 9. GiB"), 1, "memory ran out (Unable to allocate 9. GiB)"),
        (MemoryError(), 1, "memory ran out; take fewer devices"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying.\nmore"),
            1,
            "memory ran out (RESOURCE_EXHAUSTED: Out of memory while trying)",
        ),
        (
            RuntimeError("Unable to initialize backend 'tpu': none is here\nmore"),
            1,
            "Unable to initialize backend 'tpu': none is here; see JAX_PLATFORMS.",
        ),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C."),
    ],
)
def test_what_is_foreseen_ends_in_one_sentence(error, status, words, monkeypatch, capfd):
    def fails(run):
        raise error

    assert failing(monkeypatch, fails)() == status
    printed, told = capfd.readouterr()
    assert printed == "" and told.startswith("wdjax: ") and words in told
    assert len(told.splitlines()) == 1 and "Traceback" not in told


@pytest.mark.parametrize(
    "fails",
    [
        lambda run: {}["key"],
        lambda run: int("x"),
        lambda run: json.loads("{"),
        lambda run: jax.numpy.ones(2) + jax.numpy.ones(3),
        lambda run: (_ for _ in ()).throw(TypeError("of the wrong kind")),
    ],
)
def test_anything_else_keeps_its_traceback_and_says_that_it_is_a_bug(fails, monkeypatch, capfd):
    assert failing(monkeypatch, fails)() == 1
    _, told = capfd.readouterr()
    assert told.startswith("Traceback (most recent call last)")
    assert told.splitlines()[-1].startswith("wdjax: this is a bug of wdjax")


@pytest.mark.parametrize("before", [True, False])
def test_traceback_shows_where_a_refusal_came_from(before, capfd):
    words = ["report", "nowhere"]
    assert main(["--traceback", *words] if before else [*words, "--traceback"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("Traceback") and "holds no results.json" in told.splitlines()[-1]
    assert main(words) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_value_error_is_a_refusal_only_where_the_package_raised_it():
    """By a statement of its own: what a built-in raises in one of its lines is a bug."""
    with pytest.raises(ValueError) as refused:
        wdjax.l2_penalty(-1.0)
    ending = ending_of(refused.value)
    assert ending is not None and ending.status == 2 and "must be finite and >= 0" in ending[0]
    with pytest.raises(ValueError) as foreign:
        pathlib.Path("a\0b").read_bytes()
    assert ending_of(foreign.value) is None


@pytest.mark.parametrize("raised", ["TypeError('no')", "SystemExit(7)", "ValueError('no')"])
def test_what_a_users_own_file_raises_is_told_with_its_line(raised, monkeypatch, capfd):
    module = types.ModuleType("wdjax_own_mine")
    code = compile(f"def make_model(n):\n  raise {raised}\n", "mine.py", "exec")
    exec(code, vars(module))
    assert failing(monkeypatch, lambda run: module.make_model(3))() == 2
    told = capfd.readouterr().err
    assert told.startswith("wdjax: 'mine.py', line 2 in make_model: ")
    assert raised[:9] in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bell\x07 back\x08 return\r", "bell\\x07 back\\x08 return\\x0d"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("a\u2028b\udcff", "a\\u2028b\\udcff"),
        ("a table:\n\tits rows", "a table:\n\tits rows"),
        ("Grüße, 日本, λ ± 0.1", "Grüße, 日本, λ ± 0.1"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text, shown, capfd):
    assert printable(text) == shown
    write_out(text)
    write_error(text)
    assert capfd.readouterr() == (f"{shown}\n", f"{shown}\n")


def test_on_a_terminal_of_ascii_other_letters_are_escaped(tmp_path, monkeypatch):
    path = tmp_path / "out"
    with open(path, "w", encoding="ascii") as ascii_only, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", ascii_only)
        write_out("λ = 0.1 ± 0.2")
    assert path.read_text() == "\\u03bb = 0.1 \\xb1 0.2\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "is_bug"), [(ImportError("it needs matplotlib"), False), (KeyError("k"), True)]
)
def test_what_fails_in_a_thread_is_told_alike(error, is_bug, monkeypatch, capfd):
    def fails():
        raise error

    monkeypatch.setattr(threading, "excepthook", cli._end_of_thread)
    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    told = capfd.readouterr().err
    assert told.startswith("Traceback") == is_bug and ("bug of wdjax" in told) == is_bug
    assert is_bug or told == "wdjax: it needs matplotlib\n"


def test_a_warning_shows_no_line_of_code(monkeypatch, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", cli._show_warning)
        warnings.warn("\x1b[1mslow\nindeed", stacklevel=1)
    assert capfd.readouterr().err == "wdjax: warning: \\x1b[1mslow indeed\n"


LONG = "n" * 300


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # Integers that no array holds, by option.
        *(
            (f"{job} --{name} {2**31}", [f"`{name.replace('-', '_')}` must be at most 2147483647"])
            for job, name in (
                ("select", "epochs"),
                ("select", "seeds"),
                ("select", "folds"),
                ("select", "batch-size"),
                ("select", "length"),
                ("train", "seeds"),
                ("train", "save-every"),
                ("train", "evaluate-every"),
                ("train", "patience"),
                ("train", "micro-batches"),
                ("compare", "seeds"),
                ("convert 0.1 keras_l2 torch_adamw", "batch-size"),
            )
        ),
        (f"select --seeds {10**60}", ["`seeds` must be at most", "a number of 61 digits"]),
        (f"select --epochs -{2**40}", ["`epochs` must be at least -2147483647"]),
        (f"select --seed {2**32}", ["`seed` must be at most 4294967295, got seed=4294967296"]),
        ("convert 0.1 keras_l2 torch_adamw --num-steps 999999999", ["at most 100000000"]),
        ("train --hang-after 1e300", ["`hang_after` must be at most 1000000000", "1e+300"]),
        ("train --learning-rate 1e300", ["`learning_rate` must be at most 3.40282e+38"]),
        ("select --strengths 0 1e39", ["`strengths` must be at most 3.40282e+38, got", "1e+39"]),
        ("train --example-slope -1e300", ["`example_slope` must be at least -3.40282e+38"]),
        # What is no number.
        ("select --devices ²", ["--devices", "must be a whole number; got '²'"]),
        ("select --devices 1e3", ["--devices", "must be a whole number; got '1e3'"]),
        ("select --epochs ''", ["--epochs", "must be a whole number; got ''"]),
        ("train --example-slope=--", ["--example-slope", "`--` is no value"]),
        ("train --example-slope --", ["--example-slope", "expected one argument"]),
        # Devices and processes.
        ("select --devices 100000", ["`devices` must be at most", "4 for each core", "=100000"]),
        ("train --devices=99999999999", ["`devices` must be at most", "got devices=99999999999"]),
        *(
            (f"train --strength 0 --stream --distributed {where}", ["`distributed` must", wrong])
            for where, wrong in (
                ("127.0.0.1:abc,1,0", "a port from 1 to 65535; got 'abc'"),
                ("127.0.0.1:0,1,0", "a port from 1 to 65535; got '0'"),
                ("127.0.0.1:65536,1,0", "a port from 1 to 65535; got '65536'"),
                ("127.0.0.1:²,1,0", "a port from 1 to 65535"),
                (":1234,1,0", "the host ''"),
                ("'a b:1234,1,0'", "the host 'a b'"),
                ("127.0.0.1:1234", "got 0 numbers"),
                ("127.0.0.1:1234,1", "got 1 numbers"),
                ("127.0.0.1:1234,0,0", "a count from 1 to 65536; got '0'"),
                ("127.0.0.1:1234,²,0", "a count from 1 to 65536"),
                ("127.0.0.1:1234,99999999999999,0", "a count from 1 to 65536"),
                ("127.0.0.1:1234,2,2", "an index from 0 to 1; got '2'"),
                ("127.0.0.1:1234,2,-1", "an index from 0 to 1; got '-1'"),
            )
        ),
        # Given twice.
        ("train --epochs 3 --epochs 4", ["argument --epochs is given more than once"]),
        ("select --strengths 0 --strengths=1", ["argument --strengths is given more than once"]),
        ("train --overwrite --overwrite", ["argument --overwrite is given more than once"]),
        # Texts that are no names.
        *(
            (f"train --{name} ''", [f"`{name.replace('-', '_')}` must not be empty"])
            for name in ("out", "name", "data", "data-dir", "model", "loss", "resume")
        ),
        ("report ''", ["`run` must not be empty"]),
        ("predict run ''", ["`data` must not be empty"]),
        ("predict run new.csv --out ''", ["`out` must not be empty"]),
        ("report 'a\0b'", ["`run` must not hold a NUL character, got 'a\\x00b'"]),
        ("train --out 'a\0b'", ["`out` must not hold a NUL character"]),
        ("train --data 'a\udcff.csv'", ["`data` must be UTF-8, got 'a\\udcff.csv'; rename"]),
        (f"train --out {LONG}", ["`out` has a name of 300 bytes", "takes 255", "shorter"]),
        (f"train --data runs/{LONG}.csv", ["`data` has a name of 304 bytes"]),
        (f"train --model {LONG}.py:make_model", ["`model` has a name of 303 bytes"]),
        (f"report {LONG}", ["`run` has a name of 300 bytes"]),
    ],
)
def test_what_was_asked_and_cannot_be_done_is_said_with_option_value_and_bound(
    words, expected, capfd, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(words)) == 2
    printed, told = capfd.readouterr()
    assert printed == "" and told.startswith("wdjax: ") and len(told.splitlines()) == 1
    for part in expected:
        assert part in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", ["no home", "a file", "a name too long"])
def test_without_a_place_for_a_cache_it_works_and_says_so(reason, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    folders = {"a file": tmp_path / "file", "a name too long": tmp_path / LONG}

    def cache_folder():
        if reason == "no home":
            raise RuntimeError("Could not determine home directory.")
        return folders[reason] / "wdjax"

    monkeypatch.setattr("wdjax.jobs.folder.cache_folder", cache_folder)
    said = []
    assert cli._cache_folder(say=said.append) is None
    assert said[0].startswith("Without a cache") and "XDG_CACHE_HOME" in said[0]
    monkeypatch.setattr("wdjax.jobs.folder.cache_folder", lambda: tmp_path / "new/wdjax")
    assert cli._cache_folder() == tmp_path / "new/wdjax"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_on_a_full_disk_is_said_and_ends_with_1(monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", open("/dev/full", "w", buffering=1))
        assert main(["convert", "0.1", "keras_l2", "torch_adamw"]) == 1
        assert main(["--help"]) == 1
        with pytest.raises(OSError):
            sys.stdout.close()
    _, told = capfd.readouterr()
    line = "wdjax: the standard output could not be written: No space left on device; give it"
    assert [row.startswith(line) for row in told.splitlines()] == [True, True]


def test_a_closed_pipe_ends_the_command_without_a_word(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    closed = os.fdopen(writer, "w")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", closed)
            assert main(["convert", "0.1", "keras_l2", "torch_adamw"]) == 1
            patch.setattr(sys, "stderr", closed)
            assert main(["report", "nowhere"]) == 2
            with Screen() as screen:
                screen.say("Training goes on.")
                screen.say("And on.")
    finally:
        with contextlib.suppress(BrokenPipeError):
            closed.close()
    assert capfd.readouterr() == ("", "")


def test_progress_in_names_that_steer_a_terminal_is_escaped(capfd):
    screen = Screen()
    screen.say("\x1b[2J[bold]data[/bold]")
    screen.show("\x1b]0;method\x07", Progress("compile", 0, 3, 0.0, None, None))
    told = capfd.readouterr().err
    assert told.splitlines()[0] == "\\x1b[2J[bold]data[/bold]"
    assert "\\x1b]0;method\\x07: compiling" in told and "\x1b" not in told


# As a process: what Python itself says at its exit.

CONVERT = "convert 0.1 keras_l2 torch_adamw"


def shell(line, **more):
    """What a line of the shell ends with, in which `wdjax` is the command."""
    command = f"{shlex.quote(sys.executable)} -m wdjax.cli"
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("JAX_", "PYTEST_"))}
    return subprocess.run(
        ["bash", "-c", line.replace("wdjax", command)],
        env=kept | {"PYTHONPATH": str(pathlib.Path(wdjax.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        (f"wdjax {CONVERT} > /dev/full", 1, "wdjax: the standard output could not be written: "),
        (f"wdjax {CONVERT} | true; exit ${{PIPESTATUS[0]}}", 1, ""),
        pytest.param(f"wdjax {CONVERT} >&-", 0, "", marks=pytest.mark.slow),
        pytest.param("wdjax report nowhere 2>&-", 2, "", marks=pytest.mark.slow),
        pytest.param(
            f"unset HOME XDG_CACHE_HOME; wdjax {CONVERT} > /dev/null", 0, "", marks=pytest.mark.slow
        ),
    ],
)
def test_at_the_exit_of_the_process_nothing_more_is_said(line, status, told):
    done = shell(line)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith(told) and len(done.stderr.splitlines()) == bool(told)


LISTENING = """
import gc, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from wdjax.cli import command
assert "jax" not in sys.modules
gc.freeze = lambda: print("listening", flush=True)  # The next thing it does.
sys.exit(command())
"""


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.8])
def test_ctrl_c_while_importing_ends_in_one_line(seconds, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *"select --data digits --epochs 9000".split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(wdjax.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "listening\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, told) == (130, "wdjax: stopped by Ctrl-C.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_public_name_is_imported_when_it_is_asked_for_and_is_the_one_that_editors_see():
    """What stands under `TYPE_CHECKING` in `__init__.py`, and what is found at run time."""
    text = pathlib.Path(wdjax.__file__).read_text(encoding="utf-8")
    seen = re.findall(r"^ +from (wdjax\S*) import (\w+) as (\w+)$", text, re.MULTILINE)
    assert all(name == same for _, name, same in seen)
    assert {name: home for home, name, _ in seen} == wdjax._HOMES and len(seen) > 50
    assert wdjax.losses.cross_entropy is wdjax.cross_entropy
    with pytest.raises(AttributeError, match="no attribute 'losess'"):
        _ = wdjax.losess
