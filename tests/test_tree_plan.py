"""Plans and sources of whole trees: those are the kernels that a call loads, and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import projgen
from projgen.cpu import call as cpu
from projgen.structure import at, flat, rebuilt

Snapshot = Callable[[str, str], None]

TREES: list[tuple[str, Any, Mapping[str, Any]]] = [
    ("l1(enc=linf(axis=1), dec=linf(axis=0))", {"enc": (30, 20), "dec": (10, 30)}, {}),
    ("l1(linf, 2*l2)", [(6, 5), (5,)], {}),
    ("l2(a=l1(u=linf, v=linf), b=l1(linf(axis=1)))",
     {"a": {"u": (4, 5), "v": (4, 6)}, "b": (7, 8)}, {}),
    ('l1(linf(axis=1) @ "fc.*", linf(axis=(1, 2, 3)) @ "conv.*")',
     {"fc": {"0": (9, 8), "1": (8, 3)}, "conv.0": (4, 3, 2, 2)}, {}),
    ("l1(linf(axis=1, block=4))", (6, 11), {}),
    ("l0(l2(axis=1))", (12, 5), {}),
    ("lp(p=1.5, linf(axis=0), w=v)", (12, 5), {"v": np.linspace(1, 2, 5)}),
    ("l1(axis=1, w=v)", (12, 5), {"v": np.ones((12, 5))}),
    ("l1(l2(axis=1, groups=g))", (3, 9), {"g": np.arange(9) % 4}),
    ("l1(linf(axis=1), nonneg=True)", (6, 5), {}),
]  # fmt: skip


class LoadedError(Exception):
    """Kernels are named, and not made."""


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("spec", "shapes", "given"), TREES)
def test_the_plan_has_the_kernels_of_a_call(
    spec: str, shapes: Any, given: Mapping[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from projgen.shapes import stand_ins

    loaded: list[str] = []
    real = cpu.load_kernel

    class Module:
        def __init__(self, source: str) -> None:
            self.project = self
            self.address = 1

    def record(kernel: Any) -> Any:
        loaded.append(kernel.source)
        return Module(kernel.source)

    p = projgen.build(spec)
    plan = p.plan(shapes, dtype, **given)
    empty = stand_ins(shapes, dtype)
    y = rebuilt(empty, {key: np.ones(at(empty, key).shape, dtype) for key, _ in flat(empty)})
    monkeypatch.setattr(cpu, "load_kernel", record)
    monkeypatch.setattr("projgen.cpu.compose._Call", _refuse)
    with pytest.raises(LoadedError):
        p(y, None if p.tree.root.k else 1.0, **given)
    assert list(plan.kernels) == list(dict.fromkeys(loaded))
    assert real is not cpu.load_kernel
    if not given:
        assert p.source(shapes, dtype) == plan.source


def _refuse(*_: Any) -> Any:
    raise LoadedError


def test_a_plan_as_text(snapshot: Snapshot) -> None:
    specs: list[tuple[str, Any]] = [
        ("l1(enc=linf(axis=1), dec=linf(axis=0))", {"enc": (1000, 1000), "dec": (100, 1000)}),
        ("l1(l2(axis=1, w=v), l1(l2(axis=1)))", [(6, 5), (6, 4)]),
        ("l1(l2(axis=1, groups=pathway))", (30, 100)),
        ("l1(linf(axis=1, block=4))", (30, 101)),
    ]
    text = "\n\n".join(str(projgen.build(spec).plan(shapes)) for spec, shapes in specs)
    snapshot("tree_plan", text + "\n")


def test_equal_kernels_are_one_module() -> None:
    p = projgen.build('l1(linf(axis=1) @ "*")')
    shapes = {f"layer{i}.weight": (300 + i, 400) for i in range(5)}
    plan = p.plan(shapes)
    assert len(plan.parts) == 6
    assert len(plan.kernels) == 2
    heads = [line for line in p.source(shapes).splitlines() if line.startswith("# kernel ")]
    assert len(heads) == 2
    for name in shapes:
        assert name in p.source(shapes)
    reads, writes = plan.traffic
    assert 2 * plan.array_bytes < reads < 2.1 * plan.array_bytes
    assert plan.array_bytes < writes < 1.1 * plan.array_bytes


def test_labels_that_are_not_given_make_equal_blocks() -> None:
    plan = projgen.build("l1(l2(axis=1, groups=g))").plan((3, 100))
    assert np.array_equal(np.bincount(plan.outline.labels["g"]), [10] * 10)


@pytest.mark.parametrize(
    ("spec", "shapes", "dtype", "given", "message"),
    [
        ("l1(enc=linf, dec=linf)", {"enc": (3, 4)}, "float32", {}, "lacks 'dec'"),
        ("l1(enc=linf, dec=linf)", (3, 4), "float32", {}, "takes several arrays"),
        ("l1(linf, l2)", [(3, 0), (4,)], "float32", {}, "every extent must be at least 1"),
        ("l1(linf, l2)", [(3, 2), "4"], "float32", {}, "a shape is a tuple"),
        ("l1(linf, l2)", [(3, 2), (4,)], "int32", {}, "float16 or bfloat16, got int32"),
        ("l1(linf, l2)", [(3, 2), (4,)], ["float32"], {}, "dtype is one for all arrays"),
        ("l1(linf, l2)", [(3, 2), (4,)], "float32", {"w": 1}, "'w' is not named"),
        ("l1(axis=1)", (3, 4), "float32", {"w": 1}, "'w' is not named"),
        ("l1(l2(axis=1, groups=g))", (3, 4), "float32", {"g": np.arange(3)}, "one label for each"),
    ],
)
def test_wrong_shapes(
    spec: str, shapes: Any, dtype: Any, given: Mapping[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        projgen.build(spec).plan(shapes, dtype, **given)


@pytest.mark.parametrize("level", ["lp(p=1.5)", "l1(w=v)", "l2(groups=g, axis=0)"])
def test_levels_of_their_own_on_a_gpu(level: str) -> None:
    p = projgen.build(f"l1(linf, {level})", backend="cuda")
    plan = p.plan([(3, 2), (4,)])
    group = plan.parts[-1].sweeps[0]
    assert group.title.startswith("group ") and group.launches == 3
    assert group.kernel.source in plan.source
    read, written = group.traffic
    assert written == 4 * 4 + 2 * 8 * group.groups
    assert read == 2 * 4 * 4 * (1 + 2 * (level == "l1(w=v)")) + 2 * 8 * group.groups


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("lp(p=1.5)", "lp has no kernel for a GPU. l1 have"),
        ("l2(w=v)", "l2 has no kernel for a GPU, where it is a level of its own"),
    ],
)
def test_a_norm_that_no_gpu_takes(
    level: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of someone who wrote no template for it."""
    monkeypatch.setattr("projgen.cuda.group_kernel.BALLS", ("l1",))
    p = projgen.build(f"l1(linf, {level})", backend="cuda")
    with pytest.raises(projgen.SpecError, match=message):
        p.plan([(3, 2), (4,)])


def test_a_plan_for_a_gpu(snapshot: Snapshot) -> None:
    p = projgen.build("l2(enc=2.0*linf(axis=1), dec=l1(axis=0, block=7))", backend="cuda")
    plan = p.plan({"enc": (1000, 300), "dec": (200, 100)}, {"enc": "float16", "dec": "float32"})
    snapshot("tree_plan_cuda", f"{plan}\n")
    assert p.source({"enc": (1000, 300), "dec": (200, 100)}).startswith(
        "// kernel 1 of 4: l2(w), for"
    )
