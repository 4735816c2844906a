"""TEMPORARY until merged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from projgen import interpret as i


class Reference(NamedTuple):
    norm: Callable[..., Any]
    ball: Callable[..., Any]


def _l1w(a, axes, weights=None):
    return i._l1(a if weights is None else a * weights, axes)


def _l1bw(a, axes, radius, weights=None):
    if weights is None:
        return i._l1_ball(a, axes, radius)
    lo = np.zeros_like(radius) + 0
    hi = (
        np.max(
            np.where(weights > 0, a / np.where(weights > 0, weights, 1), 0),
            axis=axes,
            keepdims=True,
        )
        + 0 * radius
    )
    for _ in range(200):
        m = (lo + hi) / 2
        s = (weights * np.maximum(a - weights * m, 0)).sum(axis=axes, keepdims=True)
        lo = np.where(s > radius, m, lo)
        hi = np.where(s > radius, hi, m)
    return np.maximum(a - weights * hi, 0)


def _linf_bw(a, axes, radius, weights=None):
    return np.minimum(
        a,
        radius
        if weights is None
        else np.where(weights > 0, radius / np.where(weights > 0, weights, 1), np.inf),
    )


def _linfw(a, axes, weights=None):
    return i._linf(a if weights is None else a * weights, axes)


REFERENCES = {
    "l1": Reference(_l1w, _l1bw),
    "l2": Reference(i._l2, i._l2_ball),
    "linf": Reference(_linfw, _linf_bw),
}
