"""Linear models whose weights stay in a ball: accelerated projected gradients.

FISTA (Beck and Teboulle, 2009) with the restarts of O'Donoghue and Candès (2015), which need no
values of the loss; on the features that seem to matter, and others as they turn out to (working
sets, as in Massias, Gramfort and Salmon's Celer, 2018). With nearest points and a convex ball that
finds a minimum. Level by level, as with ``l1(linf)``, it finds a point that a step does not move,
which need not be one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh

from projgen.projection import Projection

Array = NDArray[Any]
SLACK = 1.01  # how much more than Lanczos says the curvature may be
FEW = 100  # features to begin with


@dataclass(frozen=True, slots=True)
class Model:
    """Scores of samples are ``x @ weight.T + intercept``. ``weight`` has shape (outputs, features).

    ``steps`` is how many it took to find it; ``settled`` whether they went as far as was asked.
    """

    weight: Array
    intercept: Array
    steps: int = 0
    settled: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """The mean loss of samples ``x`` (samples, features), with ``shares`` of it that sum to 1.

    ``slopes`` takes scores (samples, outputs) to the derivatives of each sample's loss; ``bend`` is
    the most by which these can change with the scores.
    """

    x: Array
    shares: Array
    slopes: Callable[[Array], Array]
    bend: float
    fit_intercept: bool
    tol: float
    max_iter: int

    def only(self, features: Array) -> Task:
        """The same with some features."""
        return replace(self, x=np.ascontiguousarray(self.x[:, features]))

    def curvature(self) -> float:
        """The most by which the gradient can change: `bend` times the largest eigenvalue of the
        features' second moments, with a feature of ones for the intercept."""
        x, shares = self.x, self.shares

        def moments(direction: Array) -> Array:
            v = direction.ravel().astype(x.dtype)
            scores = shares * (x @ v[:-1] + v[-1])
            return np.append(scores @ x, scores.sum())

        size = x.shape[1] + 1
        operator = LinearOperator((size, size), matvec=moments, dtype=x.dtype)
        begin = np.append(shares @ x, 1).astype(x.dtype)
        begin += np.cos(np.arange(size))  # no feature's own direction, and the same each time
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.all(np.isfinite(moments(begin))):
                raise ValueError(
                    f"squares of the features leave the range of {x.dtype}: scale them down first"
                )
        (largest,) = eigsh(operator, k=1, v0=begin, tol=1e-3, return_eigenvectors=False)
        return SLACK * self.bend * float(largest)

    def gradient(self, weight: Array, intercept: Array) -> tuple[Array, Array]:
        """The gradients of both."""
        slopes = self.slopes(self.x @ weight.T + intercept) * self.shares[:, None]
        return slopes.T @ self.x, slopes.sum(axis=0) * self.fit_intercept

    def solve(self, projection: Projection, radius: Any, start: Model, curvature: float) -> Model:
        """The model in the ball, from `start` on, which is in it; `curvature` is the task's.

        It has settled when no entry of the gradient, but for what the ball takes of it, is above
        `tol`.
        """
        if any(node.block or node.groups for node in projection.tree.levels):
            return self.descend(projection, radius, start, curvature)  # features have their places
        model, steps = start, 0
        chosen: Array = np.any(model.weight, axis=0)
        while True:
            new = model.weight - self.gradient(model.weight, model.intercept)[0] / curvature
            projection(new, radius, out=new)
            moved = np.abs(new).max(axis=0) * curvature * ~chosen
            fresh = np.flatnonzero(moved > self.tol)
            if steps and (not fresh.size or not model.settled):
                return replace(model, steps=steps)
            most = max(FEW, 2 * int(model.weight.any(axis=0).sum()))
            chosen[fresh[np.argsort(-moved[fresh], kind="stable")[:most]]] = True
            chosen[0] |= not chosen.any()  # an intercept has to be found all the same
            features = np.flatnonzero(chosen)
            task = replace(self.only(features), max_iter=max(1, self.max_iter - steps))
            own = np.ascontiguousarray(model.weight[:, features])
            few = task.descend(projection, radius, Model(own, model.intercept), task.curvature())
            weight = np.zeros_like(model.weight)
            weight[:, features] = few.weight
            steps += few.steps
            model = replace(few, weight=weight)

    def descend(self, projection: Projection, radius: Any, start: Model, curvature: float) -> Model:
        """As `solve`, with all features at once."""
        convex = all(node.norm != "l0" for node in projection.tree.levels)
        weight, intercept = start.weight, start.intercept
        ahead, ahead_intercept = weight, intercept
        momentum = 1.0
        for step in range(1, self.max_iter + 1):
            slope, slope_intercept = self.gradient(ahead, ahead_intercept)
            new = ahead - slope / curvature
            projection(new, radius, out=new)
            new_intercept = ahead_intercept - slope_intercept / curvature
            back, back_intercept = ahead - new, ahead_intercept - new_intercept
            left = max(np.abs(back).max(), np.abs(back_intercept).max()) * curvature
            if left <= self.tol:
                return Model(new, new_intercept, step)
            on, on_intercept = new - weight, new_intercept - intercept
            weight, intercept = new, new_intercept
            if not convex or np.vdot(back, on) + np.vdot(back_intercept, on_intercept) > 0:
                momentum, share = 1.0, 0.0
            else:
                before, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
                share = (before - 1) / momentum
            ahead = weight + share * on
            ahead_intercept = intercept + share * on_intercept
        return Model(weight, intercept, self.max_iter, settled=False)


__all__ = ["Model", "Task"]
