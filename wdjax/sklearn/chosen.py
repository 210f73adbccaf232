"""Networks that choose their strength by cross-validation inside `fit`."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from sklearn.model_selection import GroupKFold, check_cv
from sklearn.utils.validation import check_consistent_length

from wdjax.checks import check_positive_int
from wdjax.selection import Folds, Scores, choose, cross_validate, folds_from_splits, kfold
from wdjax.selection.grids import grid_product
from wdjax.sklearn.network import Classifies, Network, Predicts
from wdjax.sklearn.programs import judging_of
from wdjax.types import Batch

STRENGTHS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Chooses(Network):
    """What the two share: the candidates, the folds, the choice and the last run."""

    def __init__(
        self,
        strengths: Any = STRENGTHS,
        *,
        cv: Any = 5,
        num_seeds: Any = 1,
        rule: Any = "min",
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
        super().__init__(
            widths=widths,
            learning_rate=learning_rate,
            num_epochs=num_epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            schedule=schedule,
            model=model,
            dtype=dtype,
            random_state=random_state,
        )
        del self.strength  # It is found.
        self.strengths = strengths
        self.cv = cv
        self.num_seeds = num_seeds
        self.rule = rule

    def _choose(self, X: Any, y: Any, sample_weight: Any, groups: Any) -> None:
        """Chooses the strength, then trains at it on all rows."""
        data, num_outputs, counting = self._rows(X, y, sample_weight, least=2)
        if groups is not None:
            check_consistent_length(X, groups)
            groups = np.unique(np.asarray(groups), return_inverse=True)[1]
        key = self._key(0)
        folds = self._folds(X, y, groups, data, counting)
        groups = None if groups is None else groups[counting]
        smallest = int(np.asarray(folds.train_mask).sum(axis=1).min())
        grid = grid_product(
            strength=np.asarray(self.strengths, np.float64), learning_rate=[self.learning_rate]
        )
        scores = cross_validate(
            judging_of(self._form(num_outputs, smallest)),
            grid,
            data,
            folds,
            key=jax.random.fold_in(key, 1),
            num_seeds=self.num_seeds,
            groups=groups,
        )
        choice = choose(scores, self.rule)
        strengths = np.asarray(grid["strength"])
        self.scores_, self.choice_ = scores, choice
        self.strength_ = float(strengths[choice.index])
        self.confident_set_ = strengths[list(choice.confident_set)]
        self.cv_results_ = _as_scikit_learn_has_it(scores, strengths)
        numbers = {"strength": self.strength_, "learning_rate": float(self.learning_rate)}
        self._train(data, num_outputs, numbers)

    def _folds(
        self, X: Any, y: Any, groups: np.ndarray | None, data: Batch, counting: np.ndarray
    ) -> Folds:
        """Of `cv` a number, our own, each with the shares of the classes; else the splitter's."""
        splitter: Any = self.cv
        if not hasattr(splitter, "split") and not isinstance(splitter, Iterable):
            check_positive_int("cv", splitter, low=2)
            if groups is None:
                labels = data.targets if isinstance(self, Classifies) else None
                return kfold(self._key(2), len(data.weights), splitter, stratify=labels)
            splitter = GroupKFold(splitter)
        # The splitter counts all rows, of which those of weight 0 are left out.
        place = np.full(len(y), -1)
        place[counting] = np.arange(len(counting))
        kept = lambda rows: place[rows][place[rows] >= 0]
        given: Any = splitter
        splits: Any = check_cv(given)
        pairs = splits.split(X, y, groups)
        return folds_from_splits([(kept(train), kept(valid)) for train, valid in pairs])


def _as_scikit_learn_has_it(scores: Scores, strengths: np.ndarray) -> dict[str, Any]:
    """`cv_results_`: scores are minus the held-out loss, as `neg_log_loss` is, of each fold."""
    by_fold = -scores.of("loss").mean(axis=2)
    mean = by_fold.mean(axis=1)
    order = np.where(np.isnan(mean), -np.inf, mean)
    return {
        "param_strength": strengths,
        "params": [{"strength": float(strength)} for strength in strengths],
        **{f"split{i}_test_score": by_fold[:, i] for i in range(by_fold.shape[1])},
        "mean_test_score": mean,
        "std_test_score": by_fold.std(axis=1),
        "rank_test_score": 1 + (order[None] > order[:, None]).sum(axis=1).astype(np.int32),
    }


class MLPClassifierCV(Classifies, Chooses):
    """A network for classes that chooses its strength of decay by cross-validation.

    All strengths, folds and seeds are trained in one compiled program, then the network at the
    chosen strength on all samples. A second `fit` of the same shapes compiles nothing.

    Args:
      strengths: the candidates; 0 among them says whether decay helped (`choice_.reason`).
      cv: the number of folds (stratified by class, or of whole groups where `groups` are given),
        or a splitter of scikit-learn.
      num_seeds: runs per strength and fold.
      rule: "min" or "one_standard_error", see `wdjax.choose`.
      widths, learning_rate, num_epochs, batch_size, optimizer, schedule, model, dtype,
        random_state: as `MLPClassifier` has them.

    Attributes: `strength_`, `confident_set_` (the strengths that cannot be told from the best, with
    95 % confidence), `choice_` and `scores_` (`wdjax.Choice`, `wdjax.Scores`), `cv_results_` (as
    scikit-learn's searches have it; scores are minus the held-out loss), and those of
    `MLPClassifier`.

    Raises:
      ValueError: in `fit`, as `MLPClassifier`; for folds that the samples, classes or groups do not
        make; as `cross_validate`.
    """

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> "MLPClassifierCV":
        """Chooses and trains; samples of one group are never on both sides of a split.

        Raises:
          ValueError: see the class.
        """
        with jax.enable_x64(self.dtype == "float64"):
            self._choose(X, y, sample_weight, groups)
        return self


class MLPRegressorCV(Predicts, Chooses):
    """A network for numbers that chooses its strength of decay: see `MLPClassifierCV`.

    Raises:
      ValueError: in `fit`, as `MLPClassifierCV`.
    """

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> "MLPRegressorCV":
        """Chooses and trains; samples of one group are never on both sides of a split.

        Raises:
          ValueError: see the class.
        """
        with jax.enable_x64(self.dtype == "float64"):
            self._choose(X, y, sample_weight, groups)
        return self
