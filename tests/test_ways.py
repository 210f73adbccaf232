"""The ways of choosing by name: the cheapest that may be believed, and what it cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.selection import WAYS, Problem, Stepwise
from wdjax.selection.search import Cost, Search
from wdjax.selection.ways import Way

RNG = np.random.default_rng(0)
DATA = wdjax.Batch(*(RNG.normal(size=s).astype("float32") for s in ((12, 2), 12)), np.ones(12))
FOLDS = wdjax.kfold(jax.random.key(0), 12, num_folds=2)
GRID = wdjax.grid_product(strength=np.geomspace(0.01, 10.0, 20))


def bowl(h, train, valid, key):
    """Least at strength 1, but for noise of the fold."""
    loss = (jnp.log(h["strength"]) ** 2 + 1) * jnp.ones(len(valid.targets))
    return {"loss": loss + 0.01 * valid.targets}


linear = wdjax.Model(
    init=lambda key, x: (jnp.zeros(x.shape[-1]), {}),
    apply=lambda w, state, x, *, key, train: (x @ w, state),
)
score = wdjax.make_score(linear, loss=wdjax.squared_error)


def make_run(inputs, num_steps):
    make_tx = lambda h: optax.chain(optax.sgd(0.1), wdjax.decoupled_decay(h["strength"], 0.1))
    return wdjax.make_run(linear, wdjax.squared_error, make_tx=make_tx)


def problem(**more):
    given = {"grid": GRID, "folds": FOLDS} | more
    return Problem(bowl, data=DATA, key=jax.random.key(1), **given)


def answers(monkeypatch, **found):
    """Ways that answer, or refuse, without training."""
    grid = Search(*WAYS["grid"].search(problem())[:2], Cost(40.0, 4.0, 9), (), "All.")
    asked = []
    for name, told in found.items():

        def search(problem, name=name, told=told):
            asked.append(name)
            if isinstance(told, str):
                raise ValueError(told)
            cost, doubts, choice = told
            return Search(grid.scores, grid.choice if choice else None, cost, doubts, "Done.")

        cost = lambda problem, name=name: COSTS[name]
        monkeypatch.setitem(WAYS, name, Way(search, lambda problem: "", "", cost))
    return asked


COSTS = {"slopes": 20.0, "halving": 9.0}
DOUBT = "Do not believe this: the rows disagree."


def auto(**more):
    return WAYS["auto"].search(problem(**more))


def test_the_cheapest_is_asked_first_and_believed(monkeypatch):
    asked = answers(
        monkeypatch,
        slopes=(Cost(15.0, 1.0, 5), (), True),
        halving=(Cost(8.0, 2.0, 7), (), True),
    )
    found = auto()
    assert asked == ["halving"] and found.cost == Cost(8.0, 2.0, 7) and found.reason == "Done."


def test_what_is_not_believed_is_left_for_the_next_and_counted(monkeypatch):
    asked = answers(
        monkeypatch,
        slopes=(Cost(15.0, 1.0, None), (), True),
        halving=(Cost(8.0, 2.0, 7), (DOUBT,), True),
    )
    found = auto()
    assert asked == ["halving", "slopes"] and found.cost == Cost(23.0, 3.0, 7)
    assert found.believed and found.reason == "Not by halving: the rows disagree. Done."


def test_where_none_is_believed_it_is_the_grid(monkeypatch):
    asked = answers(monkeypatch, slopes="`data` is wrong.", halving=(Cost(8.0, 2.0, 7), (), False))
    found = auto()
    assert asked == ["halving", "slopes"] and found.believed
    assert found.cost.trainings == 48 and found.scores.of("loss").shape[0] == 20
    assert "Not by halving: every row diverged. Not by slopes: `data` is wrong." in found.reason


def test_what_may_cost_more_than_the_grid_or_refuses_or_is_doubted_before_is_not_asked(monkeypatch):
    few = wdjax.grid_product(strength=[0.1, 1.0, 10.0])
    assert WAYS["auto"].plan(problem(grid=few)) == "6 trainings: 3 strengths x 2 folds x 1 seeds"
    # Without `stepwise` there is no halving; at a constant learning rate slopes are doubted.
    told = WAYS["auto"].plan(problem())
    assert told.startswith("by slopes (at most 26), up to the first that may be believed; else 40")
    assert WAYS["auto"].plan(problem(annealed=False)).startswith("40 trainings")
    assert auto(annealed=False).cost.trainings == 40


def test_real_searches_by_the_cheapest_agree_with_the_grid():
    found = auto()
    assert found.believed and found.cost.trainings < 40
    np.testing.assert_allclose(np.log(found.choice.hparams["strength"]), 0, atol=0.3)


@pytest.mark.parametrize("name", WAYS)
def test_no_way_costs_more_than_it_says(name):
    stepwise = Stepwise(make_run, score, num_epochs=10, batch_size=2)
    given = problem(stepwise=stepwise)
    assert WAYS[name].search(given).cost.trainings <= WAYS[name].trainings(given)
