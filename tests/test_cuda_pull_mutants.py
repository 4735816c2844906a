"""The proof of gradients on a GPU is proved: ways back with one fault each, all of them caught.

See `test_cuda_mutants`. The arrays have what each fault needs: equal largest values, groups of
zeros, groups that vanish, others inside their balls; and every lane has work.
"""

import re
from collections.abc import Iterator

import cuda_support
import numpy as np
import pytest
from cuda_support import build_all, compiled_pull, needs_simt, pull
from simt.build import BuildError
from simt.run import Simt, SimtError
from support import Array, norm
from test_cuda_mutants import BARRIER, RACE, Kernel, Mutant, _quick
from test_cuda_pulls import gradient_like, judged

pytestmark = needs_simt

ROWS = ("l1(linf)", ((40, 512), (37, 509)))
COLUMNS = ("l1(linf(axis=0))", ((192, 64), (131, 60)))
MEANS = ("l1(l1)", ((24, 416), (19, 405)))
SHORT = ("l1(l2)", ((512, 7), (317, 7)))
DEEP = ("l2(l1(linf))", ((6, 11, 40),))
PIECES = ("l1", ((64, 1024), (61, 1021)))
KERNELS: tuple[Kernel, ...] = (ROWS, COLUMNS, MEANS, SHORT, DEEP, PIECES)

MUTANTS = [
    Mutant("dropped barrier before a read", ROWS, BARRIER, "\n", sees=RACE),
    Mutant(
        "dropped barrier between up and down",
        ROWS,
        "    }\n    __syncthreads();\n",
        "    }\n",
        sees=RACE,
    ),
    Mutant(
        "dropped barrier in a tree of columns",
        COLUMNS,
        "half /= 2) {\n        __syncthreads();",
        "half /= 2) {",
        sees=RACE,
    ),
    Mutant("dropped barrier after a tile", SHORT, "    __syncthreads();\n", "\n", 1, RACE),
    Mutant("missing shuffle step", ROWS, "away = 16", "away = 8"),
    Mutant("wrong mask", ROWS, "0xffffffffu", "0x7fffffffu", sees="without the calling lane 31"),
    Mutant("no tail", ROWS, "i = head + 4 * packs + along; i < count", "i = count; i < count"),
    Mutant(
        "no tail in sweep 2",
        ROWS,
        "i = head + 4 * packs + along; i < count",
        "i = count; i < count",
        1,
    ),
    Mutant(
        "off by one past the end", ROWS, "along; i < packs", "along; i <= packs", sees="outside"
    ),
    Mutant("wrong stride", ROWS, "at = g * geo.s0_1", "at = g * geo.s0_1 / 2", 1),
    Mutant("no end of columns", COLUMNS, "if (column < geo.n1_1) {", "{", sees="outside"),
    Mutant("a piece too short", PIECES, "min(begin + geo.step_0, ", "min(begin + geo.step_0 - 1, "),
    Mutant("blocks that write one slot", PIECES, "blockIdx.y * geo.groups_0", "0", sees=RACE),
    Mutant("a slot left out", PIECES, "int slot = 0", "int slot = 1"),
    Mutant("ties that do not share", ROWS, "/ max(ties_1[at], (index)1)", ""),
    Mutant("ties of another group", ROWS, "ties_1[at]", "ties_1[at ^ 1]"),
    Mutant("a clipped value moves", ROWS, "fabsf(y) <= bound", "fabsf(y) <= 2 * bound"),
    Mutant("a sign forgotten", ROWS, "y < 0 ? -g : g", "g"),
    Mutant("largest values without magnitudes", ROWS, "fabsf(y) == top", "y == top"),
    Mutant("groups of zeros that revive", ROWS, "|| (below == 0.0 && rose == 0.0)", ""),
    Mutant("zeros that count as survivors", ROWS, "below > 0.0 && left > 0", "left > 0", 1),
    Mutant("a mean of too many", MEANS, "n += x_one != 0", "n += 1"),
    Mutant("a mean of another group", MEANS, "mean_1[g]", "mean_1[g ^ 1]"),
    Mutant("nothing rises to what was thinned out", MEANS, "y != 0 ?", "x != 0 ?"),
    Mutant("a survivor at the floor", MEANS, "!(fabsf(x) <= floor)", "!(fabsf(x) < floor)"),
    Mutant("a group of the wrong length", SHORT, "threadIdx.x * 7 + i", "threadIdx.x * 6 + i"),
    Mutant("no part along the group", SHORT, "+ y * unit * tilt", ""),
    Mutant("a unit too large", SHORT, "y * unit * dx", "y * unit * dx * 2"),
    Mutant("what rises is not halved", DEEP, "part * dx", "dx"),
    Mutant("a rise of another group", DEEP, "r0[group]", "r0[group ^ 1]"),
    Mutant("uninitialised sum", ROWS, "double a = 0.0;", "double a;"),
]


def arrays(kernel: Kernel) -> Iterator[Array]:
    """Of each kind of groups some: the largest value lies near their ends, in another for each."""
    spec, shapes = kernel
    for seed, shape in enumerate(shapes):
        values = np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)
        rows = values.reshape(-1, shape[-1])
        for row in range(rows.shape[0]):
            place = row // 2 if row % 2 else -1 - row // 2
            rows[row, place % shape[-1]] = (1.5 + row / shape[0]) * (-1) ** (row // 3)
        rows[3, -3:] = rows[3, 0] = -2.5  # equal ones
        rows[5] *= 1e-3
        rows[7] = 0
        values[..., 2] *= 1e-3
        if "axis=0" in spec:
            values[:, 4] = 0
            values[::9, 8] = -2.5
        if len(shape) == 3:
            values[2] = 0
            values[4] *= 1e-2
        yield values


def judge(kernel: Kernel, mutant: Mutant | None = None) -> None:
    """Run a kernel, or a mutant of it, on all its arrays, and ask the oracle about the results."""
    spec, _ = kernel
    for seed, y in enumerate(arrays(kernel)):
        made = compiled_pull(spec, y, "float32")
        source = mutant.source(made.source) if mutant else made.source
        for fraction in (0.05, 0.9):
            radius = fraction * float(norm(spec, y))
            dx = gradient_like(y, "float32")
            judged(
                spec, y, radius, dx, pull(spec, y, radius, dx, seed=seed, source=source), "float32"
            )


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_without_a_fault_pass(kernel: Kernel) -> None:
    build_all(compiled_pull(kernel[0], y, "float32").source for y in arrays(kernel))
    judge(kernel)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    program = cuda_support.program

    def quick(source: str, machine: str = "fibers", fused: bool = False) -> Simt:
        """A mutant may have no end."""
        forward = "projects float32" in source
        return program(source) if forward else _quick(source, machine, fused)

    monkeypatch.setattr(cuda_support, "program", quick)
    with pytest.raises((SimtError, BuildError, AssertionError)) as caught:
        judge(mutant.kernel, mutant)
    report = str(caught.value)
    assert "the kernel has no" not in report
    if isinstance(caught.value, BuildError):
        assert "uninitialised" in mutant.fault, report
    if mutant.sees:
        assert re.search(mutant.sees, report)
