"""A search that starts where the last call's ended: near the same result, and no other state."""

import pickle
from typing import Any

import numpy as np
import pytest
from support import assert_projected, rehearsals

import projgen
from projgen.cpu.call import Call

RNG = np.random.default_rng(20241125)
SPECS = ["l1", "l1(linf(axis=1))", "linf(l1(axis=0))"]


@pytest.mark.parametrize("spec", SPECS)
def test_warm_calls_are_right_whatever_the_calls_before(spec: str) -> None:
    exact = spec == "l1(linf(axis=1))"
    warm = projgen.build(spec, warm_start=True, exact=exact, threads=1)
    cold = projgen.build(spec, exact=exact, threads=1)
    y = RNG.standard_normal((300, 40))
    last = y
    with rehearsals(SCRATCH_BYTES=64, FAR_SCRATCH_BYTES=64):  # thresholds by sweeps
        for step in (0.01, 0.01, 3.0, 1e-6, 1e6, 0.0, 1.0):
            last = step * last + 0.01 * RNG.standard_normal(y.shape) if step else y
            for part in (0.1, 0.5, 1.5, 0.0, 0.02):
                radius = part * cold.norm(last)
                x, z = warm(last, radius), cold(last, radius)
                assert np.abs(x - z).max() <= 1e-12 * np.abs(last).max()
                if not exact:
                    assert_projected(spec, last, radius, x)


def test_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second search takes one sweep or two; cold ones take more."""
    turns: list[int] = []
    run = Call._run

    def counting(self: Call, *args: Any, **options: Any) -> int:
        verdict = run(self, *args, **options)
        desk = args[2].desk
        phases = desk[32 : self.compiled.kernel.shares_cell : 16]
        turns.append(int(np.count_nonzero(phases)) - 1)  # but for the first sweep
        return verdict

    monkeypatch.setattr(Call, "_run", counting)
    y = RNG.standard_normal((50, 60))
    with rehearsals():
        for warm in (False, True):
            p = projgen.build("l1(linf(axis=1))", exact=True, warm_start=warm, threads=1)
            for _ in range(2):
                p(y, 20.0)
    first, again, warm_first, warm_again = turns
    assert first == again == warm_first
    assert warm_again < first


def test_without_it_results_do_not_depend_on_the_calls_before() -> None:
    y = RNG.standard_normal((300, 40))
    with rehearsals():
        p = projgen.build("l1(linf(axis=1))", exact=True, threads=1)
        before = p(y, 5.0)
        p(7 * y, 3.0)
        assert np.array_equal(p(y, 5.0), before)


def test_it_is_an_option_like_others() -> None:
    p = projgen.build("l1", warm_start=True)
    assert p != projgen.build("l1")
    assert pickle.loads(pickle.dumps(p)) == p
    assert repr(p) == "projgen.build('l1', warm_start=True)"
