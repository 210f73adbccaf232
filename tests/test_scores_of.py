"""`Scores.of`: what another search found, as plain numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wdjax.report.page import render_report
from wdjax.selection import HeldOut, Scores, choose, compare_scores, cross_validate, kfold
from wdjax.selection.grids import grid_product
from wdjax.types import Batch

GRID = {"strength": [0.0, 0.1, 1.0]}
LOSSES = [[1.5, 1.7, 1.6, 1.6], [0.5, 0.5, 0.6, 0.4], [0.6, 0.7, 0.5, 0.7]]


def test_lists_of_rows_and_folds_are_chosen_from_and_the_method_still_reads_one_score():
    scores = Scores.of({"loss": LOSSES}, GRID)
    np.testing.assert_array_equal(scores.of("loss"), np.array(LOSSES)[:, :, None])
    choice = choose(scores)
    assert (choice.hparams, choice.mean) == ({"strength": 0.1}, pytest.approx(0.5))
    assert choice.gain.verdict == "helps" and choice.gain.method == "folds"
    assert str(scores).count("+-") == 3 + 1  # a row each, and the note
    with pytest.raises(KeyError):
        scores.of("accuracy")


def test_scores_without_a_name_have_the_direction_they_are_told():
    assert choose(Scores.of(LOSSES, GRID)).index == 1
    scores = Scores.of(LOSSES, GRID, higher_is_better=True)
    assert scores.names == ["score"] and choose(scores).index == 0
    assert choose(Scores.of(**scores.to_dict())).index == 0


def test_scores_of_any_tree_come_back_from_their_plain_lists_and_null_is_a_diverged_run():
    values = {"loss": LOSSES, "valid": {"accuracy": np.ones((3, 4, 1)).tolist()}}
    values["loss"] = [*LOSSES[:2], [0.6, None, 0.5, 0.7]]
    scores = Scores.of(values, GRID, higher_is_better={"valid/accuracy": True})
    assert scores.names == ["loss", "valid/accuracy"]
    again = Scores.of(**scores.to_dict())
    jax.tree.map(np.testing.assert_array_equal, again.values, scores.values)
    assert again.higher_is_better == {"loss": False, "valid/accuracy": True}
    assert "1 of 3 rows diverged" in choose(again).reason
    assert choose(again, value="valid/accuracy").higher_is_better


def test_slopes_come_back_as_well_and_must_be_of_the_same_scores():
    slopes = {"strength": {"loss": (np.array(LOSSES) - 1).tolist()}}
    scores = Scores.of({"loss": LOSSES}, GRID, slopes=slopes)
    again = Scores.of(**scores.to_dict())
    np.testing.assert_array_equal(
        again.slopes["strength"]["loss"], scores.slopes["strength"]["loss"]
    )
    assert again.slopes["strength"]["loss"].shape == (3, 4, 1)
    with pytest.raises(ValueError, match="`slopes` must be one of strength; got 'rate'"):
        Scores.of(LOSSES, GRID, slopes={"rate": LOSSES})
    with pytest.raises(ValueError, match=r"of the same scores as `values`.*got .*\(2, 4, 1\)"):
        Scores.of(LOSSES, GRID, slopes={"strength": LOSSES[:2]})


def ridge(h, train, valid, key):
    gram = train.inputs.T @ train.inputs + h["strength"] * jnp.eye(3)
    w = jnp.linalg.solve(gram, train.inputs.T @ train.targets)
    return {"loss": (valid.targets - valid.inputs @ w) ** 2}


def test_single_examples_are_judged_as_those_of_cross_validation_are(key):
    """The numbers that `cross_validate` found, taken out and put in again: the same verdict."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3)).astype("float32")
    data = Batch(x, x[:, 0] + rng.normal(size=12).astype("float32"), np.arange(12) % 3 + 1.0)
    folds = kfold(key, 12, 3)
    found = cross_validate(ridge, grid_product(**GRID), data, folds, key=key, num_seeds=2)
    each = found.held_out.values["loss"].tolist()
    given = Scores.of({"loss": each}, found.grid, held_out=HeldOut.of(data, folds))
    np.testing.assert_allclose(given.values["loss"], found.values["loss"], rtol=1e-6)
    one, other = choose(found), choose(given)
    assert one.gain.method == other.gain.method == "examples"
    np.testing.assert_allclose(one.gain[:3], other.gain[:3], rtol=1e-5)
    assert (one.index, one.confident_set) == (other.index, other.confident_set)
    # Without weights each slot is an example of weight 1.
    np.testing.assert_allclose(
        Scores.of({"loss": each}, found.grid).values["loss"], np.mean(each, axis=-1)
    )
    again = Scores.of(found.values, found.grid, held_out=found.held_out)
    assert choose(again).gain == one.gain


def test_scores_of_two_searches_are_compared_and_drawn():
    worse = (np.array(LOSSES) + [0.3, 0.31, 0.29, 0.3]).tolist()
    rows = {"here": Scores.of({"loss": LOSSES[:2]}, {"strength": [0.0, 0.1]})}
    rows["elsewhere"] = Scores.of({"loss": worse[:2]}, {"strength": [0.0, 0.1], "rate": [1, 2]})
    found = compare_scores(rows)
    assert found.best == "here" and found.difference("elsewhere").mean == pytest.approx(0.3)
    scores = rows["here"]
    choice = choose(scores)
    results = {"kind": "select", "rule": "min", "choices": {"min": choice.to_dict()}}
    results |= {"grid": scores.to_dict()["grid"], "scores": scores.to_dict()["values"]}
    page = render_report(results | {"headline": choice.reason})
    assert "<svg" in page and "Lowest mean score, 0.5" in page


FOUR = np.ones((3, 2, 1, 5))
HELD_OUT = HeldOut({}, np.arange(10).reshape(2, 5), np.ones((2, 5)), None, np.full(2, 5))


@pytest.mark.parametrize(
    ("values", "grid", "more", "words"),
    [
        ({"loss": [[1, 2], [1]]}, GRID, {}, r"lists of equal lengths.*got lengths 2, 1\. Give NaN"),
        ({"loss": [1, 2, 3]}, GRID, {}, r"\[row, fold\], .*got shape \(3,\); one score a row is"),
        ({"loss": [["a", "b"]] * 3}, GRID, {}, "must hold numbers.*such as 'a'"),
        ({}, GRID, {}, "holds no score; give"),
        ({"loss": LOSSES, "a_loss": LOSSES[:2]}, GRID, {}, r"same rows.*a_loss \(2, 4, 1\)"),
        ({"loss": LOSSES}, {}, {}, "`grid` must be the numbers of each row by name"),
        ({"loss": LOSSES}, {"strength": [0, 1]}, {}, r"each of the 3 rows of .*got shape \(2,\)"),
        ({"loss": LOSSES}, {"rate": [1, np.inf, 2]}, {}, "must be finite, got inf in row 1"),
        ({"loss": LOSSES}, {"strength": [1, 0, -2]}, {}, "finite and >= 0, got -2 in row 2"),
        ({"f1": LOSSES}, GRID, {}, "more of 'f1' is better is not known; pass higher_is_better="),
        ({"f1": LOSSES}, GRID, {"higher_is_better": "max"}, "must be True or False, got 'max'"),
        ({"f1": LOSSES}, GRID, {"higher_is_better": {"f": True}}, "Did you mean 'f1'"),
        ({1: LOSSES}, GRID, {}, "must be named by text, got the name 1"),
        ({"loss": FOUR}, GRID, {"held_out": FOUR}, r"must be a HeldOut, such as HeldOut.of\(data"),
        (
            {"loss": FOUR[..., :4]},
            GRID,
            {"held_out": HELD_OUT},
            r"single examples of 'loss' must be .*\(3, 2, 1, 5\).*got \(3, 2, 1, 4\)",
        ),
        (
            {"loss": FOUR},
            GRID,
            {"held_out": HELD_OUT._replace(weights=np.array([[1.0] * 5, [0.0] * 5]))},
            "one above 0 in each fold; those of fold 1 are not",
        ),
    ],
)
def test_numbers_that_are_no_scores_are_refused_in_words(values, grid, more, words):
    with pytest.raises(ValueError, match=words):
        Scores.of(values, grid, **more)


def test_scores_that_cannot_be_paired_are_not_compared():
    one, fewer = Scores.of(LOSSES, GRID), Scores.of(np.array(LOSSES)[:, :3], GRID)
    with pytest.raises(ValueError, match=r"same folds and seeds.*one \(4, 1\) and of two \(3, 1\)"):
        compare_scores({"one": one, "two": fewer})
    other = HELD_OUT._replace(examples=HELD_OUT.examples[::-1])
    searches = {
        n: Scores.of({"loss": FOUR}, GRID, held_out=h) for n, h in (("a", HELD_OUT), ("b", other))
    }
    with pytest.raises(ValueError, match="same held-out examples; those of a and b are not"):
        compare_scores(searches)
