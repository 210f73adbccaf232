"""Images of bytes stay bytes until a step, a score or a prediction divides them."""

import jax
import numpy as np
import pytest

from wdjax.data.dataset import hash_of, make_dataset, to_batch
from wdjax.data.load import load_choose_and_test, load_data
from wdjax.jobs.options import SelectOptions, TrainOptions
from wdjax.jobs.predict import load_predictor
from wdjax.jobs.setup import prepare
from wdjax.jobs.train import run_train
from wdjax.models import make_mlp
from wdjax.recipe.build import Recipe, recipe_fit_and_score

RNG = np.random.default_rng(0)
SHAPE = (40, 8, 8, 1)


@pytest.fixture
def path(tmp_path):
    images = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
    np.savez(tmp_path / "images.npz", inputs=images, targets=np.arange(40) % 2)
    return str(tmp_path / "images.npz")


def test_a_job_holds_the_bytes_and_who_loads_data_gets_floats(path):
    floats = load_data(path)
    assert floats.inputs.dtype == np.float32 and floats.inputs.max() == 1
    for parts in (load_choose_and_test(path), load_choose_and_test(path, keep_bytes=True)):
        kept = {part.inputs.dtype for part in parts}
        assert len(kept) == 1
    assert kept == {np.dtype(np.uint8)}
    prepared = prepare(SelectOptions(data=path, folds=2, batch_size=8))
    for part in (prepared.choose_data, prepared.test_data):
        assert part.inputs.dtype == np.uint8
    assert to_batch(prepared.choose_data).inputs.nbytes == prepared.choose_data.inputs.size


def test_the_hash_does_not_tell_how_images_are_held(path):
    floats, kept = load_data(path), load_data(path, keep_bytes=True)
    assert hash_of(floats) == hash_of(kept)
    kept.inputs[3, 0, 0, 0] ^= 1
    assert hash_of(floats) != hash_of(kept)


def test_bytes_without_a_channel_get_one_and_tables_of_bytes_are_numbers():
    images = make_dataset(np.ones((4, 8, 8), np.uint8), np.arange(4) % 2, keep_bytes=True)
    assert images.inputs.shape == (4, 8, 8, 1) and images.inputs.dtype == np.uint8
    table = make_dataset(np.full((4, 3), 7, np.uint8), np.arange(4) % 2, keep_bytes=True)
    assert table.inputs.dtype == np.float32 and table.inputs.max() == 7


@pytest.mark.parametrize("augment", [(), ("flip", "crop")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_bytes_is_that_on_floats(path, augment, dtype):
    # In bfloat16 the division must still be one of float32.
    recipe = Recipe(
        make_model=make_mlp, num_outputs=2, num_epochs=2, batch_size=8, augment=augment, dtype=dtype
    )
    run = jax.jit(recipe_fit_and_score(recipe))
    hparams, key = {"strength": 0.1, "learning_rate": 0.01}, jax.random.key(0)
    scores = []
    for keep_bytes in (False, True):
        data = to_batch(load_data(path, keep_bytes=keep_bytes))
        scores.append(run(hparams, data, data, key))
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        # To rounding: where the division is a part of the augmentation it is compiled with it.
        np.testing.assert_allclose(
            value, scores[1][name], rtol=2e-6 if dtype == "float32" else 1e-2
        )


def test_a_prediction_for_bytes_is_that_for_their_floats(path, tmp_path):
    options = TrainOptions(
        data=path, strength=0.1, epochs=1, batch_size=8, out=str(tmp_path / "run")
    )
    run_train(options, say=lambda text: None)
    predictor = load_predictor(tmp_path / "run")
    images = np.load(path)["inputs"]
    np.testing.assert_array_equal(predictor(images), predictor(images / np.float32(255)))
