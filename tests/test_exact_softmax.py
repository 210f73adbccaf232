"""The evidence of a softmax layer: its minimum, its formula, its fixed point."""

import jax
import numpy as np
import pytest

import wdjax
from wdjax.exact import laplace_evidence
from wdjax.exact.found import doubts_of_ladder
from wdjax.types import Batch


def problem():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3))
    logits = x @ rng.normal(size=(3, 3)) + 1.5 * rng.gumbel(size=(40, 3))
    return x, logits.argmax(axis=1), rng.integers(0, 4, size=40)


X, LABELS, COUNTS = problem()
ROWS = np.repeat(np.arange(40), COUNTS)
"""The examples, each as often as it counts."""


@pytest.fixture(scope="module")
def found():
    return wdjax.softmax_evidence(X, LABELS, weights=COUNTS)


def project_loss(strength):
    linear = lambda params, x: x @ params["kernel"] + params["bias"][None]
    penalty = wdjax.l2_penalty(strength, parts={"kernel": 1.0, "bias": 0.0})
    return wdjax.regularized_loss(linear, wdjax.cross_entropy, penalty)


def test_the_layer_is_at_the_minimum_of_the_projects_own_loss(x64, found):
    batch = Batch(X[ROWS], LABELS[ROWS], np.ones(len(ROWS)))
    loss_fn = project_loss(found.strength)
    grads = jax.jit(jax.grad(lambda p: loss_fn(p, batch)[0]))(found.params)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-10), grads)
    np.testing.assert_allclose(found.params["bias"].sum(), 0, atol=1e-12)


def reference(params, precision):
    """`log q(delta)` at fixed weights and Hessian in NumPy, over repeated rows; and gamma.

    The Hessian of the logits (not of the weights) is written down, and taken to the weights by the
    matrix that makes logits of them; biases lie in the plane of sum 0.
    """
    kernel, bias = params["kernel"], params["bias"]
    plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    loss, hessian = 0.0, np.zeros((11, 11))
    for x, label in zip(X[ROWS], LABELS[ROWS], strict=True):
        logits = x @ kernel + bias
        p = np.exp(logits) / np.exp(logits).sum()
        to_logits = np.c_[np.kron(x, np.eye(3)), plane.T]
        hessian += to_logits.T @ (np.diag(p) - np.outer(p, p)) @ to_logits
        loss -= np.log(p[label])
    prior = np.diag([1.0] * 9 + [0.0] * 2)

    def log_q(precision):
        log_det = np.linalg.slogdet(hessian + precision * prior)[1]
        size = np.square(kernel).sum()
        return (
            -loss - precision / 2 * size + 4.5 * np.log(precision) - log_det / 2 + np.log(2 * np.pi)
        )

    eigenvalues = 9 - precision * np.trace(np.linalg.inv(hessian + precision * prior)[:9, :9])
    return log_q, eigenvalues


def test_the_evidence_is_laplaces_formula_and_stationary_at_the_fixed_point(found):
    log_q, gamma = reference(found.params, found.precision)
    np.testing.assert_allclose(found.log_evidence, log_q(found.precision), rtol=1e-10)
    np.testing.assert_allclose(found.num_effective, gamma, rtol=1e-8)
    step = np.exp(1e-4)
    slope = (log_q(found.precision * step) - log_q(found.precision / step)) / 2e-4
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(found.strength, found.precision / COUNTS.sum())
    np.testing.assert_allclose(found.error, np.sqrt(2 / gamma), rtol=1e-8)
    assert found.search.believed and found.noise is None
    assert found.search.choice.hparams == {"strength": found.strength}
    # A minimum takes some steps, and from one to the next fewer.
    assert 1 < found.search.cost.trainings < 200 and found.search.cost.memory > 0


def test_the_evidence_of_a_trained_layer_is_told_and_that_of_an_untrained_one_refused(found):
    told = laplace_evidence(found.params, X, LABELS, found.strength, weights=COUNTS)
    np.testing.assert_allclose(told.log_evidence, found.log_evidence, rtol=1e-10)
    np.testing.assert_allclose(told.next_strength, found.strength, rtol=1e-6)
    assert told.above_minimum < 1e-12
    early = {**found.params, "kernel": 0.9 * found.params["kernel"]}
    with pytest.raises(ValueError, match="nats of the summed loss above the minimum at strength"):
        laplace_evidence(early, X, LABELS, found.strength, weights=COUNTS)
    with pytest.raises(ValueError, match="train the layer to its minimum, as `softmax_evidence`"):
        laplace_evidence(found.params, X, LABELS, 10 * found.strength, weights=COUNTS)
    with pytest.raises(ValueError, match=r"must be a kernel \(3, 3\) and a bias \(3,\)"):
        laplace_evidence({"kernel": np.ones((2, 3)), "bias": np.ones(3)}, X, LABELS, 0.1)


def test_laplaces_method_is_close_to_the_integral_where_there_are_many_examples():
    """One feature and two labels: two weights, integrated on a grid, at the prior of the answer."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 1))
    labels = (1.2 * x[:, 0] + rng.logistic(size=200) > 0).astype(int)
    found = wdjax.softmax_evidence(x, labels, intercept=False)
    # Along (1, 1) the likelihood is constant and the prior integrates to 1.
    w = np.linspace(-6, 6, 4001)
    margins = (2 * labels - 1)[:, None] * x * np.sqrt(2) * w
    logs = -np.logaddexp(0, -margins).sum(axis=0) - found.precision / 2 * w**2
    density = np.exp(logs - logs.max()).sum() * (w[1] - w[0])
    exact = logs.max() + np.log(density) + 0.5 * np.log(found.precision / (2 * np.pi))
    assert abs(found.log_evidence - exact) < 0.02


def test_a_fixed_point_beside_a_more_probable_strength_is_doubted(found):
    scores = found.search.scores
    assert doubts_of_ladder(scores) == ()
    higher = scores.values["log_evidence"].copy()
    higher[2] = higher.max() + 2.0
    told = doubts_of_ladder(scores._replace(values={"log_evidence": higher}))
    assert "is more probable by" in told[0] and told[0].startswith("Do not believe this")


def test_the_fixed_point_does_not_depend_on_where_it_starts(found):
    other = wdjax.softmax_evidence(X, LABELS, weights=COUNTS, strength=10.0)
    np.testing.assert_allclose(other.strength, found.strength, rtol=1e-7)


def test_features_that_tell_nothing_of_the_labels_are_doubted():
    """Every label has the same mean features, so that a kernel of 0 is the minimum."""
    x, labels = X[COUNTS > 0], LABELS[COUNTS > 0]
    means = np.stack([x[labels == label].mean(axis=0) for label in range(3)])
    found = wdjax.softmax_evidence(x - means[labels], labels)
    assert "grows with the strength without end" in found.search.doubts[0]


@pytest.mark.parametrize(
    ("features", "labels", "more", "words"),
    [
        (X, LABELS.astype(float), {}, "`labels` must be integers.*use `ridge_evidence`"),
        (X, LABELS, {"num_labels": 4}, "no example of label 3.*unpenalised bias has no minimum"),
        (X, LABELS, {"num_labels": 2}, r"`labels` must be labels 0\.\.1"),
        (X, LABELS - 1, {}, r"must be labels 0\.\.1.*got -1"),
        (X, LABELS * 0, {}, "`num_labels` must be >= 2, got num_labels=1"),
        (X, LABELS, {"strength": 0.0}, "`strength` must be finite and > 0"),
        (X, LABELS, {"weights": COUNTS / 1000}, "`weights` count examples here, and sum to 0.0"),
        (X[:, 0], LABELS, {}, r"`features` must be numbers \[example, feature\]"),
        (np.zeros((40, 1500)), LABELS, {}, "layer has 4503 weights, more than the 4096"),
    ],
)
def test_what_has_no_evidence_is_refused_in_words(features, labels, more, words):
    with pytest.raises(ValueError, match=words):
        wdjax.softmax_evidence(features, labels, **more)
