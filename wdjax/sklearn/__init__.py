"""Estimators for scikit-learn: networks at one strength, and networks that choose theirs.

`MLPClassifier(strength=0.1)` and `MLPRegressor` train at a strength; `MLPClassifierCV` and
`MLPRegressorCV` choose it by cross-validation inside `fit`, all candidates in one compiled program.
They go into pipelines, `GridSearchCV` and pickles as scikit-learn's own do.
"""

from wdjax.extras import check_installed

check_installed("sklearn", what="wdjax.sklearn")

from wdjax.sklearn.chosen import MLPClassifierCV, MLPRegressorCV  # noqa: E402
from wdjax.sklearn.network import MLPClassifier, MLPRegressor  # noqa: E402

__all__ = ["MLPClassifier", "MLPClassifierCV", "MLPRegressor", "MLPRegressorCV"]
