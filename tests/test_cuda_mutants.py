"""The proof is proved: kernels with one fault each, all of which are caught.

A mutant is a generated kernel with one edit of its text. It must fail on some of the arrays that
the kernel itself passes on: by what the SIMT machine sees (races, barriers, masks, bounds, memory
that nobody wrote) or by the oracle's verdict. A mutant whose text is not found fails the test.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cuda_support
import numpy as np
import pytest
from cuda_support import build_all, compiled, needs_simt, run
from simt.build import BuildError
from simt.run import Simt, SimtError
from support import Array, assert_projected, lay_out, norm

pytestmark = needs_simt

# Two shapes for each kernel: one that whole accesses, warps and blocks divide, and one that none
# does. Every lane has work, since mutants hide in those that have none.
ROWS = ("l1(linf)", ((40, 512), (37, 509)))
SHORT = ("l1(linf)", ((300, 31), (129, 31)))
COLUMNS = ("l1(linf(axis=0))", ((64, 256), (67, 252)))
THRESHOLDS = ("linf(l1)", ((24, 416), (19, 405)))
SEARCH = ("l1", ((64, 1024), (61, 1021)))
PACKED = ("l1(l2)", ((512, 7), (317, 7)))
SUMS = ("l2(l1(axis=0))", ((64, 256), (67, 252)))

Kernel = tuple[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Mutant:
    """``before`` becomes ``after``, at the place that is the `which`-th of its kind."""

    fault: str
    kernel: Kernel
    before: str
    after: str
    which: int = 0
    sees: str = ""  # in the report; "" if only the oracle may see it

    def source(self, source: str) -> str:
        pieces = source.split(self.before)
        assert len(pieces) > self.which + 1, f"the kernel has no {self.before!r} any more"
        head, tail = pieces[: self.which + 1], pieces[self.which + 1 :]
        return self.before.join(head) + self.after + self.before.join(tail)


BARRIER = "__syncthreads();\n"
RACE = "a race|nobody wrote"  # in which order they run decides what is seen first
MUTANTS = [
    Mutant("dropped barrier before a read", ROWS, BARRIER, "\n", sees=RACE),
    Mutant(
        "dropped barrier before the next write",
        SEARCH,
        "__syncthreads();  // the next join may overwrite the parts",
        "",
        sees=RACE,
    ),
    Mutant(
        "barrier for some threads",
        ROWS,
        BARRIER,
        f"if (threadIdx.x < 32) {BARRIER}",
        sees=f"divergent barrier|have exited|{RACE}",
    ),
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
    Mutant(
        "barrier of a warp for one of the block",
        COLUMNS,
        "half /= 2) {\n        __syncthreads();",
        "half /= 2) {\n        __syncwarp();",
        sees=RACE,
    ),
    Mutant("dropped barrier of a warp", THRESHOLDS, "__syncwarp();\n", "\n", sees=RACE),
    Mutant("dropped barrier after a tile", PACKED, BARRIER, "\n", sees=RACE),
    Mutant("missing shuffle step", ROWS, "away = 16", "away = 8"),
    Mutant("last shuffle step missing", ROWS, "away > 0", "away > 1"),
    Mutant("wrong mask", ROWS, "0xffffffffu", "0x7fffffffu", sees="without the calling lane 31"),
    Mutant("wrong tail", ROWS, "i = head + 4 * packs + along", "i = head + 4 * packs + along + 1"),
    Mutant("no tail", ROWS, "i = head + 4 * packs + along; i < count", "i = count; i < count"),
    Mutant(
        "off by one past the end", ROWS, "along; i < packs", "along; i <= packs", sees="outside"
    ),
    Mutant("off by one before the end", ROWS, "along; i < packs", "along; i < packs - 1"),
    Mutant("wrong head", ROWS, "head = min(count, before_access(row))", "head = min(count, 1)"),
    Mutant("wrong stride", ROWS, "y + g * geo.s0_1", "y + g * geo.n1_1"),
    Mutant("wrong stride of x", ROWS, "x + g * geo.t0_1", "x + g * geo.n1_1", sees=""),
    Mutant("no end of groups", ROWS, "if (g >= geo.groups_1)\n        return;", "", sees="outside"),
    Mutant("no end of columns", COLUMNS, "if (column < geo.n1_1) {", "{", sees="outside"),
    Mutant("no end of packed groups", PACKED, "threadIdx.x < groups", "threadIdx.x < 128"),
    Mutant("uninitialised accumulator", ROWS, "int a = 0;", "int a;", sees="uninitialized"),
    Mutant("uninitialised sum", ROWS, "double a = 0.0;", "double a;"),
    Mutant("swapped radius", ROWS, "limit_1[g]", "limit_1[g ^ 1]"),
    Mutant("radius of the wrong column", COLUMNS, "limit_1[g]", "limit_1[g / 2]"),
    Mutant("maximum without magnitudes", ROWS, "& 0x7fffffff", "& 0xffffffff"),
    Mutant(
        "maximum that is not atomic",
        ROWS,
        *(
            "const int joined = warp_max(a);",
            "__shared__ int most[8];\n    most[threadIdx.x / 32] = 0;\n    __syncwarp();\n"
            "    most[threadIdx.x / 32] = max(most[threadIdx.x / 32], a);\n    __syncwarp();\n"
            "    const int joined = most[threadIdx.x / 32];",
        ),
        sees=RACE,
    ),
    Mutant("one step of a search", ROWS, "if (!(next > t))\n                    break;", "break;"),
    Mutant("blocks that write one slot", SEARCH, "blockIdx.y * geo.groups_0", "0", sees=RACE),
    Mutant("a piece too short", SEARCH, "min(begin + geo.step_0, ", "min(begin + geo.step_0 - 1, "),
    Mutant("a piece too long", SEARCH, "min(begin + geo.step_0, ", "min(begin + geo.step_0 + 1, "),
    Mutant(
        "sums of another turn", SEARCH, "(turn % 2 * geo.pieces_0", "((turn + 1) % 2 * geo.pieces_0"
    ),
    Mutant(
        "a guess that all blocks settle",
        SEARCH,
        "if (settled && blockIdx.y == 0 && lane == 0)",
        "if (settled && lane == 0)",
        sees=RACE,
    ),
    Mutant("a group of the wrong length", PACKED, "threadIdx.x * 7 + i", "threadIdx.x * 6 + i"),
    Mutant("a lost correction", SUMS, "half * across", "half * across / 2"),
]


def arrays(kernel: Kernel) -> Iterator[tuple[Array, Any]]:
    """Each place counts: the largest value of a group lies near its ends, in another for each."""
    _, shapes = kernel
    for seed, shape in enumerate(shapes):
        values = np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)
        for row in range(shape[0]):
            place = row // 2 if row % 2 else -1 - row // 2
            values[row, place % shape[1]] = (1.5 + row / shape[0]) * (-1) ** (row // 3)
        yield values, np.empty_like(values)
        if shape[1] > 31:  # rows with gaps between them, other ones in x
            gaps = lay_out(values, (0, 1), (2, 1))
            yield gaps, lay_out(np.zeros_like(values), (0, 1), (3, 1))


def judge(kernel: Kernel, mutant: Mutant | None = None) -> None:
    """Run a kernel, or a mutant of it, on all its arrays, and ask the oracle about the results."""
    spec, _ = kernel
    for seed, (y, out) in enumerate(arrays(kernel)):
        made = compiled(spec, y, "float32", out)
        source = mutant.source(made.source) if mutant else made.source
        for fraction in (0.05, 0.9):
            radius = fraction * float(norm(spec, y))
            outcome = run(spec, y, radius, out=out, seed=seed, source=source)
            assert_projected(spec, y, radius, outcome.x)
            np.testing.assert_allclose(outcome.norms, norm(spec, y), rtol=1e-6)


@pytest.mark.parametrize("kernel", [ROWS, SHORT, COLUMNS, THRESHOLDS, SEARCH, PACKED, SUMS])
def test_kernels_without_a_fault_pass(kernel: Kernel) -> None:
    build_all(compiled(kernel[0], y, "float32", out).source for y, out in arrays(kernel))
    judge(kernel)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_support, "program", _quick)
    with pytest.raises((SimtError, BuildError, AssertionError)) as caught:
        judge(mutant.kernel, mutant)
    report = str(caught.value)
    assert "the kernel has no" not in report
    if isinstance(caught.value, BuildError):
        assert "uninitialised" in mutant.fault, report
    if mutant.sees:
        assert re.search(mutant.sees, report)


def _quick(source: str, machine: str, fused: bool) -> Simt:
    """A mutant may have no end."""
    return Simt(source, machine, seconds=5)
