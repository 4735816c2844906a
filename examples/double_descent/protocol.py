"""What is trained, on which part of the data, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from problems import Problem, load
from sklearn.feature_selection import f_classif
from sklearn.model_selection import StratifiedKFold, train_test_split

import projgen
from projgen.sklearn import ProjectedAutoencoderClassifier


@dataclass(frozen=True)
class Method:
    """A way to have fewer features: a projection, or a ranking before the network is trained."""

    key: str
    label: str
    spec: str | None = None
    exact: bool = False
    every: str = "end"
    ranking: str | None = None

    @property
    def projection(self) -> projgen.Projection | None:
        """The same one in all trainings of a process, so that it is set up once."""
        return None if self.spec is None else projection(self.spec, self.exact)


@cache
def projection(spec: str, exact: bool) -> projgen.Projection:
    """On one thread: other trainings have the other cores."""
    return projgen.build(spec, exact=exact, threads=1)


METHODS = (
    Method("none", "no projection"),
    Method("linf", "l1(linf) bi-level", "l1(linf(axis=0))"),
    Method("exact", "l1(linf) exact", "l1(linf(axis=0))", exact=True),
    Method("l1", "l1(l1) bi-level", "l1(l1(axis=0))"),
    Method("l2", "l1(l2)", "l1(l2(axis=0))"),
    Method("epoch", "l1(linf) bi-level, each epoch", "l1(linf(axis=0))", every="epoch"),
    Method("anova", "ANOVA F-test", ranking="anova"),
    Method("random", "random features", ranking="random"),
)
BY_KEY = {method.key: method for method in METHODS}


@dataclass(frozen=True)
class Scale:
    """How much is run.

    ``radii`` are percentages of the norm that the layer has in the beginning, ``kept`` percentages
    of the features that rankings keep; projections alone are timed for some ``seconds`` each, and
    the papers' matrices have so many ``columns``.
    """

    seeds: dict[str, int]  # how many, for each problem
    folds: int = 4
    epochs: int = 30
    hidden: int = 100
    radii: tuple[float, ...] = (0.1, 0.3, 1, 3, 10)
    kept: tuple[float, ...] = (0.3, 1, 3, 10, 30)
    batch_size: int = 32
    learning_rate: float = 5e-4
    seconds: float = 2.0
    columns: tuple[int, ...] = (1000, 2000, 4000, 8000)

    def settings(self, method: Method) -> tuple[float, ...]:
        if method.spec:
            return self.radii
        return self.kept if method.ranking else (100.0,)


FULL = Scale({"made64": 1, "made16": 1, "pbmc": 1, "khan": 2})
QUICK = Scale({"tiny": 1}, folds=2, epochs=6, hidden=10, radii=(3, 30), kept=(10,),
              batch_size=8, learning_rate=5e-3,
              seconds=0.0, columns=(4, 8))  # fmt: skip


class Job(NamedTuple):
    """All settings of one method, on one fold of one seed."""

    problem: str
    seed: int
    fold: int
    method: str
    scale: Scale
    khan: Path | None


class Row(NamedTuple):
    """One trained network. Precision and recall are of informative features, where they are known,
    and precision is NaN if no feature is left."""

    problem: str
    seed: int
    fold: int
    method: str
    setting: float
    features: int
    left: int
    validation_size: int
    validation: float
    test: float
    precision: float
    recall: float
    fit_seconds: float
    projection_seconds: float
    projections: int


def jobs(
    scale: Scale,
    names: Iterable[str],
    khan: Path | None,
    *,
    seeds: int | None = None,
    folds: int | None = None,
) -> list[Job]:
    """The long ones first, so that processes end together. Of seeds, and of the folds of each, no
    more than `seeds` and `folds`."""
    found = [
        Job(name, seed, fold, method.key, scale, khan)
        for name in names
        for seed in range(scale.seeds[name])[:seeds]
        for fold in range(scale.folds)[:folds]
        for method in METHODS
    ]
    return sorted(found, key=cost, reverse=True)


def cost(job: Job) -> float:
    """About how long a job takes, in a unit of its own: entries times epochs."""
    x, method = load(job.problem, job.seed, job.khan).x, BY_KEY[job.method]
    return x.size * len(job.scale.settings(method)) * (2 if method.spec else 1)


def run(job: Job) -> list[Row]:
    """A row for each setting. All methods have the same parts, initial weights and batches."""
    torch.set_num_threads(1)
    problem = load(job.problem, job.seed, job.khan)
    parts = split(problem, job.seed, job.fold, job.scale.folds)
    method, state = BY_KEY[job.method], 100 * job.seed + job.fold
    # A short training sets the projection up, which is not timed.
    _fit(method, job.scale.radii[-1], problem.x[parts.train[:50]], problem.y[parts.train[:50]],
         state, replace(job.scale, epochs=1))  # fmt: skip
    return [_row(job, setting, problem, parts, state) for setting in job.scale.settings(method)]


class Parts(NamedTuple):
    """Indices of samples: to train on, to choose the radius, and to report."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split(problem: Problem, seed: int, fold: int, folds: int) -> Parts:
    """One fold is the test; of the others a fifth is for validation."""
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    rest, test = list(splitter.split(problem.x, problem.y))[fold]
    train, validation = train_test_split(
        rest, test_size=0.2, stratify=problem.y[rest], random_state=seed
    )
    return Parts(train, validation, test)


def _row(job: Job, setting: float, problem: Problem, parts: Parts, state: int) -> Row:
    method = BY_KEY[job.method]
    keep = np.ones(problem.x.shape[1], bool)
    if method.ranking:
        keep = _ranked(method.ranking, problem, parts.train, setting, state)
    # Features that are not kept are zero, so that the network has its size and initial weights.
    x = problem.x * keep
    model = _fit(method, setting, x[parts.train], problem.y[parts.train], state, job.scale)
    left = keep & model.support_
    informative = problem.informative
    hits = math.nan if informative is None else float((left & informative).sum())
    return Row(
        problem=job.problem,
        seed=job.seed,
        fold=job.fold,
        method=job.method,
        setting=setting,
        features=len(left),
        left=int(left.sum()),
        validation_size=len(parts.validation),
        validation=model.score(x[parts.validation], problem.y[parts.validation]),
        test=model.score(x[parts.test], problem.y[parts.test]),
        precision=hits / left.sum() if left.any() else math.nan,
        recall=math.nan if informative is None else hits / informative.sum(),
        fit_seconds=model.fit_seconds_,
        projection_seconds=model.projection_seconds_,
        projections=model.n_projections_,
    )


def _fit(
    method: Method, setting: float, x: NDArray[np.float32], y: NDArray[np.int64], state: int,
    scale: Scale,
) -> ProjectedAutoencoderClassifier:  # fmt: skip
    """The papers' network and double descent; of other methods the first phase is all there is."""
    model = ProjectedAutoencoderClassifier(
        method.projection,
        f"{setting}%" if method.spec else None,
        hidden=scale.hidden,
        activation="silu",
        reconstruction=5e-5,
        epochs=scale.epochs,
        rewound_epochs=scale.epochs,
        learning_rate=scale.learning_rate,
        batch_size=scale.batch_size,
        every=method.every,
        standardize=True,
        random_state=state,
    )
    return model.fit(x, y)


def _ranked(
    ranking: str, problem: Problem, train: NDArray[np.int64], percent: float, state: int
) -> NDArray[np.bool_]:
    """`percent` of the features, at least one: by their F-test on the training part, or any."""
    x = problem.x[train]
    if ranking == "anova":
        varies = np.ptp(x, axis=0) > 0  # the test is undefined for constants
        scores = np.zeros(x.shape[1])
        scores[varies] = f_classif(x[:, varies], problem.y[train])[0]
    else:
        scores = np.random.default_rng(state).random(x.shape[1])
    count = max(1, round(percent / 100 * len(scores)))
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep


# The choice


def chosen(rows: Iterable[Row]) -> Iterator[Row]:
    """Of each method on each fold, the row that validation chooses, without a look at the test.

    It is the rule of one standard error (Breiman et al. 1984): the fewest features whose accuracy
    is at most one standard error of the best one's below the best. The error is that of Agresti and
    Coull (1998), with two successes and two failures added: without them it is 0 for a best of 1,
    which few samples make likely.
    """

    def key(row: Row) -> tuple[str, str, int, int]:
        return row.problem, row.method, row.seed, row.fold

    for _, group in groupby(sorted(rows, key=key), key):
        candidates = list(group)
        best = max(row.validation for row in candidates)
        n = candidates[0].validation_size
        centre = (best * n + 2) / (n + 4)
        error = math.sqrt(centre * (1 - centre) / (n + 4))
        yield min(
            (row for row in candidates if row.validation >= best - error),
            key=lambda row: (row.left, row.setting),
        )
