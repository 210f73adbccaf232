"""The recipes run, and do what they say."""

import pathlib
import re
import warnings

import jax
import numpy as np
import pytest

from wdjax.selection.trials import trial_program

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.mark.slow
def test_the_recipes_run_and_optunas_batches_are_lanes_of_a_program_compiled_once(capsys):
    pytest.importorskip("optuna", reason="pip install '.[test]'")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names, programs = {}, trial_program(None)
    before = programs._cache_size()
    # Another library's warnings are its own.
    with warnings.catch_warnings(), jax.debug_nans(False), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(compile(block, "recipes.md", "exec"), names)
    assert programs._cache_size() - before == 1
    study, scores, choice = names["study"], names["scores"], names["choice"]
    assert len(study.trials) == 12 and scores.of("loss").shape == (24, 3, 2)
    # What Optuna was told is what is judged: its best trial is the best row that decays.
    decays = scores.grid["strength"] > 0
    means = scores.mean()["loss"]
    np.testing.assert_allclose(study.best_value, means[decays].min(), rtol=1e-6)
    assert np.isclose(study.best_params["strength"], scores.grid["strength"][decays]).any()
    assert choice.index == means.argmin() and choice.index in choice.confident_set
    assert scores.held_out.values["loss"].shape[:3] == (24, 3, 2)
    assert choice.gain is None or choice.gain.num_rows == 12
    assert "score" in capsys.readouterr().out
    assert names["by_error"].believed and len(names["by_error"].choice.confident_set) < 16
    (doubt,) = names["by_evidence"].search.doubts
    assert "is more probable by" in doubt
