"""The names of the version before still work, and say where they went."""

import importlib
import sys

import pytest

import wdjax.data
import wdjax.parts
from wdjax.moved import MODULES


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


def test_a_name_that_never_was_is_still_an_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(wdjax.parts, "nothing")  # noqa: B009
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("wdjax.nothing")


def _fresh(name):
    sys.modules.pop(name, None)
    return importlib.import_module(name)
