"""Time the way back through projections on this machine, beside the projections themselves.

    python benchmarks/gradients.py [--quick] [--only TEXT]

Entries are Gaussian, the radius is a tenth of the norm, one thread. All take turns in one run. The
last column is the way back in times of the projection that keeps a tape for it.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import projgen
from projgen.terminal import format_shape

CASES: tuple[tuple[str, Any], ...] = (
    ("l1(linf)", (1000, 1000)),
    ("l1(linf(axis=0))", (1000, 1000)),
    ("l1(l2)", (1000, 1000)),
    ("l1(l2(axis=0))", (1000, 1000)),
    ("l1(l1)", (1000, 1000)),
    ("l1(l1(axis=0))", (1000, 1000)),
    ("l1(l2(linf))", (64, 128, 128)),
    ("l1(linf(axis=(1, 2, 3)))", (256, 128, 3, 3)),
    ("l1(l2(linf(axis=(2, 3))))", (128, 128, 3, 3)),
    ("l1", (1_000_000,)),
    ("l1(enc=linf(axis=1), dec=linf(axis=0))", {"enc": (1000, 1000), "dec": (100, 1000)}),
    ("l1(enc=linf(axis=1), dec=2.0*l2(axis=0))", {"enc": (1000, 1000), "dec": (100, 1000)}),
    ('l1(linf @ "*")', {f"w{i}": (64, 64) for i in range(20)}),
    ("l1(linf(axis=1, block=4))", (1000, 1000)),
    ("l1(linf, nonneg=True)", (1000, 1000)),
    *(
        (f"l1({norm}axis={axis}, w=w))", (1000, 1000))
        for norm in ("l1(", "l2(", "linf(", "lp(p=1.5, ")
        for axis in (1, 0)
    ),
    *(
        (f"l1({norm}axis={axis}, groups=q))", (1000, 1000))
        for norm in ("l1(", "l2(", "linf(", "lp(p=1.5, ")
        for axis in (1, 0)
    ),
    *(
        (f"{norm}axis={axis})", (1000, 1000))
        for norm in ("simplex(", "l0(k=100, ", "simplex(groups=q, ", "l0(groups=q, k=9, ")
        for axis in (1, 0)
    ),
    ("l1(lp(axis=1, p=1.5))", (1000, 1000)),
    ("l1(lp(axis=0, p=1.5))", (1000, 1000)),
    ("simplex", (1_000_000,)),
    ("l0(axis=2, k=2)", (1000, 250, 4)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few turns of each")
    parser.add_argument("--only", default="", help="cases whose spec has this text")
    options = parser.parse_args()
    turns = 5 if options.quick else 60
    print(f"{'':62} {'copy':>8} {'project':>8} {'back':>8}  us, and back / project")
    for dtype in ("float32", "float64"):
        for spec, shape in CASES:
            if options.only not in spec:
                continue
            seconds = timed(spec, shape, dtype, turns)
            micros = " ".join(f"{1e6 * s:8.0f}" for s in seconds)
            shown = f"{len(shape)} arrays" if isinstance(shape, dict) else format_shape(shape)
            label = f"{spec:42} {shown:>12} {dtype}"
            print(f"{label} {micros}  {seconds[2] / seconds[1]:.2f}", flush=True)


def timed(spec: str, shape: Any, dtype: str, turns: int) -> list[float]:
    """Medians of a copy, a projection that keeps its tape, and the way back."""
    generator = np.random.default_rng(0)
    shapes = shape if isinstance(shape, dict) else {"": shape}
    ys, gs = (
        {key: generator.standard_normal(each).astype(dtype) for key, each in shapes.items()}
        for _ in range(2)
    )
    y, g = (ys, gs) if isinstance(shape, dict) else (ys[""], gs[""])
    named = {"w": 0.1 + np.abs(generator.standard_normal(1000)), "q": np.arange(1000) % 50}
    p = projgen.build(spec, threads=1)
    given = {name: named[name] for name in p.tree.bound_names}
    radius = None if p.tree.root.k else 0.1 * np.asarray(p.norm(y, **given))
    outs = {key: np.empty_like(each) for key, each in ys.items()}

    def copy() -> None:
        for key, out in outs.items():
            np.copyto(out, ys[key])

    _, pullback = p.vjp(y, radius, **given)
    calls = (copy, partial(p.vjp, y, radius, **given), partial(pullback, g))
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 2):
        for call, own in zip(calls, times, strict=True):
            started = perf_counter()
            made: Any = call()
            own.append(perf_counter() - started)
            del made
        if turn < 2:  # kernels are loaded, threads wake
            times = [[] for _ in calls]
    return [median(own) for own in times]


if __name__ == "__main__":
    main()
