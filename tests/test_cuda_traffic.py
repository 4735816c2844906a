"""What CUDA kernels read and write, counted byte by byte, is what was told in advance."""

from collections.abc import Mapping

import numpy as np
import pytest
from cuda_support import Outcome, needs_simt, run, stored
from simt.run import Traffic
from support import norm
from test_kernels import CHAINS, DEEP

from projgen.cuda.traffic import predict

pytestmark = needs_simt


def counted(moved: Mapping[str, Traffic]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by array that a launch read and wrote, however often."""
    reads = {name: traffic.first_read for name, traffic in moved.items() if traffic.first_read}
    writes = {name: traffic.first_written for name, traffic in moved.items()}
    return reads, {name: size for name, size in writes.items() if size}


def check(outcome: Outcome) -> None:
    made = outcome.compiled
    predicted = predict(made.plan, made.kernel, made.schedule)
    assert len(predicted) == len(outcome.traffic)
    for told, moved in zip(predicted, outcome.traffic, strict=True):
        reads, writes = counted(moved)
        if told.turn:
            for moved_bytes, limit in ((reads, told.reads), (writes, told.writes)):
                assert all(n <= limit.get(k, 0) for k, n in moved_bytes.items()), told.launch.name
        else:
            assert reads == {k: v for k, v in told.reads.items() if v}, told.launch.name
            assert writes == {k: v for k, v in told.writes.items() if v}, told.launch.name
        assert not any(traffic.atomic for traffic in moved.values())


def sweeps(outcome: Outcome) -> list[Traffic]:
    """What the launches did with y, requests counted one by one."""
    return [moved["y"] for moved in outcome.traffic if moved["y"].read]


@pytest.mark.parametrize("spec", [*CHAINS, *DEEP])
def test_as_predicted(spec: str) -> None:
    """A radius at which every group shrinks and none vanishes: all that can happen happens."""
    shape = tuple(min(n, 9) for n in DEEP[spec]) if spec in DEEP else (127, 130)
    y = np.random.default_rng(0).uniform(1.0, 1.01, shape).astype(np.float32)
    outcome = run(spec, y, 0.97 * float(np.min(norm(spec, y))))
    check(outcome)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_two_reads_and_one_write(dtype: str, order: str) -> None:
    """Each element of y is asked for twice, by one thread, and written once; the rest is little."""
    shape = (256, 1000) if order == "C" else (1000, 256)
    values = np.random.default_rng(1).uniform(1.0, 1.1, shape)
    y = np.asarray(stored(values, dtype), order="C")
    spec = "l1(linf(axis=1))" if order == "C" else "l1(linf(axis=0))"
    outcome = run(spec, y, 100.0, dtype=dtype)
    check(outcome)
    assert [traffic.read for traffic in sweeps(outcome)] == [y.nbytes, y.nbytes]
    assert sum(moved["x"].written for moved in outcome.traffic) == y.nbytes
    whole = sum(t.first_read + t.first_written for moved in outcome.traffic for t in moved.values())
    assert whole <= 1.05 * 3 * y.nbytes
    assert len(outcome.traffic) == 3


def test_groups_that_vanish_are_not_read_again() -> None:
    y = np.random.default_rng(2).uniform(1.0, 1.1, (64, 500)).astype(np.float32)
    y[10:] *= 1e-3
    outcome = run("l1(linf(axis=1))", y, 0.5)
    assert np.count_nonzero(outcome.x.any(axis=1)) == 10
    again = sweeps(outcome)[1]
    assert again.read == y.nbytes * 10 // 64
    assert sum(moved["x"].written for moved in outcome.traffic) == y.nbytes


def test_what_stays_is_not_written_in_place() -> None:
    y = np.random.default_rng(3).standard_normal((64, 500)).astype(np.float32)
    outcome = run("l1(linf(axis=1))", y.copy(), np.inf, in_place=True)
    assert sum(moved["y"].written for moved in outcome.traffic) == 0


@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l2(axis=0))", "linf(l1)", "l1"])
def test_the_gap_between_prediction_and_bytes_would_show(spec: str) -> None:
    """The counts are those of the kernel: another shape's prediction does not fit them."""
    rng = np.random.default_rng(4)
    small, large = (rng.uniform(1, 1.01, (n, 64)).astype(np.float32) for n in (40, 41))
    outcome, other = (run(spec, y, 0.9 * float(norm(spec, y))) for y in (small, large))
    with pytest.raises(AssertionError):
        check(Outcome(outcome.x, outcome.norms, outcome.traffic, other.compiled))
