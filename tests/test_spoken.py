"""Spoken words: log-mel frames against NumPy written out, and what espeak-ng says, kept."""

import shutil

import numpy as np
import pytest

from wdjax.data import load_choose_and_test, load_data, spoken
from wdjax.writing import cache_folder

has_program = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Two voices, one speed and one pitch, in a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(spoken, "SPEEDS", (160,))
    monkeypatch.setattr(spoken, "PITCHES", (50,))
    monkeypatch.setattr(spoken, "VOICES", {"train": ("en-us+m3", "en-gb+f1"), "test": ("en-us",)})


def test_a_tone_lies_in_the_filter_of_its_frequency_for_as_long_as_it_sounds():
    seconds = np.arange(spoken.RATE // 2) / spoken.RATE
    tone = np.sin(2 * np.pi * 1000 * seconds)
    silence = np.zeros(spoken.RATE // 4)
    frames = spoken.log_mel(np.concatenate([silence, tone, silence]))
    # Triangle m rises to its corner m + 1 of 34 that are even in mel, from 60 to 8,000 Hz.
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    place = (mel(1000) - mel(60)) / (mel(8000) - mel(60)) * 33 - 1
    sounding = (len(tone) - spoken.WINDOW) // spoken.HOP + 1
    assert set(np.argmax(frames[: sounding - 1], axis=1)) == {round(place)}
    assert (frames[sounding + 1 :] == 0).all()
    assert frames.shape == (48, 32) and frames.dtype == np.float32
    assert frames.min() == 0 and frames.max() == pytest.approx(1, abs=1e-6)


def test_a_frame_is_its_formula_written_out():
    rng = np.random.default_rng(0)
    word = rng.normal(size=spoken.WINDOW + 2 * spoken.HOP) + 3.0  # No sample is quiet.
    word[[0, -1]] = 5.0
    seen = spoken.log_mel(word)
    n = np.arange(spoken.WINDOW)
    power = []
    for t in range(3):
        part = word[t * spoken.HOP :][: spoken.WINDOW]
        part = part * (0.5 - 0.5 * np.cos(2 * np.pi * n / (spoken.WINDOW - 1)))
        k = np.arange(spoken.WINDOW // 2 + 1)
        spectrum = np.exp(-2j * np.pi * np.outer(k, n) / spoken.WINDOW) @ part
        power.append((np.abs(spectrum) ** 2)[None] @ spoken.mel_filters())
    power = np.concatenate(power)
    expected = 1 + np.maximum(-1, 10 * np.log10(power / power.max()) / 80)
    np.testing.assert_allclose(seen[:3], expected, atol=1e-6)


def test_the_filters_are_triangles_that_add_up_to_one_between_their_ends():
    filters = spoken.mel_filters()
    frequencies = np.fft.rfftfreq(spoken.WINDOW, 1 / spoken.RATE)
    inside = (frequencies > 120) & (frequencies < 7000)
    np.testing.assert_allclose(filters[inside].sum(1), 1)
    assert (filters[frequencies > 8000] == 0).all() and (filters.max(0) > 0.5).all()


@has_program
def test_what_is_said_is_the_same_each_time_and_kept(few, monkeypatch):
    train, test = load_choose_and_test("spoken")
    assert (train.inputs.shape, test.inputs.shape) == ((20, 48, 32, 1), (10, 48, 32, 1))
    assert train.class_names == spoken.WORDS and train.kind == "image"
    np.testing.assert_array_equal(test.targets, np.arange(10))
    assert "synthetic" in train.about
    kept = sorted((cache_folder() / "spoken").iterdir())
    assert len(kept) == 2
    kept[1].write_bytes(kept[1].read_bytes()[:-30])  # Damaged: said again.
    again = load_data("spoken@train")
    np.testing.assert_array_equal(again.inputs, train.inputs)

    def said(*_):
        raise AssertionError("said again")

    monkeypatch.setattr(spoken, "say_word", said)
    np.testing.assert_array_equal(load_data("spoken").inputs, train.inputs)


def test_no_voice_is_in_both_parts():
    accents, variants = (
        {part: {voice.split("+")[i] for voice in spoken.VOICES[part]} for part in spoken.VOICES}
        for i in (0, 1)
    )
    assert not variants["train"] & variants["test"] and accents["test"] - accents["train"]


def test_without_the_program_it_is_refused_in_words(few, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImportError, match="espeak-ng, which is not installed: apt install espeak"):
        load_data("spoken")
    with pytest.raises(ValueError, match="does not fit the data set 'spoken'"):
        load_data("spoken", loss="squared_error")


@pytest.mark.parametrize("script", ["exit 1", "printf RIFF", "exec printf x"])
def test_a_program_that_says_nothing_is_refused(script, few, tmp_path, monkeypatch):
    program = tmp_path / "espeak-ng"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ValueError, match="espeak-ng did not say 'yes' as en-us"):
        load_data("spoken")
