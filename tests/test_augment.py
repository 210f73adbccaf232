"""Augmentations: what they do to an image, the strength that they report, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.data.augment import (
    additive_noise,
    compose,
    cutout,
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
    random_saturation,
)
from wdjax.losses import cross_entropy
from wdjax.training import make_fit
from wdjax.types import Batch, Model
from wdjax.weights import augment_strength, sigmoid_example_weight

ALL = {
    "crop": random_crop(2),
    "flip": random_flip(),
    "cutout": cutout(3),
    "brightness": random_brightness(0.3),
    "contrast": random_contrast(0.5),
    "saturation": random_saturation(0.5),
    "noise": additive_noise(0.2),
    "all": compose(random_crop(1), random_flip(), additive_noise(0.1)),
}
every_augmentation = pytest.mark.parametrize("augment", ALL.values(), ids=ALL)


def an_image(seed=0, height=6, width=7, channels=3):
    r = np.random.default_rng(seed)
    return jnp.asarray(r.uniform(0.1, 1, (height, width, channels)), jnp.float32)


def many(augment, key, image, times=200):
    drawn = jax.jit(jax.vmap(augment, (0, None)))(jax.random.split(key, times), image)
    return jax.tree.map(np.asarray, drawn)


@every_augmentation
def test_shape_and_dtype_stay_and_strengths_lie_between_zero_and_one(augment, key):
    image = an_image()
    images, strengths = many(augment, key, image)
    assert images.shape == (200, *image.shape) and images.dtype == image.dtype
    assert strengths.shape == (200,)
    assert 0 <= strengths.min() < strengths.max() <= 1


@every_augmentation
def test_the_same_key_gives_the_same_image(augment, key):
    first, second = augment(key, an_image()), augment(key, an_image())
    jax.tree.map(np.testing.assert_array_equal, first, second)


@every_augmentation
def test_a_strength_of_zero_is_the_image_itself_and_more_is_another(augment, key):
    image = an_image()
    images, strengths = many(augment, key, image)
    changed = np.abs(images - np.asarray(image)).max(axis=(1, 2, 3))
    untouched = strengths == 0
    assert np.all(changed[untouched] == 0)
    assert np.all(changed[~untouched] > 0)


def test_crop_is_the_shift_that_it_reports_and_takes_every_one(key):
    image, padding = an_image(), 2
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    shifts = {(y, x): padded[y : y + 6, x : x + 7] for y in range(5) for x in range(5)}
    images, strengths = many(random_crop(padding), key, image, 600)
    seen = set()
    for cut, strength in zip(np.asarray(images), strengths, strict=True):
        (at,) = [s for s, expected in shifts.items() if np.array_equal(cut, expected)]
        assert strength == max(abs(at[0] - 2), abs(at[1] - 2)) / 2
        seen.add(at)
    assert seen == set(shifts)


def test_flip_turns_round_the_share_asked_for(key):
    image = np.asarray(an_image())
    images, strengths = many(random_flip(0.25), key, image, 1000)
    for flipped in (0, 1):
        expected = image[:, ::-1] if flipped else image
        assert np.all(images[strengths == flipped] == expected)
    assert abs(strengths.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)


def test_cutout_reports_the_share_of_its_square_inside_the_image(key):
    images, strengths = many(cutout(3), key, an_image())
    holes = (images == 0).all(axis=-1).sum(axis=(1, 2))
    np.testing.assert_allclose(strengths, holes / 9, rtol=1e-6)
    assert holes.max() == 9 and holes.min() == 4


def test_brightness_contrast_and_saturation_are_their_formulas(key, x64):
    image = np.asarray(an_image(), np.float64)
    u = float(jax.random.uniform(key, (), jnp.float64, -1.0, 1.0))
    mean = image.mean(axis=(0, 1))
    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    expected = {
        random_brightness: image + 0.3 * u,
        random_contrast: mean + (1 + 0.3 * u) * (image - mean),
        random_saturation: grey + (1 + 0.3 * u) * (image - grey),
    }
    for make, value in expected.items():
        changed, strength = make(0.3)(key, jnp.asarray(image))
        np.testing.assert_allclose(changed, value, rtol=1e-12)
        np.testing.assert_allclose(strength, abs(u))


def test_noise_has_the_deviation_that_it_reports(key):
    """20,000 numbers: their deviation is known to 1 / sqrt(40,000)."""
    image = jnp.zeros((100, 200, 1))
    noisy, strength = additive_noise(0.5)(key, image)
    np.testing.assert_allclose(noisy.std(), 0.5 * strength, rtol=5 / np.sqrt(40_000))
    assert abs(noisy.mean()) < 5 * 0.5 * strength / np.sqrt(20_000)


def test_compose_chains_in_order_and_reports_the_mean_strength(key):
    twice = lambda key, image: (2 * image, jnp.array(0.5))
    plus_one = lambda key, image: (image + 1, jnp.array(0.0))
    image, strength = compose(twice, plus_one)(key, an_image())
    np.testing.assert_array_equal(image, 2 * an_image() + 1)
    assert strength == 0.25


def test_composed_augmentations_draw_independently(key):
    _, strengths = many(compose(random_flip(), random_flip()), key, an_image(), 400)
    assert {float(s) for s in strengths} == {0.0, 0.5, 1.0}


def test_magnitudes_may_be_traced_so_that_they_are_numbers_of_a_grid(key):
    limits = jnp.array([0.0, 0.5])
    images, _ = jax.vmap(lambda limit: random_contrast(limit)(key, an_image()))(limits)
    np.testing.assert_allclose(images[0], an_image(), rtol=1e-6)
    assert not np.allclose(images[1], an_image())


def test_bytes_can_be_cropped_flipped_and_cut_out(key):
    image = jnp.ones((6, 6, 3), jnp.uint8)
    changed, strength = compose(random_crop(1), random_flip(), cutout(2))(key, image)
    assert changed.dtype == jnp.uint8 and strength.dtype == jnp.float32


def test_a_run_hands_each_examples_strength_to_its_weight(key):
    """A steep negative slope leaves out what was flipped: as if the batch had the rest alone."""
    seen = []

    def record(outputs, batch, strength):
        jax.debug.callback(lambda s: seen.append(np.asarray(s)), strength)
        return augment_strength(outputs, batch, strength)

    images = np.random.default_rng(0).uniform(size=(16, 4, 4, 1)).astype(np.float32)
    train = Batch(images, np.arange(16) % 2, np.ones(16, np.float32))
    model = Model(
        lambda key, inputs: (jnp.zeros((16, 2)), {}),
        lambda params, state, inputs, *, key, train: (
            inputs.reshape(len(inputs), -1) @ params,
            state,
        ),
    )
    fit = make_fit(
        model,
        cross_entropy,
        make_tx=lambda h: optax.sgd(0.1),
        num_epochs=3,
        batch_size=8,
        make_example_weight=lambda h: sigmoid_example_weight(record, h["slope"]),
        augment=random_flip(),
    )
    runs = [jax.block_until_ready(fit({"slope": s}, train, key)) for s in (0.0, -20.0)]
    jax.effects_barrier()
    strengths = np.concatenate(seen[:6])
    assert set(strengths) == {0.0, 1.0} and 0.2 < strengths.mean() < 0.8
    assert not np.allclose(runs[0].params, runs[1].params)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: random_crop(0), "`padding` must be >= 1"),
        (lambda: random_flip(1.5), "`probability` must be finite and >= 0 and <= 1"),
        (lambda: cutout(0), "`size` must be >= 1"),
        (lambda: random_brightness(-1.0), "`limit` must be finite and >= 0"),
        (lambda: additive_noise(np.nan), "`scale` must be finite"),
        (compose, "at least one augmentation"),
    ],
)
def test_bad_numbers_are_refused_when_built(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "augment, image, words",
    [
        (random_crop(1), jnp.ones((2, 4, 4, 3)), "one image.*For a batch: jax.vmap"),
        (cutout(5), jnp.ones((4, 6, 3)), "`size` must be at most 4"),
        (random_saturation(0.1), jnp.ones((4, 4, 1)), "red, green and blue, got 1"),
        (additive_noise(0.1), jnp.ones((4, 4, 1), jnp.uint8), "divide bytes by 255"),
    ],
)
def test_images_that_do_not_fit_are_refused(augment, image, words, key):
    with pytest.raises(ValueError, match=words):
        augment(key, image)


def test_the_operations_are_those_of_dm_pix(key):
    """An independent library, where it is installed."""
    pix = pytest.importorskip("dm_pix")
    image = an_image()
    u = jax.random.uniform(key, (), jnp.float32, -1.0, 1.0)
    brighter, _ = random_brightness(0.3)(key, image)
    np.testing.assert_allclose(brighter, pix.adjust_brightness(image, 0.3 * u), rtol=1e-5)
    stretched, _ = random_contrast(0.3)(key, image)
    np.testing.assert_allclose(stretched, pix.adjust_contrast(image, 1 + 0.3 * u), rtol=1e-5)
    flipped, _ = random_flip(1.0)(key, image)
    np.testing.assert_array_equal(flipped, pix.flip_left_right(image))
