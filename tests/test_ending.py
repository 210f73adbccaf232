"""How the command ends when something fails: a sentence and a status, or a bug that says it is."""

import json
import pathlib
import sys
import types

import jax
import pytest

import wdjax
from wdjax import jobs
from wdjax.checkpoint import CheckpointError
from wdjax.cli import main
from wdjax.ending import ending_of
from wdjax.jobs import NonFiniteError
from wdjax.printing import printable, write_error, write_out
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
