"""How many features: the radius at which so many are left, by bisection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from projgen.projection import Projection
from projgen.sklearn.descent import Array, Model, Task

CLOSE = 1e-4  # radii that differ by less than that part: what they part are ties
SMALL = 1e-6  # of the first radius: where features tie that come first of all
IDLE = 3  # times that the radius may double without another feature


@dataclass(slots=True, eq=False)
class Search:
    """Models of one task on radii that are tried one after the other, each from the last one."""

    task: Task
    projection: Projection
    start: Model
    curvature: float
    steps: int = 0

    @property
    def nothing(self) -> Model:
        """A model without features."""
        return Model(np.zeros_like(self.start.weight), np.zeros_like(self.start.intercept))

    def within(self, model: Model, radius: float) -> bool:
        """Whether the ball of this radius does not hold the model: nor do larger ones, then."""
        return bool(np.all(self.projection.norm(model.weight) < radius * (1 - CLOSE)))

    def model(self, radius: float, begin: Model | None = None) -> Model:
        """The model on `radius`, from the last one on, or from `begin`."""
        begin = begin or self.start
        weight = self.projection(begin.weight, radius)
        start = Model(weight, begin.intercept)
        self.start = self.task.solve(self.projection, radius, start, self.curvature)
        self.steps += self.start.steps
        return self.start

    def radius(self, wanted: int) -> tuple[float, Model]:
        """A radius that leaves `wanted` features, and its model.

        The next best are one that leaves more, but the fewest of all that were tried, where
        features tie; and the largest that was tried, where none leaves as many.
        """
        first = high = self._first()
        low = 0.0
        radius, model = high, self.model(high)
        most, idle = kept(model), 0
        while kept(model) < wanted and idle < IDLE and not self.within(model, high):
            low = high
            radius = high = 2 * high
            model = self.model(high)
            idle = idle + 1 if kept(model) <= most else 0
            most = max(most, kept(model))
        if kept(model) < wanted:
            # It has come from sparser models, in steps that end at `tol`: those features stayed out
            # that move it by less. A model that comes from nothing may have them.
            anew = self.model(high, self.nothing)
            model = anew if kept(anew) > kept(model) else model
        while kept(model) > wanted and low < high * (1 - CLOSE) and high > SMALL * first:
            middle = math.sqrt(low * high) if low else high / 2
            tried = self.model(middle)
            if kept(tried) < wanted:
                low = middle
                continue
            high = middle
            if kept(tried) < kept(model):
                radius, model = middle, tried
        return radius, model

    def _first(self) -> float:
        """A radius to begin with, in the units of the weights: the norm of a first step."""
        slope, _ = self.task.gradient(self.start.weight, self.start.intercept)
        return float(np.max(self.projection.norm(slope / self.curvature))) or 1.0

    def exactly(self, wanted: int) -> tuple[float, Model]:
        """As `radius`; of features that tie, those that have more weight are kept."""
        radius, model = self.radius(wanted)
        if kept(model) <= wanted:
            return radius, model
        first = np.argsort(-lengths(model.weight), kind="stable")[:wanted]
        features = np.sort(first)
        weight = self.projection(np.ascontiguousarray(model.weight[:, features]), radius)
        start = Model(weight, model.intercept)
        task = self.task.only(features)
        few = task.solve(self.projection, radius, start, self.curvature)
        self.steps += few.steps
        whole = np.zeros_like(model.weight)
        whole[:, features] = few.weight
        return radius, Model(whole, few.intercept, few.steps, few.settled)


def lengths(weight: Array) -> Array:
    """The Euclidean length of each feature's weights."""
    found: Array = np.linalg.norm(weight, axis=0)
    return found


def kept(model: Model) -> int:
    """How many features have weights that are not zero."""
    return int(np.count_nonzero(model.weight.any(axis=0)))


__all__ = ["Search", "kept", "lengths"]
