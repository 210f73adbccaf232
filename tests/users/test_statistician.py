"""A statistician with several rows a patient: folds of patients, the area, an honest interval."""

import jax
import pytest

SCRIPT = """
from functools import partial

import jax, numpy as np, optax, wdjax
from sklearn.model_selection import GroupKFold
from wdjax.report import results_of, write_report
from wdjax.standard_measures import auc

rng = np.random.default_rng(0)
patient = np.repeat(np.arange(60), 6)
own = rng.normal(size=(60, 20))[patient]  # What a patient's rows share.
x = (own + 0.3 * rng.normal(size=own.shape)).astype("float32")
ill = (own[:, 0] + 0.5 * rng.normal(size=60)[patient] > 0).astype("int32")
data = wdjax.Batch(x, ill, np.ones(len(ill), "float32"))

folds = wdjax.folds_from_splits(GroupKFold(5).split(x, ill, patient))
model = wdjax.make_mlp(num_outputs=2, widths=(16,))


def make_tx(h):
    decay = partial(wdjax.decoupled_decay, h["strength"], parts=wdjax.matrices_only)
    return wdjax.make_optimizer(optax.scale_by_adam(eps_root=1e-12), 0.01, decay)


run = wdjax.make_fit_and_score(
    wdjax.make_fit(model, wdjax.cross_entropy, make_tx=make_tx, num_epochs=15, batch_size=48),
    wdjax.make_score(model, loss=wdjax.cross_entropy, auc=auc),
)
grid = wdjax.grid_product(strength=[0.0, 1.0, 10.0])
key = jax.random.key(0)
scores = wdjax.cross_validate(run, grid, data, folds, key=key, num_seeds=2, groups=patient)
by_loss, by_area = wdjax.choose(scores), wdjax.choose(scores, value="auc")
print(by_loss.reason)
write_report(results_of(scores, by_area, name="patients"), folder / "report.html")
rows_alone = wdjax.cross_validate(run, grid, data, folds, key=key, num_seeds=2)
"""


@pytest.mark.slow
def test_patients_are_counted_and_not_rows_and_the_area_is_chosen_by(tmp_path, capsys):
    names = {"folder": tmp_path}
    with jax.debug_nans(False):
        exec(compile(SCRIPT, "script.py", "exec"), names)
    areas, by_area = names["scores"].of("auc"), names["by_area"]
    assert areas.shape == (3, 5, 2) and areas.mean() > 0.65 and areas.max() <= 1
    assert by_area.value == "auc" and by_area.higher_is_better
    assert by_area.index == areas.mean(axis=(1, 2)).argmax()
    told = capsys.readouterr().out
    assert "paired gain over zero" in told or "zero" in told
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Chosen: strength" in page and "auc" in page
    # Six rows of one patient are not six examples: the interval is wider for knowing it.
    alone = names["wdjax"].choose(names["rows_alone"])
    width = lambda choice: choice.gain.high - choice.gain.low
    assert alone.index == names["by_loss"].index > 0
    assert width(names["by_loss"]) > width(alone)
