"""Trees over many small arrays: their kernels are called together, and are each as they were."""

import threading
from typing import Any

import numpy as np
import pytest
from support import Array, bits, rehearsals
from tree_support import assert_tree_projected

import projgen
from projgen import arrays
from projgen.arrays import address, addresses
from projgen.cpu import compose


def model(shapes: dict[str, tuple[int, ...]], dtype: str = "float64") -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


MIXED = "l1(a=linf(axis=1), b=l2(axis=0), c=linf(axis=(0, 1), block=(2, 2)), d=l1, e=lp(p=3))"
SHAPES = {"a": (4, 3), "b": (3, 5), "c": (5, 4), "d": (6,), "e": (7,)}
BATCHED = "l1(axis=1, linf(a=l1(axis=2), b=l1(axis=2)))"


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [(MIXED, SHAPES), (BATCHED, {"a": (2, 3, 4), "b": (2, 3, 5)})],
    ids=["mixed", "a batch"],
)
def test_small_arrays_beside_others(spec: str, shapes: dict[str, tuple[int, ...]]) -> None:
    y = model(shapes)
    with rehearsals():
        p = projgen.build(spec)
        for share in (0.3, 2.0, 0.0):
            radius = share * p.norm(y)
            assert_tree_projected(spec, y, radius, p(y, radius))


def test_arrays_that_stay_as_they_are_are_copied() -> None:
    y = model({"a": (3, 4), "b": (4, 3)})
    y["b"] *= 1e-3
    with rehearsals():
        p = projgen.build("linf(a=l1, b=l1)")
        x = p(y, 1.0)
        own = {name: array.copy() for name, array in y.items()}
        p(own, 1.0, out=own)
    assert bits(x["b"]) == bits(y["b"]) == bits(own["b"])
    assert bits(x["a"]) == bits(own["a"]) != bits(y["a"])


def test_norms_and_projections_share_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    composition = compose.Composition

    def count(*arguments: Any) -> Any:
        made.append(arguments)
        return composition(*arguments)

    monkeypatch.setattr("projgen.cpu.trees.Composition", count)
    y = model({"a": (3, 4), "b": (4, 3)})
    spec = "l1(a=linf(axis=1), b=linf(axis=0))"
    with rehearsals():
        p, q = projgen.build(spec), projgen.build(spec)
        norm = p.norm(y)
        p(y, 1.0)
        p.active(y)
        assert len(made) == 1
        q(y, 0.5 * norm, out=y)  # in place: kernels of another kind
        assert q.norm(y) == pytest.approx(0.5 * norm)
        assert len(made) == 2


def test_threads_share_a_projection() -> None:
    names = [f"a{i}" for i in range(12)]
    p = projgen.build('l1(linf(axis=1) @ "*")')
    ys = [model(dict.fromkeys(names, (5, 4)), "float32") for _ in range(4)]
    for scale, y in enumerate(ys, 1):
        for name in names:
            y[name] *= scale
    radii = [0.2 * p.norm(y) for y in ys]
    expected = [p(y, radius) for y, radius in zip(ys, radii, strict=True)]
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(100):
            x = p(ys[number], radii[number])
            wrong.extend(name for name in names if bits(x[name]) != bits(expected[number][name]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_kernel_that_others_help_with_is_called_by_itself() -> None:
    y = model({"large": (2000, 64), "small": (2, 3)})
    p = projgen.build("l1(large=linf(axis=1), small=linf(axis=1))", threads=2)
    x = p(y, 0.3 * p.norm(y))
    (ready,) = p._ready.values()
    made = ready.made.composition
    assert [run.part.last.label for run in made.apart] == ["y", "large"]
    assert made.serial == [1]
    assert_tree_projected(p.spec, y, 0.3 * p.norm(y), x)


def test_results_that_were_apart_are_looked_at_again() -> None:
    y = model({"a": (3, 4), "b": (3, 4)})
    memory = np.zeros((7, 4))
    out = {"a": memory[:3], "b": memory[4:]}
    p = projgen.build("l1(a=linf(axis=1), b=linf(axis=1))", backend="numpy")
    p(y, 1.0, out=out)
    p(y, 1.0, out=out)
    with pytest.raises(ValueError, match="out a and out b share memory"):
        p(y, 1.0, out={"a": memory[:3], "b": memory[2:5]})
    p(y, 1.0, out=out)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.zeros((4, 5))
    some = [whole, whole[1:, ::-1], whole[:0], np.array(1.0), np.broadcast_to(1.0, (3, 2))]
    expected = [array.ctypes.data for array in some]
    assert addresses(some) == [address(array) for array in some] == expected
    monkeypatch.setattr(arrays, "_DATA_AT", None)
    assert addresses(some) == [address(array) for array in some] == expected


def test_nothing_where_an_array_is_meant() -> None:
    p = projgen.build("l1(a=linf, b=linf)", backend="numpy")
    with pytest.raises(TypeError, match="b: expected an array"):
        p({"a": np.ones(3), "b": None}, 1.0)
