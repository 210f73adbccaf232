"""The one writer of files: whole or not there, and known by its SHA-256."""

import errno
import os

import pytest

from wdjax.writing import (
    DamagedFileError,
    WriteError,
    remove_partial,
    sealed,
    sha256_of,
    unsealed,
    write_whole,
)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("content", [b"new", "new", lambda file: file.write(b"new")])
def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path, content):
    path = tmp_path / "made" / "it.txt"
    for _ in range(2):
        write_whole(path, content)
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["it.txt"]


def fails(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there_and_says_why(tmp_path, monkeypatch, call):
    path = tmp_path / "it.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, fails(errno.ENOSPC))
    with pytest.raises(WriteError, match=r"'.*it\.txt' could not be written: No space left.*stays"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["it.txt"]


def test_what_interrupts_a_write_leaves_nothing_beside(tmp_path):
    def stop(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "it.txt", stop)
    assert names(tmp_path) == []


def test_the_longest_name_that_the_system_takes_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write_whole(path, "new")
    with pytest.raises(WriteError, match="File name too long"):
        write_whole(tmp_path / ("x" * 256), "new")
    assert names(tmp_path) == [path.name]


def test_what_a_killed_writer_left_is_taken_away(tmp_path):
    (tmp_path / ".wdjax-0123").write_text("half")
    (tmp_path / "mine.txt").write_text("whole")
    remove_partial(tmp_path)
    assert names(tmp_path) == ["mine.txt"]


def test_a_seal_is_of_every_fact(tmp_path):
    facts = {"b": [1.5, None], "a": {"x": "é"}}
    assert unsealed(sealed(sealed(facts)), "it") == facts
    for changed in ({"b": [1.5, 0], "a": {"x": "é"}}, {"b": [1.5, None]}, facts | {"c": 1}):
        with pytest.raises(DamagedFileError, match="'it' is not what was written"):
            unsealed(changed | {"sha256": sealed(facts)["sha256"]}, "it")
    with pytest.raises(DamagedFileError, match="carries no SHA-256"):
        unsealed(facts, "it")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "it").write_bytes(b"abc")
    assert sha256_of(tmp_path / "it").startswith("ba7816bf8f01cfea")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(path, "new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert path.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("wdjax.writing.PIPE_SECONDS", 0.1)
    os.mkfifo(path := tmp_path / "pipe.csv")
    with pytest.raises(WriteError, match="pipe.csv' could not be written: it is a pipe that nobo"):
        write_whole(path, "text")
    assert path.is_fifo()
