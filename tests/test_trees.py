"""Trees over several arrays, compiled where it matters: structures, blocks, weights, threads."""

import dataclasses
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import Array, rehearsals
from tree_support import assert_tree_projected, norm_of

import projgen
from projgen.structure import flat

RNG = np.random.default_rng(20241125)


def normal(*shape: int, dtype: str = "float64") -> Array:
    return RNG.standard_normal(shape).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Layers:
    enc: Any
    dec: Any


class Pair(NamedTuple):
    enc: Any
    dec: Any


@pytest.fixture
def _rehearsal() -> Iterator[None]:
    with rehearsals():
        yield


rehearsed = pytest.mark.usefixtures("_rehearsal")  # what is about names and structures, not code

ENC, DEC = normal(30, 20), normal(12, 30, dtype="float32")
STRUCTURES: list[tuple[str, Any]] = [
    ("enc=linf(axis=1), dec=linf(axis=0)", {"enc": ENC, "dec": DEC}),
    ("enc=linf(axis=1), dec=linf(axis=0)", OrderedDict(dec=DEC, enc=ENC)),
    ("enc=linf(axis=1), dec=linf(axis=0)", MappingProxyType({"dec": DEC, "enc": ENC})),
    ("enc=linf(axis=1), dec=linf(axis=0)", Layers(ENC, DEC)),
    ("enc=linf(axis=1), dec=linf(axis=0)", Pair(ENC, DEC)),
    ("linf(axis=1), linf(axis=0)", [ENC, DEC]),
    ("linf(axis=1), linf(axis=0)", (ENC, DEC)),
    ("linf(axis=1), linf(axis=0)", Pair(ENC, DEC)),
    ('linf(axis=1) @ "*.enc", linf(axis=0) @ "*"', {"a": {"enc": ENC}, "b": [DEC, None]}),
    ("net=linf(enc=linf(axis=1), dec=linf(axis=0))", {"net": Layers(ENC, DEC)}),
]


@rehearsed
@pytest.mark.parametrize(("children", "y"), STRUCTURES, ids=range(len(STRUCTURES)))
def test_results_have_the_structure_that_was_given(children: str, y: Any) -> None:
    spec = f"l1({children})"
    p = projgen.build(spec)
    radius = 0.2 * p.norm(y)
    x = p(y, radius)
    assert_tree_projected(spec, y, radius, x)
    assert type(x) is type(y)
    assert [key for key, _ in flat(x)] == [key for key, _ in flat(y)]
    active = p.active(x)
    assert [key for key, _ in flat(active)] == [key for key, _ in flat(y)]
    for (_, groups), (_, array) in zip(flat(active), flat(x), strict=True):
        assert groups.sum() == np.any(array, axis=1 if array.shape == ENC.shape else 0).sum()


@rehearsed
def test_keyword_arrays() -> None:
    p = projgen.build("l1(enc=linf(axis=1), dec=linf(axis=0))")
    x = p(radius=3.0, enc=ENC, dec=DEC)
    y = p({"enc": ENC, "dec": DEC}, 3.0)
    assert list(x) == ["enc", "dec"]
    assert all(np.array_equal(x[name], y[name]) for name in x)
    assert p.norm(enc=ENC, dec=DEC) == p.norm({"enc": ENC, "dec": DEC})


@rehearsed
def test_arrays_that_nobody_names_pass_if_the_caller_says_so() -> None:
    steps = object()
    y = {"fc": {"weight": ENC, "bias": ENC[0]}, "steps": steps}
    p = projgen.build('l1(linf(axis=1) @ "*.weight")', unmatched="pass")
    x = p(y, 1.0)
    assert x["steps"] is steps
    assert x["fc"]["bias"] is y["fc"]["bias"]
    assert not np.array_equal(x["fc"]["weight"], ENC)
    with pytest.raises(ValueError, match="no pattern matches"):
        projgen.build(p.spec)(y, 1.0)


@rehearsed
def test_the_first_pattern_that_matches_takes_an_array() -> None:
    y = {"conv.weight": normal(6, 5, 3, 3), "fc.weight": normal(8, 6), "fc.bias": normal(8)}
    spec = 'l1(linf(axis=(1, 2, 3)) @ "conv.*", l2(axis=1) @ "*.weight", l2 @ "*")'
    x = projgen.project(y, spec, 2.0)
    assert_tree_projected(spec, y, 2.0, x)
    assert projgen.build(spec).active(x)["fc.bias"] in (True, False)


KINDS: list[tuple[str, Any, dict[str, Any]]] = [
    ("l1(linf(axis=1, block=4))", normal(9, 22), {}),
    ("l1(linf(axis=(0, 1), block=(4, 3)))", normal(9, 22), {}),
    ("l1(l2(linf(axis=1, block=5)))", normal(9, 22, dtype="float32"), {}),
    ("l1(l2(axis=1, block=8, linf(axis=0)))", normal(9, 22), {}),
    ("l1(linf(axis=1, block=4), axis=1)", normal(9, 22), {}),
    ("l1(linf(axis=1), w=w)", normal(9, 22), {"w": np.arange(9.0)}),
    ("l1(w=w)", normal(9, 22), {"w": np.linspace(0, 2, 22)}),
    ("l2(w=w, l1(axis=1))", normal(9, 22), {"w": np.linspace(0.5, 2, 9)}),
    ("l1(a=2.0*linf(axis=1), b=0*l2, c=l2(axis=0))", {c: normal(9, 5) for c in "abc"}, {}),
    (
        "l1(a=linf(axis=1), b=l2(axis=1), w=w)",
        {c: normal(9, 5) for c in "ab"},
        {"w": {"a": np.arange(9.0), "b": 2.0}},
    ),
    ("l1(l2(axis=1, groups=g))", normal(9, 22), {"g": RNG.integers(0, 6, 22)}),
    ("l1(linf(axis=0, groups=g))", normal(9, 22), {"g": np.repeat([0, 1, 3], 3)}),
    ("lp(p=1.5)", normal(9, 22), {}),
    ("l1(lp(p=3, axis=0))", normal(9, 22), {}),
    ("lp(p=4, l2(axis=1))", normal(9, 22), {}),
    ("simplex(axis=1)", normal(9, 22), {}),
    ("l1(linf(axis=1), nonneg=True)", normal(9, 22), {}),
    ("l2(a=l1(axis=1, nonneg=True), b=linf)", {"a": normal(9, 22), "b": normal(5)}, {}),
]


# One of each way in which parts meet. The others are rehearsed: a compilation takes seconds, and
# the kernels of their parts are compiled by the tests of chains and of groups.
COMPILED = {
    "l1(linf(axis=1, block=4))",
    "l1(w=w)",
    "l1(a=2.0*linf(axis=1), b=0*l2, c=l2(axis=0))",
    "l1(l2(axis=1, groups=g))",
}


@pytest.mark.parametrize(("spec", "y", "given"), KINDS, ids=[spec for spec, _, _ in KINDS])
def test_every_kind_of_level(spec: str, y: Any, given: dict[str, Any]) -> None:
    p = projgen.build(spec)
    total = norm_of(spec, y, **given)
    with nullcontext() if spec in COMPILED else rehearsals():
        for part in (0.0, 0.1, 0.6, 1.5):
            x = p(y, part * total, **given)
            assert_tree_projected(spec, y, part * total, x, **given)
        np.testing.assert_allclose(p.norm(y, **given), total, rtol=1e-6)


@rehearsed
def test_two_of_four() -> None:
    y = normal(8, 16)
    x = projgen.project(y, "l0(axis=1, block=4, k=2)")
    blocks, kept = np.abs(y).reshape(8, 4, 4), x.reshape(8, 4, 4) != 0
    assert np.all(kept.sum(axis=-1) == 2)
    assert np.all(np.where(kept, blocks, np.inf).min(-1) >= np.where(kept, 0, blocks).max(-1))
    assert np.array_equal(x[x != 0], y[x != 0])
    ragged = projgen.project(y[:, :14], "linf(l0(axis=1, block=4))", 2)
    assert np.array_equal(ragged[:, :12], x[:, :12])
    assert np.array_equal(ragged[:, 12:], y[:, 12:14])


def test_whole_numbers_of_any_size_are_radii() -> None:
    y = normal(4, 3)
    with rehearsals():
        assert np.array_equal(projgen.build(f"l0(k={10**20}, l2(axis=1))")(y), y)
        for spec in ("l1", "l1(linf, nonneg=False)", "l0"):
            assert np.array_equal(projgen.build(spec)(y, 10**400), y)
            with pytest.raises(ValueError, match="at least 0"):
                projgen.build(spec)(y, -(10**400))


@rehearsed
def test_the_longest_rows() -> None:
    y = normal(20, 6)
    x = projgen.project(y, "l0(k=5, l2(axis=1))")
    kept = np.any(x, axis=1)
    lengths = np.linalg.norm(y, axis=1)
    assert kept.sum() == 5
    assert lengths[kept].min() >= lengths[~kept].max()
    assert np.array_equal(x[kept], y[kept])
    tied = np.ones((6, 3))
    assert (
        np.any(projgen.project(tied, "l0(k=2, l2(axis=1))"), axis=1).tolist()
        == [True] * 2 + [False] * 4
    )


def test_a_batch_of_trees() -> None:
    spec = "l1(linf(axis=2), l2(axis=2), axis=1)"
    y = [normal(4, 5, 6), normal(4, 3, 7)]
    radii = np.array([0.5, 1.0, 1e9, 0.0])
    p, one = projgen.build(spec), projgen.build("l1(linf(axis=1), l2(axis=1))")
    with rehearsals():
        x = p(y, radii)
        assert_tree_projected(spec, y, radii, x)
        assert p.norm(y).shape == (4,)
        for i in range(4):
            alone = one([y[0][i], y[1][i]], radii[i])
            np.testing.assert_allclose(x[0][i], alone[0], rtol=1e-12, atol=1e-14)


def test_a_branch_under_levels_of_a_chain() -> None:
    spec = "l1(l2(linf(axis=2), l1(axis=2), axis=1), axis=0)"
    y = [normal(4, 5, 6), normal(4, 3, 7)]
    p = projgen.build(spec)
    with rehearsals():
        assert_tree_projected(spec, y, 5.0, p(y, 5.0))


@pytest.mark.parametrize("threads", [2, 7])
def test_the_same_bits_whatever_the_threads(threads: int) -> None:
    y = {"a": normal(700, 500), "b": normal(300, 400, dtype="float32")}
    spec = "l1(a=linf(axis=1), b=2.0*l2(axis=0))"
    one = projgen.build(spec, threads=1)(y, 50.0)
    some = projgen.build(spec, threads=threads)(y, 50.0)
    assert all(np.array_equal(one[name], some[name]) for name in y)


def test_values_out_of_range() -> None:
    y = [1e200 * normal(5, 4), 1e200 * normal(5)]
    spec = "l2(l2(axis=1), l2)"
    radius = 0.5 * float(norm_of(spec, y))
    with rehearsals():
        x = projgen.project(y, spec, radius)
    assert abs(float(norm_of(spec, x)) / radius - 1) < 1e-12


def test_without_the_check_what_is_not_finite_spoils_its_batch_entry_alone() -> None:
    y = [normal(3, 5, 6), normal(3, 5, 6)]
    y[1][1, 2, 3] = np.inf
    p = projgen.build("l1(linf(axis=2), linf(axis=2), axis=1)", check_finite=False)
    x = p(y, 1.0)
    clean = projgen.project([y[0][::2], y[1][::2]], p.spec, 1.0)
    for array, good in zip(x, clean, strict=True):
        assert np.isnan(array[1]).all()
        np.testing.assert_allclose(array[::2], good, rtol=1e-12, atol=1e-15)


def test_pickles_and_equals() -> None:
    p = projgen.build("l1(enc=2*linf(axis=1), dec=l2)", unmatched="pass")
    q = pickle.loads(pickle.dumps(p))
    assert q == p
    assert hash(q) == hash(p)
    assert p != projgen.build(p.spec)
    assert repr(p) == "projgen.build('l1(enc=2.0*linf(axis=1), dec=l2)', unmatched='pass')"


@pytest.mark.parametrize("empty", [(0, 4), (4, 0)])
def test_empty_arrays_have_no_part_in_it(empty: tuple[int, int]) -> None:
    y = {"a": np.zeros(empty), "b": normal(5, 4)}
    with rehearsals():
        x = projgen.project(y, "l1(a=linf(axis=1), b=linf(axis=1))", 1.0)
        alone = projgen.project(y["b"], "l1(linf(axis=1))", 1.0)
    assert x["a"].shape == empty
    assert np.array_equal(x["b"], alone)


@rehearsed
def test_tensors_stay_tensors() -> None:
    torch: Any = pytest.importorskip("torch")
    y = {"weight": torch.randn(6, 5), "bias": np.ones(6)}
    x = projgen.project(y, "l1(weight=linf(axis=1), bias=l2)", 1.0)
    assert isinstance(x["weight"], torch.Tensor)
    assert isinstance(x["bias"], np.ndarray)


@rehearsed
def test_an_array_where_there_was_none_is_projected_too() -> None:
    p = projgen.build('l1(linf(axis=1) @ "*")')
    y = {"enc": ENC, "dec": None}
    assert p(y, 1.0)["dec"] is None
    assert_tree_projected(p.spec, {**y, "dec": DEC}, 1.0, p({**y, "dec": DEC}, 1.0))
    assert p(y, 1.0)["dec"] is None


@rehearsed
def test_read_only_arrays_stay_as_they_are_after_others_in_place() -> None:
    p = projgen.build("l1(enc=linf(axis=1), dec=linf(axis=0))")
    y = {"enc": ENC.copy(), "dec": DEC.copy()}
    p(y, 1.0, out=y)
    y = {"enc": ENC.copy(), "dec": DEC.copy()}
    y["enc"].flags.writeable = False
    with pytest.raises(ValueError, match="out enc: out is read-only"):
        p(y, 1.0, out=y)
    assert np.array_equal(y["enc"], ENC) and np.array_equal(y["dec"], DEC)


@rehearsed
def test_names_that_only_look_alike() -> None:
    y = {"a": {"b": normal(3), "c": normal(4)}, "d": normal(3), "self": normal(2)}
    spec = "l1(a=l1(b=linf, c=linf), d=l1(w=b), self=l2)"
    weights = np.array([1.0, 2.0, 0.5])
    p = projgen.build(spec)
    assert_tree_projected(spec, y, 0.5, p(y, 0.5, b=weights), b=weights)
    flat_p = projgen.build("l1(self=l2, other=l1)")
    x = flat_p(radius=0.5, self=y["self"], other=y["d"])
    assert flat_p.norm(**x) == pytest.approx(0.5)
    assert list(flat_p.active(**x)) == ["self", "other"]
    with pytest.raises(ValueError, match=r"two arrays of the name 'a\.b'"):
        projgen.build('l1(linf @ "*")')({"a.b": normal(3), "a": {"b": normal(3)}}, 1.0)


@rehearsed
def test_what_passes_unmatched_has_no_groups() -> None:
    p = projgen.build('l1(linf(axis=1) @ "enc")', unmatched="pass")
    active = p.active({"enc": ENC, "dec": DEC})
    assert active["dec"] is None and active["enc"].all()


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_of_what_is_restricted_too_what_is_not_finite_is_noticed(value: float) -> None:
    p = projgen.build("l1(linf(axis=1), nonneg=True)")
    y = normal(5, 4, dtype="float32")
    assert_tree_projected(p.spec, y, 0.5, p(y, 0.5))
    y[2, 1] = value
    with pytest.raises(ValueError, match=r"at index \(2, 1\)"):
        p(y, 0.5)
