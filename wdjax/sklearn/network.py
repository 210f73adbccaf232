"""Networks at one strength as scikit-learn's estimators."""

import abc
from typing import Any

import jax
import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from wdjax.checks import check_number, check_positive_int, check_strength
from wdjax.data.scale import undo_scaling
from wdjax.sklearn.programs import Form, predict_rows, training_of
from wdjax.types import Batch


class Network(BaseEstimator, abc.ABC):
    """What the estimators share: arguments, checked rows, training, outputs.

    Arguments are kept as they are given and looked at in `fit`, as scikit-learn asks.
    """

    def __init__(
        self,
        strength: Any = 0.1,
        *,
        widths: Any = (64,),
        learning_rate: Any = 0.01,
        num_epochs: Any = 60,
        batch_size: Any = 64,
        optimizer: Any = "adam",
        schedule: Any = "warmup_cosine",
        model: Any = None,
        dtype: Any = "float32",
        random_state: Any = None,
    ):
        self.strength = strength
        self.widths = widths
        self.learning_rate = learning_rate
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.model = model
        self.dtype = dtype
        self.random_state = random_state

    _loss = "squared_error"

    def _numbers(self) -> dict[str, float]:
        """The numbers of a run.

        Raises:
          ValueError: for one that is out of range.
        """
        check_strength("strength", self.strength)
        check_number("learning_rate", self.learning_rate, low=0.0, exclusive_low=True)
        return {"strength": float(self.strength), "learning_rate": float(self.learning_rate)}

    def _form(self, num_outputs: int, num_rows: int) -> Form:
        """What is compiled; a batch is at most all rows."""
        check_positive_int("batch_size", self.batch_size)
        return Form(
            self.model,
            tuple(int(width) for width in self.widths),
            num_outputs,
            self._loss,
            self.optimizer,
            self.schedule,
            self.num_epochs,
            min(self.batch_size, num_rows),
            self.dtype,
        )

    def _rows(
        self, X: Any, y: Any, sample_weight: Any, least: int = 1
    ) -> tuple[Batch, int, np.ndarray]:
        """The rows that count, checked, how many numbers the model gives for one, and where they
        stand among all."""
        several = not isinstance(self, ClassifierMixin)
        X, y = validate_data(
            self, X, y, dtype=self.dtype, multi_output=several, ensure_min_samples=least
        )
        targets, num_outputs = self._targets(y)
        weights = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        counts = np.flatnonzero(weights > 0)
        return Batch(X[counts], targets[counts], weights[counts]), num_outputs, counts

    @abc.abstractmethod
    def _targets(self, y: np.ndarray) -> tuple[np.ndarray, int]:
        """What is trained towards, and how many numbers the model gives for a sample."""

    def _train(self, data: Batch, num_outputs: int, numbers: dict[str, float]) -> None:
        """Trains on all rows, and keeps what was found as NumPy arrays, which pickle."""
        self.form_ = self._form(num_outputs, len(data.weights))
        found = training_of(self.form_)(numbers, data, self._key(0))
        found = jax.tree.map(np.asarray, found)
        leaves = jax.tree.leaves((found["params"], found["history"]))
        if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
            raise ValueError(
                f"the run at strength {numbers['strength']:g} and learning rate "
                f"{numbers['learning_rate']:g} diverged: take smaller ones."
            )
        self.loss_curve_, self.n_iter_ = found.pop("history"), self.num_epochs
        self.fitted_ = found

    def _key(self, number: int) -> Any:
        """The number-th key of this fit; without `random_state` another each time."""
        if number == 0:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return jax.random.fold_in(jax.random.key(self._seed), number)

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "fitted_")
        X = validate_data(self, X, dtype=self.form_.dtype, reset=False)
        with jax.enable_x64(self.form_.dtype == "float64"):
            return predict_rows(self.form_, self.fitted_, X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = False
        tags.non_deterministic = False
        return tags


class Classifies(ClassifierMixin, Network):
    """Labels of any kind, probabilities by the softmax."""

    _loss = "cross_entropy"

    def _targets(self, y: np.ndarray) -> tuple[np.ndarray, int]:
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"`y` holds one class, {self.classes_[0]!r}; a classifier needs two classes."
            )
        return labels.astype(np.int32), len(self.classes_)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, `[sample, class]`, in the order of `classes_`.

        Raises:
          ValueError: for samples of another number of features, or that are not finite.
        """
        return softmax(self._outputs(X).astype(np.float64), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The class of highest probability of each sample.

        Raises:
          ValueError: as `predict_proba`.
        """
        places = self.predict_proba(X).argmax(axis=1)
        return self.classes_[places]


class Predicts(RegressorMixin, Network):
    """Numbers, one or several a sample, standardised while training."""

    _loss = "squared_error"

    def _targets(self, y: np.ndarray) -> tuple[np.ndarray, int]:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._is_one = y.ndim == 1
        return y.astype(self.dtype), 1 if y.ndim == 1 else y.shape[1]

    def predict(self, X: Any) -> np.ndarray:
        """The predicted numbers of each sample, in the unit of `y`.

        Raises:
          ValueError: for samples of another number of features, or that are not finite.
        """
        outputs = self._outputs(X)
        outputs = outputs[:, 0] if self._is_one else outputs
        with jax.enable_x64(self.form_.dtype == "float64"):
            found = undo_scaling(outputs, self.fitted_["scaling"]["targets"])
        return np.asarray(found, np.float64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class MLPClassifier(Classifies):
    """A network for classes, trained at one strength of decay.

    Adam, a cosine schedule with a warm-up, inputs standardised by the training samples and their
    weights, decoupled decay: a step removes `learning_rate * strength` of each weight of a matrix
    and nothing of a bias. (`alpha` of scikit-learn's `MLPClassifier` is another definition: L2 in
    the loss, divided by the batch, of whose strength Adam leaves little.)

    Args:
      strength: of the decay, >= 0.
      widths: of the hidden layers.
      learning_rate: the schedule's peak.
      num_epochs, batch_size: of the run; a batch is at most all samples.
      optimizer, schedule: by their names in `wdjax train`.
      model: `model(num_outputs) -> wdjax.Model` in place of the network of `widths`; a function of
        a module, which pickles.
      dtype: "float32", "bfloat16" or "float64".
      random_state: an integer, a `RandomState`, or None: another run each time.

    Attributes: `classes_`, `n_features_in_`, `feature_names_in_` where `X` has names,
    `loss_curve_` (the training loss of each epoch), `n_iter_`, `fitted_` (params, model state and
    scaling as NumPy trees).

    Raises:
      ValueError: in `fit`, for a number out of range, samples that are not finite, one class, or a
        run that diverged.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MLPClassifier":
        """Trains on samples `X[sample, feature]` of classes `y[sample]`; returns itself.

        Raises:
          ValueError: see the class.
        """
        return fit_network(self, X, y, sample_weight)


class MLPRegressor(Predicts):
    """A network for numbers, trained at one strength of decay: see `MLPClassifier`.

    Targets are standardised while training, several at once if `y` has columns, and predicted in
    their own unit.

    Raises:
      ValueError: in `fit`, as `MLPClassifier`.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MLPRegressor":
        """Trains on samples `X[sample, feature]` of numbers `y`; returns itself.

        Raises:
          ValueError: see the class.
        """
        return fit_network(self, X, y, sample_weight)


def fit_network(network: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """Trains a network at its own numbers.

    Raises:
      ValueError: as its `fit`.
    """
    with jax.enable_x64(network.dtype == "float64"):
        numbers = network._numbers()
        data, num_outputs, _ = network._rows(X, y, sample_weight)
        network._train(data, num_outputs, numbers)
    return network
