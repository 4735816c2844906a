"""Linear models that select features: their coefficients stay in the ball of a norm tree."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from projgen.projection import Projection
from projgen.sklearn.counting import Search, kept, lengths
from projgen.sklearn.descent import Model, Task
from projgen.sklearn.selection import (
    FeatureSelection,
    fitted_scaler,
    read_projection,
    require_count,
    require_number,
    weights_of_classes,
)

Array = NDArray[Any]
DTYPES = (np.float64, np.float32)  # that `X` may stay in


class ProjectedLinear(FeatureSelection):
    """What `ProjectedLogisticRegression` and `ProjectedLinearRegression` share."""

    coef_: Array
    intercept_: Array | float
    scaler_: StandardScaler | None

    def __init__(
        self,
        spec: Any = "l1(l2(axis=0))",
        radius: float | None = 1.0,
        *,
        n_features_to_select: float | None = None,
        standardize: bool = True,
        fit_intercept: bool = True,
        max_iter: int = 5000,
        tol: float = 1e-4,
    ) -> None:
        self.spec = spec
        self.radius = radius
        self.n_features_to_select = n_features_to_select
        self.standardize = standardize
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _checked(self, outputs: int, features: int) -> Projection:
        """The projection of the coefficients; an error for a parameter that is wrong."""
        projection = read_projection(self.spec, (outputs, features))
        require_count("max_iter", self.max_iter, 1)
        require_number("tol", self.tol, above=True)
        wanted = self.n_features_to_select
        if projection.tree.root.k is not None:
            if self.radius is not None or wanted is not None:
                raise ValueError(f"{projection.spec} says itself how many groups are kept: it "
                                 "takes radius=None, and no n_features_to_select")  # fmt: skip
        elif wanted is None and not (isinstance(self.radius, Real) and self.radius == math.inf):
            if isinstance(self.radius, str):
                raise TypeError(f"radius is a number, not {self.radius!r}: coefficients start at "
                                "0, and have no norm to take a part of; try 0.5 to 10")  # fmt: skip
            require_number("radius", self.radius, above=True)
        return projection

    def _wanted(self, features: int) -> int | None:
        """`n_features_to_select` as a count, of `features`."""
        wanted = self.n_features_to_select
        if wanted is None:
            return None
        if isinstance(wanted, Real) and not isinstance(wanted, (int, np.integer)):
            if not 0 < wanted <= 1:
                raise ValueError(f"n_features_to_select is a count, or a part in (0, 1] of the "
                                 f"features; got {wanted}")  # fmt: skip
            return max(1, int(features * wanted))
        count = require_count("n_features_to_select", wanted, 1)
        if count > features:
            raise ValueError(f"X has n_features = {features}, fewer than n_features_to_select = "
                             f"{count}")  # fmt: skip
        return count

    def _minimise(
        self, X: Array, weights: Array, outputs: int, slopes: Any, bend: float
    ) -> tuple[Array, Array]:
        """Fit the coefficients, on features that are scaled: (outputs, features) and intercepts, in
        the units of `X`."""
        projection, wanted = self._checked(outputs, X.shape[1]), self._wanted(X.shape[1])
        self.scaler_ = None
        if self.standardize:  # what is centred has an intercept
            self.scaler_ = fitted_scaler(X, weights, with_mean=bool(self.fit_intercept))
        x = X if self.scaler_ is None else self.scaler_.transform(X)
        x = np.ascontiguousarray(x)
        weights = weights / weights.max()  # whose sum then is in range
        shares = (weights / weights.sum()).astype(x.dtype)
        task = Task(x, shares, slopes, bend, bool(self.fit_intercept), self.tol, self.max_iter)
        start = Model(np.zeros((outputs, X.shape[1]), x.dtype), np.zeros(outputs, x.dtype))
        if not self.standardize:  # in the units of the data
            steepest = float(np.abs(task.gradient(start.weight, start.intercept)[0]).max())
            task = replace(task, tol=self.tol * steepest)
        if wanted is None:
            model = task.solve(projection, self.radius, start, task.curvature())
            self.radius_, self.n_iter_ = self.radius, model.steps
        else:
            search = Search(task, projection, start, task.curvature())
            self.radius_, model = search.exactly(wanted)
            self.n_iter_ = search.steps
        self.support_ = (model.weight != 0).any(axis=0)
        self.feature_importances_ = lengths(model.weight)
        self._warn(model, wanted, projection.tree.root.k is not None)
        if self.scaler_ is None:
            return model.weight, model.intercept
        with np.errstate(over="ignore"):
            weight = model.weight / self.scaler_.scale_.astype(x.dtype)
        if not np.all(np.isfinite(weight)):
            raise ValueError(
                f"coefficients in the units of X leave the range of {x.dtype}: scale X up first"
            )
        if not self.fit_intercept:
            return weight, model.intercept
        return weight, model.intercept - weight @ self.scaler_.mean_.astype(x.dtype)

    def _warn(self, model: Model, wanted: int | None, counts: bool) -> None:
        if not model.settled:
            help_ = "take more" if self.standardize else "take more, or standardize=True"
            if counts:
                help_ = (
                    "l0 bounds how many features there are, and not their coefficients, which may "
                    "grow without end; n_features_to_select bounds both"
                )
            warnings.warn(
                f"max_iter={self.max_iter} steps did not reach tol={self.tol}: {help_}",
                ConvergenceWarning,
                stacklevel=4,
            )
        if wanted is not None and kept(model) < wanted:
            warnings.warn(
                f"no radius was found that leaves {wanted} features: radius_={self.radius_:.4g} "
                f"leaves {kept(model)}, and larger ones no more",
                stacklevel=4,
            )

    def _scores(self, X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=DTYPES, reset=False)
        return np.asarray(X @ self.coef_.T + self.intercept_)

    @abstractmethod
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ProjectedLinear:
        """Fit to `X`, of shape (samples, features), and `y`."""


class ProjectedLogisticRegression(ClassifierMixin, ProjectedLinear):
    """Logistic regression whose coefficients stay in a ball, so that it finds the features which
    matter: multinomial where there are more than two classes.

    The coefficients, of shape (classes, features) or for two classes (1, features), have the least
    mean cross-entropy in the ball, if the spec's projection gives nearest points
    (``projgen.build(spec).is_euclidean``): with ``l1(l2(axis=0))`` that is the group lasso, and of
    two classes the lasso. ``projgen.build("l1(linf(axis=0))", exact=True)`` is another. With
    projections level by level, such as the spec ``l1(linf(axis=0))``, it is a point that a step of
    gradient and projection does not move, and the features that are left may be others.

    Args:
        spec: the norm tree of the coefficients, or what `projgen.build` made of one.
        radius: of the ball, in the units of coefficients for features of variance 1: the smaller,
            the fewer features. None where the spec has the count of l0.
        n_features_to_select: how many features are left, or which part of them as a float in
            (0, 1]. The radius is searched for then, and `radius` is not used.
        standardize: whether features are brought to mean 0 and variance 1 first, as the ball treats
            them all alike. `coef_` is in the units of `X` nevertheless.
        fit_intercept: whether there is an intercept, which the ball has no part in. If not,
            features keep their mean.
        max_iter: the most steps, for one radius.
        tol: it ends when no entry of the gradient, but for what the ball takes of it, is larger; if
            not `standardize`, than this part of the largest at coefficients of 0.
        class_weight: weights of classes: a dict, ``"balanced"`` or None.

    Attributes:
        classes_: the classes.
        coef_: the coefficients, in the units of `X`: of shape (classes, features), or for two
            classes (1, features).
        intercept_: the intercepts: of shape (classes,), or for two classes (1,).
        support_: bool, which features are left.
        feature_importances_: the Euclidean length of each feature's coefficients, for features of
            variance 1.
        radius_: the ball's radius, given or found; None where the spec has the count of l0.
        scaler_: the fitted StandardScaler, or None.
        n_iter_: how many steps it took, for all radii that were tried.
        n_features_in_: how many features it was fitted with.
        feature_names_in_: their names, if the data had any.
    """

    classes_: Array

    def __init__(
        self,
        spec: Any = "l1(l2(axis=0))",
        radius: float | None = 10.0,
        *,
        n_features_to_select: float | None = None,
        standardize: bool = True,
        fit_intercept: bool = True,
        max_iter: int = 5000,
        tol: float = 1e-4,
        class_weight: Any = None,
    ) -> None:
        super().__init__(
            spec,
            radius,
            n_features_to_select=n_features_to_select,
            standardize=standardize,
            fit_intercept=fit_intercept,
            max_iter=max_iter,
            tol=tol,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ProjectedLogisticRegression:
        """Fit to `X`, of shape (samples, features), and the classes `y`.

        Raises:
            SpecError: the spec does not fit coefficients (classes, features), or makes no feature
                zero.
            TypeError, ValueError: a parameter, `X` or `y` is wrong.

        A ConvergenceWarning if `max_iter` steps are not enough; a UserWarning if no radius leaves
        as many features as were asked for.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES)
        check_classification_targets(y)
        X, y, weights = _counted(X, y, sample_weight)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has one class, {classes.tolist()[0]!r}: a classifier needs two")
        self.classes_ = classes
        own = weights_of_classes(self.class_weight, self.classes_, y)
        weights = weights * own[codes]
        if len(self.classes_) == 2:
            ones = codes[:, None].astype(X.dtype)
            found = self._minimise(X, weights, 1, lambda scores: expit(scores) - ones, 1 / 4)
        else:
            ones = np.eye(len(self.classes_), dtype=X.dtype)[codes]
            found = self._minimise(
                X, weights, len(self.classes_), lambda scores: softmax(scores, axis=1) - ones, 1 / 2
            )
        self.coef_, self.intercept_ = found
        return self

    def decision_function(self, X: Any) -> Array:
        """The scores of the classes; of two classes one number for a sample, above 0 for the
        second."""
        scores = self._scores(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class: (samples, classes)."""
        scores = self._scores(X)
        if len(self.classes_) == 2:
            return np.hstack([expit(-scores), expit(scores)])
        found: Array = softmax(scores, axis=1)
        return found

    def predict(self, X: Any) -> Array:
        """The class of each sample."""
        scores = self._scores(X)
        second = scores[:, 0] > 0
        best = scores.argmax(axis=1) if len(self.classes_) > 2 else second.astype(int)
        found: Array = self.classes_[best]
        return found


class ProjectedLinearRegression(RegressorMixin, MultiOutputMixin, ProjectedLinear):
    """Linear regression whose coefficients stay in a ball, so that it finds the features which
    matter, the same for all outputs.

    The coefficients, of shape (outputs, features), have the least mean of squares in the ball, if
    the spec's projection gives nearest points; see `ProjectedLogisticRegression`. With
    ``l1(l2(axis=0))`` that is the multi-task lasso in its constrained form, and of one output the
    lasso.

    Args:
        spec: the norm tree of the coefficients, or what `projgen.build` made of one.
        radius: of the ball, in the units of coefficients for features and outputs of variance 1:
            the smaller, the fewer features. None where the spec has the count of l0.
        n_features_to_select: how many features are left, or which part of them as a float in
            (0, 1]. The radius is searched for then, and `radius` is not used.
        standardize: whether features and outputs are brought to mean 0 and variance 1 first, as
            the ball treats them all alike. `coef_` is in the units of `X` and `y` nevertheless.
        fit_intercept: whether there is an intercept, which the ball has no part in. If not,
            features and outputs keep their mean.
        max_iter: the most steps, for one radius.
        tol: it ends when no entry of the gradient, but for what the ball takes of it, is larger; if
            not `standardize`, than this part of the largest at coefficients of 0.

    Attributes:
        coef_: the coefficients, in the units of `X` and `y`: of shape (outputs, features), or for
            `y` of one dimension (features,).
        intercept_: the intercepts: of shape (outputs,), or for `y` of one dimension a number.
        support_: bool, which features are left.
        feature_importances_: the Euclidean length of each feature's coefficients, for features and
            outputs of variance 1.
        radius_: the ball's radius, given or found; None where the spec has the count of l0.
        scaler_: the fitted StandardScaler of the features, or None.
        n_iter_: how many steps it took, for all radii that were tried.
        n_features_in_: how many features it was fitted with.
        feature_names_in_: their names, if the data had any.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ProjectedLinearRegression:
        """Fit to `X`, of shape (samples, features), and `y`: (samples,) or (samples, outputs).

        Raises:
            SpecError: the spec does not fit coefficients (outputs, features), or makes no feature
                zero.
            TypeError, ValueError: a parameter, `X` or `y` is wrong.

        A ConvergenceWarning if `max_iter` steps are not enough; a UserWarning if no radius leaves
        as many features as were asked for.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES, multi_output=True, y_numeric=True)
        X, y, weights = _counted(X, y, sample_weight)
        outputs = (y[:, None] if y.ndim == 1 else y).astype(X.dtype)
        with np.errstate(over="ignore"):
            if not np.all(np.isfinite(np.square(outputs))):
                raise ValueError(f"squares of y leave the range of {X.dtype}: scale it down first")
        size, shift = np.ones(outputs.shape[1], X.dtype), np.zeros(outputs.shape[1], X.dtype)
        if self.standardize:
            scaler = fitted_scaler(outputs, weights, with_mean=bool(self.fit_intercept))
            outputs = scaler.transform(outputs)
            size = scaler.scale_.astype(X.dtype)
            shift = scaler.mean_.astype(X.dtype) * self.fit_intercept
        weight, intercept = self._minimise(
            X, weights, len(size), lambda scores: scores - outputs, 1.0
        )
        self.coef_, self.intercept_ = weight * size[:, None], intercept * size + shift
        if y.ndim == 1:
            self.coef_, self.intercept_ = self.coef_[0], self.intercept_[0]
        return self

    def predict(self, X: Any) -> Array:
        """The outputs for each sample, in `y`'s shape."""
        return self._scores(X)


def _counted(X: Array, y: Array, sample_weight: Any) -> tuple[Array, Array, Array]:
    """`X`, `y` and weights of the samples that have any."""
    if sample_weight is None:
        return X, y, np.ones(len(X))
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not weights.any():
        raise ValueError("sample_weight is 0 for all samples")
    return X[weights > 0], y[weights > 0], weights[weights > 0]


__all__ = ["ProjectedLinearRegression", "ProjectedLogisticRegression"]
