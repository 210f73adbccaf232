"""`wdjax select --each-part`: which parts, what is refused, what is told and where."""

import jax
import numpy as np
import pytest
from synthetic_results import SMALL, synthetic_results
from test_report import read

import wdjax
from wdjax import jobs
from wdjax.cli import _parser
from wdjax.data.dataset import to_batch
from wdjax.diagnostics import AuditReport
from wdjax.diagnostics.description import leaf_decay
from wdjax.jobs.audit import _with_z
from wdjax.jobs.by_part import each_part_of, tell_each_part
from wdjax.jobs.candidates import strength_grid
from wdjax.jobs.setup import draw_folds, prepare
from wdjax.jobs.told_parts import each_part_table, z_of_leaves
from wdjax.models import make_mlp
from wdjax.parts import leaves_of_parts, matrices_only, resolve_parts, times_own
from wdjax.recipe import Recipe, recipe_fit_and_score
from wdjax.selection import Cost, Problem, Search

PARAMS = {
    "hidden": {"kernel": np.ones((3, 2)), "bias": np.zeros(2)},
    "head": {"kernel": np.ones((2, 2)), "bias": np.zeros(2)},
}


def test_a_part_of_its_own_multiplies_what_each_of_its_leaves_has_and_the_first_match_wins():
    parts = {"head/*": 0.5, "*/kernel": 1.0, "*": 0.0}
    own = {"role:head": 3.0, "head/*": 7.0, "hidden/kernel": 2.0}
    assert resolve_parts(times_own(parts, own), PARAMS) == {
        "hidden": {"kernel": 2.0, "bias": 0.0},
        "head": {"kernel": 1.5, "bias": 3.5},
    }
    assert resolve_parts(times_own(None, {"nothing": 5.0}), PARAMS) == resolve_parts(None, PARAMS)


def test_parts_are_of_the_leaves_that_decay():
    found = leaves_of_parts(("role:head", "*"), matrices_only, PARAMS)
    assert found == {"role:head": ("head/kernel",), "*": ("hidden/kernel",)}
    with pytest.raises(ValueError, match=r"'role:bias' is first for no leaf that decays; .*head/k"):
        leaves_of_parts(("role:bias",), matrices_only, PARAMS)
    with pytest.raises(ValueError, match="Did you mean 'head'"):
        leaves_of_parts(("role:haed",), matrices_only, PARAMS)


def test_the_slopes_of_all_parts_add_up_to_that_of_the_strength_they_share(x64):
    make = lambda num_outputs: make_mlp(num_outputs, widths=(3,))
    roles = ("role:kernel", "role:head")
    recipe = Recipe(make, 2, num_epochs=1, batch_size=4, each_part=roles, schedule="cosine")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 3)), rng.integers(0, 2, 24)
    data, names = wdjax.Batch(x, y, np.ones(24)), ("strength", *roles)
    row = {"strength": 2.0, "learning_rate": 0.05} | dict.fromkeys(roles, 1.0)
    scores = wdjax.cross_validate(
        recipe_fit_and_score(recipe),
        wdjax.grid_product(**row),
        data,
        wdjax.kfold(jax.random.key(0), 24, num_folds=2),
        key=jax.random.key(1),
        slopes=names,
    )
    whole, *parts = (scores.slope_of("loss", name) for name in names)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)  # The runs are in float32.
    assert all((part != 0).all() for part in parts)


TOLD = {
    "parts": [
        {
            "part": part,
            "strength": 0.1,
            "slope": -gain,
            "error": 0.01,
            "gain": gain,
            "low": low,
            "high": high,
            "z": gain / 0.01,
            "wants": wants,
            "leaves": leaves,
        }
        for part, gain, low, high, wants, leaves in (
            ("role:head", 0.031, 0.005, 0.06, "wants more", ["head/kernel"]),
            ("role:kernel", -0.004, -0.03, 0.02, "no evidence", ["hidden1/kernel"]),
        )
    ],
    "method": "examples",
    "value": "loss",
    "headline": "role:head: wants more (z = 3.1). role:kernel: no evidence (z = -0.4).",
    "verdict": "A strength for each part cannot be told from the one they share.",
}


def test_the_table_and_the_page_say_what_each_part_wants():
    cells = each_part_table(TOLD).rows
    assert [(row[0], row[3], row[4]) for row in cells] == [
        ("role:head", "3.1", "wants more"),
        ("role:kernel", "-0.4", "no evidence"),
    ]
    assert each_part_table({"parts": [], "headline": "none"}) is None
    results = synthetic_results(**SMALL)
    page = read(results | {"each_part": TOLD})
    assert "Which parts want more decay" in page.text and TOLD["headline"] in page.text
    assert "wants more" in page.text and TOLD["verdict"] in page.text
    assert "Which parts" not in read(results).text


def test_the_audit_shows_z_beside_the_rate_or_says_how_to_get_it():
    leaves = tuple(
        leaf_decay(path, np.ones((2, 2)), 1.0, np.array([0.1]), None)
        for path in ("head/kernel", "hidden1/kernel", "hidden1/bias")
    )
    report = AuditReport(leaves, ())
    told = _with_z(report, {"kind": "select", "each_part": TOLD})
    assert [leaf.z for leaf in told.leaves] == pytest.approx([3.1, -0.4, None])
    assert "z of more" in str(told) and " 3.1" in str(told) and TOLD["headline"] in str(told)
    assert z_of_leaves({"each_part": TOLD}) == pytest.approx(
        {"head/kernel": 3.1, "hidden1/kernel": -0.4}
    )
    without = str(_with_z(report, {"kind": "select"}))
    assert "No slopes of parts here: wdjax select --each-part says" in without
    assert "z of more" not in without
    assert _with_z(report, {"kind": "train"}) is report


def test_each_part_alone_is_of_the_roles():
    parse = lambda *words: _parser(jobs).parse_args(["select", *words]).each_part
    assert [parse(), parse("--each-part"), parse("--each-part", "leaves")] == [
        "",
        "roles",
        "leaves",
    ]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"optimizer": "lion"}, r"`each_part`: the run takes the sign of something, as Lion's"),
        ({"strengths": (0.0,)}, r"logarithm of the strength, and 0 is the only one"),
        (
            {"folds": 2, "batch_size": 20},
            r"two to choose on and one to judge on; got folds=2",
        ),
        ({"each_part": "role:head"}, r"takes 2 to 10 parts, got 1: role:head. Join or split"),
        ({"each_part": "nothing,*"}, r"'nothing' is first for no leaf that decays; these decay: h"),
        ({"each_part": ",".join("abcdefghijk"), "parts": "all"}, r"first for no leaf"),
    ],
)
def test_parts_that_cannot_be_told_are_refused_before_anything_runs(changes, told, tmp_path):
    given = {"data": "iris", "each_part": "roles", "strengths": (0.1,), "folds": 3}
    given |= {"learning_rates": (0.01,), "devices": 1, "out": str(tmp_path / "run"), "epochs": 1}
    heard = []
    with pytest.raises(ValueError, match=told):
        jobs.run_select(
            jobs.SelectOptions(**given | changes),
            say=lambda text: None,
            on_progress=lambda *event: heard.append(event),
        )
    assert heard == [] and not (tmp_path / "run").exists()


def test_a_comparison_has_no_parts():
    with pytest.raises(ValueError, match=r"`each_part` is of one choice: leave it out here"):
        jobs.run_compare(jobs.CompareOptions(each_part="roles"))


@pytest.mark.slow
def test_at_a_strength_far_too_large_the_parts_want_less_and_their_own_are_judged_better():
    options = jobs.SelectOptions(
        data="digits",
        strengths=(20.0,),
        learning_rates=(0.01,),
        folds=4,
        seeds=2,
        epochs=2,
        devices=1,
        each_part="roles",
    )
    prepared = prepare(options)
    grid, data = strength_grid(options, prepared), to_batch(prepared.choose_data)
    folds = draw_folds(prepared, options, jax.random.key(0))
    run, how = recipe_fit_and_score(prepared.recipe), {"mesh": prepared.mesh}
    problem = Problem(run, grid, data, folds, jax.random.key(1), num_seeds=2, how=how)
    each = each_part_of(options, prepared, problem)
    assert each.plan(problem).startswith("Then the slopes of 2 parts (role:head, role:kernel) at")
    scores = wdjax.Scores(grid, {"loss": np.ones((1, 4, 1))})
    search = Search(scores, wdjax.choose(scores), Cost(8, 1.0))
    heard = []
    hear = lambda what, event: heard.append(what)
    told = tell_each_part(each, prepared, problem, search, search.choice, hear)
    assert {part["wants"] for part in told["parts"]} == {"wants less"}
    assert [part["strength"] for part in told["parts"]] == [20.0, 20.0]
    assert told["tuned"]["gain"]["verdict"] == "helps" and set(heard) == {"each part"}
    assert "is better than the one they share" in told["verdict"]
    assert "on 718 held-out examples that did not choose" in told["verdict"]
    assert "To train with them: --strength 20 --parts 'head/bias=0,head/k" in told["verdict"]
    assert "wants less" in str(each_part_table(told))
