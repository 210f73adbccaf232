"""Cases that failed once, by the seed that drew them or by what they were: plain tests now."""

import json
import pathlib
import shlex

import pytest

from wdjax.cli import main

OWN = """
import wdjax
def rate(strength, learning_rate, multiplier, peak):
    return 0.1 * strength * learning_rate
class E(BaseException): pass
def fails(num_outputs):
    raise E("x")
"""
STREAM = "train --stream --data iris --batch-size 16 --epochs 1 --strength 0.1 --out out"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("my.py").write_text(OWN)

    def run(words):
        return main(shlex.split(words)), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "decay, told",
    [
        ("my.py:nothing", "`decay` 'my.py:nothing': 'my.py' defines no function 'nothing'"),
        ("other.csv", "`decay` must be one of"),
        ("'new\nline'", "`decay` must be one of"),
    ],
)
def test_a_decay_that_is_none_is_refused_by_a_streamed_run_too(command, decay, told):
    status, err = command(f"{STREAM} --decay={decay}")
    assert status == 2 and told in err and err.count("\n") == 1, err
    assert not pathlib.Path("out").exists()


def test_a_streamed_run_takes_a_decay_of_ones_own(command):
    status, err = command(f"{STREAM} --decay my.py:rate")
    assert status == 0, err


def test_what_a_users_file_raises_need_be_no_exception_of_pythons(command):
    status, err = command("audit --data iris --strength 0.1 --model my.py:fails")
    assert status == 2 and "'my.py:fails'" in err and "line 7" in err and "E: x" in err, err


def test_a_text_is_nothing_for_the_rnn_and_that_is_said_by_its_name(command):
    status, err = command("train --data stdlib --length 8 --model rnn --strength 0 --epochs 1")
    assert status == 2 and "rnn" in err and "text" in err, err


def test_of_a_run_that_goes_on_the_folder_is_named_whatever_its_files_say(command):
    """Its options are known to be out of range where they are made, or only where they are used."""
    assert command(f"{STREAM} --save-every 1")[0] == 0
    config = pathlib.Path("out/config.json")
    facts = json.loads(config.read_text())
    facts.pop("sha256")
    for name, value in {"epochs": -1, "label_noise": 7.0}.items():
        config.write_text(json.dumps({**facts, name: value}))
        with pytest.warns(RuntimeWarning, match="carries no SHA-256"):
            status, err = command("train --resume out")
        said = f"wdjax: `resume` 'out': `{name}` must be"
        assert status == 2 and err.splitlines()[-1].startswith(said), err
