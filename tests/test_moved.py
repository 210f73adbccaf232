"""The names of the version before still work, and say where they went."""

import importlib
import inspect
import sys

import pytest

import wdjax.data
import wdjax.jobs
import wdjax.parts
from wdjax.moved import MODULES, moved_keywords
from wdjax.selection import Progress


@pytest.mark.parametrize("old", sorted(MODULES))
def test_an_old_module_path_is_the_new_module_and_warns(old):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MODULES[old]};"):
        module = _fresh(old)
    assert module is importlib.import_module(MODULES[old])
    assert module.__spec__.name == MODULES[old]


@pytest.mark.parametrize("name", ["audit", "describe_decay", "AuditReport", "DecayReport"])
def test_what_left_parts_is_found_there_and_warns(name):
    with pytest.warns(DeprecationWarning, match=f"parts.{name} is now wdjax.diagnostics.{name};"):
        found = getattr(wdjax.parts, name)
    assert found is getattr(importlib.import_module("wdjax.diagnostics"), name)


ARRAYS = (
    *("SIDE", "Scaling", "add_label_noise", "apply_scaling", "as_images_32", "check_folds"),
    *("check_predictable", "dataset_of", "hash_of", "load_choose_and_test", "load_data"),
    *("load_source", "measure_scaling", "split_off_test", "standardize", "to_batch"),
)


def test_all_that_was_in_data_arrays_is_found_in_data_and_under_the_old_path():
    with pytest.warns(DeprecationWarning, match="wdjax.data.arrays is now wdjax.data;"):
        module = _fresh("wdjax.data.arrays")
    assert all(getattr(module, name) is getattr(wdjax.data, name) for name in ARRAYS)


def test_what_was_renamed_is_found_by_its_old_name_and_warns():
    with pytest.warns(DeprecationWarning, match="decay.Measure is now wdjax.decay.Magnitude;"):
        assert wdjax.decay.Measure is wdjax.decay.Magnitude
    with pytest.warns(DeprecationWarning, match="take is now wdjax.selection.folds.take_masked;"):
        assert wdjax.selection.folds.take is wdjax.selection.folds.take_masked


def test_an_old_keyword_is_the_new_one_and_warns():
    @moved_keywords(old="new")
    def twice(x, *, new=0):
        """Doubles."""
        return 2 * x + new

    with pytest.warns(DeprecationWarning, match=r"twice\(old=\) is now twice\(new=\); the old"):
        assert twice(1, old=3) == twice(1, new=3) == 5
    with pytest.raises(TypeError, match="`new` and its old name `old`; give `new`"):
        twice(1, old=3, new=3)
    assert twice.__doc__ == "Doubles."


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        (wdjax.compare, "kept", "cache"),
        (wdjax.cross_validate, "kept", "cache"),
        (wdjax.decay.constrained_decay, "measure", "magnitude"),
        (wdjax.decay_weights, "shape", "pull"),
        (wdjax.make_fit, "make_measure", "make_telemetry"),
        (wdjax.make_train_step, "measure", "telemetry"),
        (wdjax.jobs.run_select, "watch", "on_progress"),
        (wdjax.jobs.run_train, "watch", "on_progress"),
        (wdjax.jobs.run_compare, "kept", "cache"),
        (wdjax.jobs.run_select, "kept", "cache"),
    ],
)
def test_a_keyword_of_the_version_before_says_what_it_is_called_now(function, old, new):
    assert old not in inspect.signature(function).parameters
    assert new in inspect.signature(function).parameters
    with pytest.warns(DeprecationWarning, match=rf"{old}=\) is now \w+\({new}=\)"):
        with pytest.raises(TypeError, match="missing"):
            function(**{old: None})


def test_the_field_of_progress_that_was_renamed_warns():
    progress = Progress("run", 1, 2, 0.0, None, None, 1)
    with pytest.warns(DeprecationWarning, match="Progress.kept is now Progress.cached"):
        assert progress.kept == progress.cached == 1


def test_a_name_that_never_was_is_still_an_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(wdjax.parts, "nothing")  # noqa: B009
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("wdjax.nothing")


def _fresh(name):
    sys.modules.pop(name, None)
    return importlib.import_module(name)
