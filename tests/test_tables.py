"""What prints: digits, widths, escapes, strict JSON."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wdjax.tables import Estimate, Table, format_number, to_json, to_plain


@pytest.mark.parametrize(
    "x, text",
    [
        (0.09712345, "0.09712"),
        (3.1622776e-5, "3.162e-5"),
        (1e-4, "0.0001"),
        (0.99996, "1"),
        (12345.6, "12346"),
        (1e6, "1e6"),
        (-2.5, "-2.5"),
        (0.0, "0"),
        (1437, "1437"),
        (123456789, "123456789"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "diverged"),
        (None, "-"),
        (True, "yes"),
        (np.float32(0.1), "0.1"),
        (np.int64(7), "7"),
    ],
)
def test_a_number_shows_four_significant_digits_and_a_whole_one_all(x, text):
    assert format_number(x) == text


def test_a_jax_scalar_prints_like_a_number():
    assert format_number(jnp.float32(0.25)) == "0.25"


@pytest.mark.parametrize(
    "mean, error, text",
    [
        (0.09712, 0.00231, "0.0971 +- 0.0023"),
        (0.09712, 0.00999, "0.097 +- 0.010"),
        (2.29027, 0.00081, "2.2903 +- 0.0008"),
        (1234.0, 120.0, "1230 +- 120"),
        (0.001, 0.2, "0.00 +- 0.20"),
        (-0.001, 0.2, "0.00 +- 0.20"),
        (1e-9, 3e-11, "(1.000 +- 0.030)e-9"),
        (5e8, 1e6, "(5.000 +- 0.010)e8"),
        (0.5, 1e-12, "0.5 +- 1e-12"),
        (0.5, 0.0, "0.5 +- 0"),
        (0.5, math.nan, "0.5"),
        (0.5, None, "0.5"),
        (math.nan, 0.1, "diverged"),
        (math.nan, math.nan, "diverged"),
    ],
)
def test_an_estimate_shows_two_digits_of_its_error_and_as_many_decimals_of_its_mean(
    mean, error, text
):
    assert str(Estimate(mean, error)) == text


def test_a_table_aligns_numbers_right_and_words_left_and_marks_a_row():
    table = Table(
        ("path", "rate", "loss"),
        (("a", 0.5, Estimate(0.1, 0.02)), ("bias", None, Estimate(10.0, 0.02))),
        marked=1,
        title="Title.",
        note="Note.",
    )
    assert str(table) == (
        "Title.\n\n"
        "   path  rate             loss\n"
        "-  ----  ----  ---------------\n"
        "   a      0.5   0.100 +- 0.020\n"
        ">  bias     -  10.000 +- 0.020\n\n"
        "Note."
    )


def test_a_wide_table_cuts_words_in_the_middle_but_never_a_number_and_fits_100_columns():
    path = "decoder/" * 20 + "kernel"
    numbers = tuple(Estimate(1.0 + i, 0.0123) for i in range(9))
    text = str(Table(("path", *(f"column_{i}" for i in range(9))), ((path, *numbers),), marked=0))
    assert max(map(len, text.splitlines())) <= 100
    assert "decoder/" in text and "/kernel" in text and path not in text
    for estimate in numbers:
        assert str(estimate) in text


def test_a_newline_in_a_cell_does_not_break_the_row():
    text = str(Table(("word",), (("two\nlines\x1b[31m",),)))
    assert text.splitlines()[-1] == "two lines [31m"


def test_html_escapes_every_word_and_marks_the_chosen_row():
    hostile = "<script>alert('x')</script>"
    table = Table((hostile,), ((hostile,), ("b",)), marked=1, title=hostile, note=hostile)
    page = table._repr_html_()
    assert "<script" not in page and page.count("&lt;script&gt;") == 4
    assert page.count('class="chosen"') == 1
    assert page.index('class="chosen"') > page.rindex("<tr", 0, page.index("chosen"))
    assert ">b</td>" in page[page.index('class="chosen"') :]


def test_a_table_becomes_strict_json():
    table = Table(("x", "loss"), ((1, Estimate(0.5, math.nan)), (2, None)), marked=0)
    assert json.loads(to_json(table)) == {
        "headers": ["x", "loss"],
        "rows": [[1, {"mean": 0.5, "standard_error": None}], [2, None]],
        "marked": 0,
        "title": "",
        "note": "",
    }
    assert table.to_dict() == json.loads(to_json(table))


def test_json_has_no_nan_and_arrays_become_lists_and_keys_strings():
    @dataclasses.dataclass(frozen=True)
    class Config:
        width: int
        path: pathlib.Path

    obj = {
        1: [math.nan, math.inf, -math.inf, 0.5],
        "numpy": np.array([[1, 2]]),
        "float32": np.float32(0.5),
        "nan": np.array([np.nan, 1.0], np.float32),
        "bool": np.bool_(True),
        "jax": jnp.ones(2, jnp.bfloat16),
        "config": Config(3, pathlib.PurePosixPath("a/b")),
        "estimate": Estimate(1.0, 2.0),
        "names": np.array(["a", "b"]),
    }
    assert json.loads(to_json(obj)) == {
        "1": [None, None, None, 0.5],
        "numpy": [[1, 2]],
        "float32": 0.5,
        "nan": [None, 1.0],
        "bool": True,
        "jax": [1.0, 1.0],
        "config": {"width": 3, "path": "a/b"},
        "estimate": {"mean": 1.0, "standard_error": 2.0},
        "names": ["a", "b"],
    }
    assert type(to_plain(np.bool_(True))) is bool and type(to_plain(np.float64(2))) is float


@pytest.mark.parametrize("obj", [lambda: 0, {"deep": [object()]}, 1j, np.array([1j])])
def test_json_refuses_what_it_cannot_say(obj):
    with pytest.raises(TypeError, match="pass numbers, strings, arrays"):
        to_json(obj)


def test_json_refuses_a_random_key():
    with pytest.raises(TypeError, match="cannot write"):
        to_json({"key": jax.random.key(0)})


def test_json_refuses_two_keys_that_become_one():
    with pytest.raises(ValueError, match="become one string"):
        to_json({1: "a", "1": "b"})
