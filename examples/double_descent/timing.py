"""How long projections take, in one run, in which all that is timed takes turns."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problems import load
from protocol import BY_KEY, Job, Method

import projgen
from projgen.bench import numpy_projection
from projgen.bind import bind
from projgen.sklearn import ProjectedAutoencoderClassifier

TIMED = ("linf", "exact", "l1", "l2")
RADIUS = 3  # percent of the norm that the layer has in the beginning

Array = NDArray[Any]
Quartiles = tuple[float, float, float]


def compile_seconds() -> dict[str, float]:
    """What each method's first projection of a layer takes, where no kernel is kept yet.

    To be called in a process of its own, whose PROJGEN_CACHE_DIR is empty. What all kernels share,
    such as importing Numba, falls on the first.
    """
    taken = {}
    for key in TIMED:
        weight = np.random.default_rng(0).standard_normal((100, 1000)).astype(np.float32)
        taken[key] = _seconds(partial(_projection(BY_KEY[key]), weight, 1.0, out=weight))
    return taken


def set_up_seconds(times: int = 5) -> dict[str, float]:
    """What the first call of each method's projection takes more than the next, where the kernel is
    loaded: a new `Projection` makes itself ready for the shape. The median of some `times`."""
    weight = np.random.default_rng(0).standard_normal((100, 1000)).astype(np.float32)
    found = {}
    for key in TIMED:
        method, taken = BY_KEY[key], []
        for _ in range(times + 1):
            p = projgen.build(method.spec, exact=method.exact, threads=1)
            first, second = (_seconds(partial(p, weight, 1.0, out=weight)) for _ in range(2))
            taken.append(first - second)
        found[key] = float(np.median(taken[1:]))  # the first of all loads the kernel
    return found


def layer(job: Job, seconds: float) -> dict[str, Any]:
    """The first layer of a problem's network as it is after the first phase, projected in place."""
    problem = load(job.problem, job.seed, job.khan)

    def weight(epochs: int, rate: float) -> Array:
        model = ProjectedAutoencoderClassifier(
            None, None, hidden=job.scale.hidden, epochs=epochs, learning_rate=rate,
            batch_size=job.scale.batch_size, random_state=0,
        ).fit(problem.x, problem.y)  # fmt: skip
        return np.ascontiguousarray(model.module_.encoder[0].weight.detach().numpy())

    trained, initial = weight(job.scale.epochs, job.scale.learning_rate), weight(1, 1e-12)
    work = np.empty_like(trained)
    calls: dict[str, Callable[[], object]] = {"copy": partial(np.copyto, work, trained)}
    left = {}
    for key in TIMED:
        p = _projection(BY_KEY[key])
        radius = RADIUS / 100 * float(p.norm(initial))
        calls[key] = partial(p, work, radius, out=work)
        left[key] = int(p(trained, radius).any(axis=0).sum())
    times = _take_turns(calls, seconds, lambda: np.copyto(work, trained))
    return {"problem": job.problem, "shape": trained.shape, "left": left, "times": times}


def uniform(columns: int, seconds: float) -> dict[str, Any]:
    """The papers' matrices: uniform on [0, 1], 1000 rows, float64, radius 1; columns are groups."""
    y = np.random.default_rng(columns).random((1000, columns))
    out = np.empty_like(y)
    bilevel, exact = (_projection(BY_KEY[key]) for key in ("linf", "exact"))
    binding = bind(bilevel.tree, 2)
    calls: dict[str, Callable[[], object]] = {
        "copy": partial(np.copyto, out, y),
        "linf": partial(bilevel, y, 1.0, out=out),
        "exact": partial(exact, y, 1.0, out=out),
        "numpy": partial(numpy_projection, binding, y, 1.0),
    }
    left = {key: int(p(y, 1.0).any(axis=0).sum())
            for key, p in (("linf", bilevel), ("exact", exact))}  # fmt: skip
    return {"columns": columns, "left": left, "times": _take_turns(calls, seconds)}


def _projection(method: Method) -> projgen.Projection:
    found = method.projection
    assert found is not None
    return found


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _take_turns(
    calls: dict[str, Callable[[], object]],
    seconds: float,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, Quartiles]:
    """Quartiles of each call's milliseconds; `prepare` comes before each, and is not timed."""
    taken: dict[str, list[float]] = {key: [] for key in calls}
    for call in calls.values():  # kernels are loaded, pages touched
        prepare()
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["copy"]) < 3:
        for key, call in calls.items():
            prepare()
            taken[key].append(1000 * _seconds(call))
    return {key: tuple(np.quantile(ms, (0.25, 0.5, 0.75)).tolist()) for key, ms in taken.items()}


def machine() -> dict[str, Any]:
    """Where this runs, for the record."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name) for name in ("torch", "scikit-learn", "numpy", "numba")},
        },
    }


def load_average() -> float | None:
    """Processes that wanted a processor over the last minute; None where nobody counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
