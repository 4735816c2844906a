"""What the estimators share: specs whose projections select features, and the selection."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted

from projgen.api import remembered
from projgen.arms import bind_arm
from projgen.errors import SpecError
from projgen.projection import Projection
from projgen.tree import Node, NormTree

FEATURES = 1  # the axis of a weight that has an index for each feature: (outputs, features)
VANISHING = 1e-140  # magnitudes below it have squares that float64 has no room for
ZEROING = {"l0", "l1", "simplex"}  # norms whose balls make values zero


class FeatureSelection(SelectorMixin, BaseEstimator):
    """An estimator whose ``support_`` says, once it is fitted, which features are left.

    `transform`, `inverse_transform`, `get_support` and `get_feature_names_out` are scikit-learn's.
    """

    support_: NDArray[np.bool_]

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        return self.support_


def read_projection(spec: Any, shape: tuple[int, int]) -> Projection:
    """The projection of `spec`, a spec or what `projgen.build` made of one, for a weight.

    `shape` is the weight's: (outputs, features).

    SpecError: it does not fit, or can make no feature zero.
    """
    if not isinstance(spec, (str, NormTree, Projection)):
        raise TypeError(f"spec is a spec, such as 'l1(linf(axis=0))', or what projgen.build made "
                        f"of one; got {type(spec).__name__}")  # fmt: skip
    projection = spec if isinstance(spec, Projection) else remembered(spec, False)
    nodes = projection.tree.levels
    if any(node.is_branch for node in nodes):
        raise SpecError(
            f"{projection.spec} takes several arrays, and here is one: the weight, of shape "
            f"(outputs, features) = {shape}",
            *_spans(nodes[:1]),
        )
    if names := projection.tree.bound_names:
        raise SpecError(
            f"{projection.spec} names {', '.join(names)}, which an estimator has no place for",
            *_spans(nodes[:1]),
            hint="projgen.torch.constrain takes such arrays",
        )
    arm = bind_arm(nodes, 2, "the weight", shape)
    owners = [owner for owner, axis in zip(arm.owners, arm.sources, strict=True)
              if axis == FEATURES]  # fmt: skip
    if not any(owner >= 0 and nodes[owner].norm in ZEROING for owner in owners):
        raise SpecError(
            f"{projection.spec} makes no feature zero: none of {', '.join(sorted(ZEROING))} spans "
            f"the features, which are axis 1 of the weight, of shape (outputs, features) = {shape}",
            *_spans(nodes[-1:]),
            hint="l1(linf(axis=0)) has a group for each feature, and so has l1(l2(axis=0))",
        )
    return projection


def _spans(nodes: Any) -> list[Any]:
    found: list[Node] = list(nodes)
    return [node.span for node in found if node.span]


def fitted_scaler(
    X: NDArray[Any], weights: NDArray[Any] | None = None, *, with_mean: bool = True
) -> StandardScaler:
    """A scaler for the columns of `X`, also for those so small that their variance is 0 in float64:
    it is taken of them times a power of two."""
    scaler = StandardScaler(with_mean=with_mean).fit(X, sample_weight=weights)
    top = np.abs(X).max(axis=0)
    small = (top > 0) & (top < VANISHING)
    if np.any(small):
        exponent = np.where(small, -np.frexp(top)[1], 0)
        scaler.fit(np.ldexp(X, exponent), sample_weight=weights)
        varies = scaler.var_ > 0
        scaler.scale_ = np.where(varies, np.ldexp(scaler.scale_, -exponent), 1.0)
        scaler.mean_ = np.ldexp(scaler.mean_, -exponent)
        scaler.var_ = np.ldexp(scaler.var_, -2 * exponent)
    return scaler


def weights_of_classes(class_weight: Any, classes: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """One for each class, by scikit-learn's rules; a ValueError if one is negative or all are 0."""
    weights = compute_class_weight(class_weight, classes=classes, y=y)
    if not (np.all(weights >= 0) and np.any(weights > 0) and np.all(np.isfinite(weights))):
        raise ValueError(
            f"class_weight has weights of at least 0, and some above: got {class_weight!r}"
        )
    found: NDArray[Any] = weights
    return found


def require_count(name: str, value: Any, least: int) -> int:
    """`value`, a whole number of at least `least`; TypeError and ValueError otherwise."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} is at least {least}, got {value}")
    return int(value)


def require_number(name: str, value: Any, *, above: bool) -> float:
    """`value`, a finite number above 0, or from 0 on; TypeError and ValueError otherwise."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is a number, not {value!r}")
    number = float(value)
    if not (number > 0 if above else number >= 0) or np.isinf(number):
        raise ValueError(f"{name} is a number {'above' if above else 'of at least'} 0, got {value}")
    return number
