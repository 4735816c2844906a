"""Races inside blocks, as ThreadSanitizer sees them: each CUDA thread is a thread of its own.

`test_cuda_run` has every kernel watched by the SIMT machine's own detector of races. This is a
second opinion, from a tool that knows nothing of ours, on a kernel of each kind.
"""

import cuda_support
import numpy as np
import pytest
from cuda_support import compiled, needs_simt, run
from simt.run import Buffer, Launch, Simt, SimtError
from support import assert_projected, norm
from test_cuda_mutants import MUTANTS, RACE, Mutant
from test_cuda_pulls import agrees
from test_cuda_run import normal

from projgen.cpu.ball import Ball
from projgen.cuda.groups import walk_groups
from projgen.references import REFERENCES

pytestmark = needs_simt


@pytest.fixture(scope="module", autouse=True)
def sanitizer() -> None:
    """Skips where ThreadSanitizer cannot run: some systems forbid what it needs."""
    source = 'extern "C" __global__ void nothing(int* y) { y[threadIdx.x] = 1; }'
    try:
        with Simt(source, "threads") as simt:
            y = Buffer("y", np.zeros(32, np.int32), writable=True)
            simt.run([Launch("nothing", (1,), (32,), (y,))])
    except SimtError as error:
        pytest.skip(f"ThreadSanitizer does not run here: {error}")


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("l1(linf)", (11, 130)),
        ("l1(linf(axis=0))", (50, 128)),
        ("linf(l1)", (9, 300)),
        ("l1(l1(axis=0))", (40, 64)),
        ("l1", (12_000,)),
        ("l1(l2)", (200, 7)),
    ],
)
def test_silent(spec: str, shape: tuple[int, ...]) -> None:
    y = normal(shape, "float32")
    radius = 0.3 * float(norm(spec, y))
    assert_projected(spec, y, radius, run(spec, y, radius, machine="threads").x)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("l1(linf)", (11, 130)),
        ("l1(l2(axis=0))", (130, 64)),
        ("l1(l1)", (200, 7)),
        ("l1", (12_000,)),
    ],
)
def test_gradients_are_silent(spec: str, shape: tuple[int, ...]) -> None:
    y = normal(shape, "float32")
    agrees(spec, y, 0.3 * float(norm(spec, y)), "float32", machine="threads")


@pytest.mark.parametrize("ball", [Ball("l2", weighted=True), Ball("l0"), Ball("simplex")], ids=repr)
def test_levels_of_their_own_are_silent(ball: Ball) -> None:
    """Of one group, of which a block joins what its threads find."""
    y = normal((1, 1100), "float64")
    own = (1100, 1) if ball.weighted else None
    walk = walk_groups(ball, "float64", y.shape, own or (1100, 1), (1,), None, own, None)
    work = Buffer("total", np.zeros(1), True, True)
    index, geometry = Buffer("index", walk.index), np.void(walk.geometry)
    weights = (Buffer("weights", np.ones_like(y)),) if ball.weighted else ()
    array = Buffer("y", y, True, True)
    size = (walk.grid,), (walk.block,)
    with Simt(walk.kernel.source, "threads") as simt:
        simt.run([Launch("aggregate", *size, (array, *weights, work, index, geometry))])
        radius = np.float64(work.array[0] // 3)
        rest = work, None, radius, index, geometry
        simt.run([Launch("project", *size, (array, array, *weights, *rest))])
    left = REFERENCES[ball.norm].norm(np.abs(array.array), (1,))
    assert left == pytest.approx(radius, rel=1e-9)


SEEDED = [mutant for mutant in MUTANTS if mutant.sees == RACE and "block" not in mutant.fault]


@pytest.mark.parametrize("mutant", SEEDED, ids=lambda mutant: mutant.fault)
def test_seeded_races_are_seen(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, shapes = mutant.kernel
    y = normal(shapes[0], "float32")[:30]
    out = np.empty_like(y)
    source = mutant.source(compiled(spec, y, "float32", out).source)
    monkeypatch.setattr(cuda_support, "program", lambda text, machine, _: Simt(text, machine))
    with pytest.raises(SimtError, match="data race"):
        run(spec, y, 0.1 * float(norm(spec, y)), out=out, machine="threads", source=source)
