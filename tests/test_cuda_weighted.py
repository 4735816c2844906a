"""The kernel of a branch whose children have weights, on the SIMT machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_support import needs_simt
from support import Array
from test_cuda_host import cp  # noqa: F401

from projgen.cuda.weighted import BALLS, Weighted
from projgen.references import REFERENCES

pytestmark = needs_simt


def weighted(cp: Any, norm: str, v: Array, w: Array, radius: Any) -> tuple[Array, Array]:  # noqa: F811
    """Norms, and the groups (rows of `v`) in their balls."""
    kernel = Weighted(norm, len(v), w, 0)
    work = cp.cuda.alloc(kernel.work)
    y, x = cp.asarray(v), cp.empty(v.shape, np.float64)
    norms = kernel.begin(y.data.ptr, work).copy()
    kernel.end(y.data.ptr, x.data.ptr, radius, work)
    return norms.get(), x.get()


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("count", [1, 7, 100, 1500])
def test_weighted_levels(cp: Any, norm: str, count: int) -> None:  # noqa: F811
    rng = np.random.default_rng(count)
    v = np.abs(rng.standard_normal((5, count)))
    v[1] = v[1].round()  # ties and zeros
    v[2] *= 10.0 ** rng.integers(-6, 6, count)
    v[3] = 0.0
    for w in (
        rng.integers(0, 3, count).astype(float),
        10.0 ** rng.uniform(-3, 3, count),
        rng.uniform(1, 2, count) * 1e200,
    ):
        reference = REFERENCES[norm]
        norms = reference.norm(v, (1,), weights=w)
        for share in (0.0, 1e-9, 0.1, 0.999, 1.0):
            radii = share * norms[:, 0]
            found, x = weighted(cp, norm, v, w, cp.asarray(radii))
            np.testing.assert_allclose(found, norms[:, 0], rtol=1e-13)
            ball = reference.ball(v, (1,), radii[:, None], weights=w)
            expected = np.where(norms <= radii[:, None], v, ball)
            atol = 1e-12 * v.max(axis=1, keepdims=True)
            assert np.all(np.abs(x - expected) <= atol + 1e-300), (share, np.abs(x - expected))
            assert np.all((x >= 0) & (x <= v))
            after = reference.norm(x, (1,), weights=w)[:, 0]
            assert np.all(after <= radii + 1e-12 * norms[:, 0])
            if share == 1.0:
                assert np.array_equal(x[norms[:, 0] == found], v[norms[:, 0] == found])


@pytest.mark.parametrize("norm", BALLS)
def test_weighted_levels_out_of_range(cp: Any, norm: str) -> None:  # noqa: F811
    """NaN spoils its group alone; values and weights may have any size."""
    v, w = np.ones((4, 40)), np.ones(40)
    v[1, 3], v[2, 5], w[3:6] = np.nan, np.inf, 0.0
    _, x = weighted(cp, norm, v, w, 0.5)
    assert np.isnan(x).any(axis=1).tolist() == np.isnan(x).all(axis=1).tolist()
    assert np.isnan(x).all(axis=1).tolist() == [False, True, True, False]
    assert np.isnan(weighted(cp, norm, v[:1], w, np.nan)[1]).all()
    for size, weight in ((1e300, 1.0), (1e-300, 1.0), (1.0, 1e-300), (1.0, 1e300)):
        norms, x = weighted(cp, norm, v[:1] * size, w * weight, 0.25 * size * weight)
        assert norms[0] == pytest.approx(size * weight * {"l1": 37, "linf": 1}.get(norm, 37**0.5))
        assert np.array_equal(x[0, 3:6], v[0, 3:6] * size)
        np.testing.assert_allclose(
            x[0, 6:] / size, 0.25 / {"l1": 37, "linf": 1}.get(norm, 37**0.5), rtol=1e-12
        )
