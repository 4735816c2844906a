"""generated/ is what the compiler emits, byte for byte, and shows all of its ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projgen.gallery import (
    CANON,
    CUDA_CANON,
    CUDA_GROUP_CANON,
    CUDA_PULL_CANON,
    GROUP_CANON,
    PULL_CANON,
    CudaExhibit,
    gallery,
    write,
)
from projgen.plan import Plan
from projgen.resources import resource_dir
from projgen.stage import Threshold, Walk

GENERATED = resource_dir("generated")
IDS = [exhibit.name for exhibit in CANON]
EXHIBITS = [*CANON, *GROUP_CANON, *CUDA_CANON, *CUDA_GROUP_CANON, *PULL_CANON, *CUDA_PULL_CANON]
ALL = [exhibit.name for exhibit in EXHIBITS]


@pytest.fixture(scope="module", autouse=True)
def _rewritten(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-snapshots"):
        write(GENERATED)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=ALL)
def test_the_file_is_what_the_compiler_emits(exhibit: Any) -> None:
    path = GENERATED / exhibit.name
    assert path.exists(), "run python -m projgen.gallery"
    source = exhibit.compiled().source
    assert path.read_bytes() == source.encode(), "run python -m projgen.gallery, read the diff"


def test_no_orphans() -> None:
    assert {path.name for path in GENERATED.iterdir()} == set(ALL)


def test_names_tell_exhibits_apart() -> None:
    assert len(set(ALL)) == len(EXHIBITS)
    for name in ALL:
        assert Path(name).stem.replace("-", "_").isidentifier()


WAYS: dict[str, tuple[set[Any], Callable[[Plan], set[Any]]]] = {
    "walk": (set(Walk), lambda plan: {stage.walk for stage in plan.stages}),
    "threshold": ({*Threshold, None}, lambda plan: {stage.threshold for stage in plan.stages}),
    "direct": ({True, False}, lambda plan: {stage.direct for stage in plan.stages}),
    "shared": ({True, False}, lambda plan: {stage.shared for stage in plan.stages}),
    "unit": ({True, False}, lambda plan: {stage.unit for stage in plan.stages}),
    "baked": ({True, False}, lambda plan: {stage.inner > 0 for stage in plan.stages}),
    "in place": ({True, False}, lambda plan: {plan.in_place}),
    "streamed": ({True, False}, lambda plan: {plan.streamed}),
    "batch": ({True, False}, lambda plan: {plan.batch > 1}),
    "dtype": ({"float32", "float64", "float16", "bfloat16"}, lambda plan: {plan.dtype}),
    "leaf": ({"l1", "l2", "linf"}, lambda plan: {plan.leaf.norm}),
    "depth": ({1, 2, 4}, lambda plan: {len(plan.stages)}),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_shown(name: str) -> None:
    ways, of = WAYS[name]
    assert set().union(*(of(exhibit.compiled().plan) for exhibit in CANON)) == ways


def test_writing_mends_a_directory(tmp_path) -> None:
    sources = gallery()
    changed, missing = sorted(sources)[:2]
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    (tmp_path / changed).write_text("# edited by hand\n")
    (tmp_path / missing).unlink()
    (tmp_path / "orphan.py").touch()
    (tmp_path / "README.md").touch()
    assert write(tmp_path) == sorted([changed, missing, "orphan.py"])
    assert {p.name for p in tmp_path.iterdir()} == {*sources, "README.md"}
    assert all((tmp_path / name).read_text() == source for name, source in sources.items())
    assert write(tmp_path) == []


CUDA_WAYS: dict[str, tuple[set[Any], Callable[[CudaExhibit], set[Any]]]] = {
    "walk": (set(Walk), lambda e: {s.walk for s in e.compiled().plan.stages if s.shared}),
    "threshold": (
        {Threshold.ROW, Threshold.TILE, Threshold.SWEEP, None},
        lambda e: {s.threshold for s in e.compiled().plan.stages if s.shared},
    ),
    "team": ({True, False}, lambda e: {s.by_warp for s in e.compiled().kernel.stages}),
    "pieces": ({True, False}, lambda e: {s.pieces for s in e.compiled().kernel.stages}),
    "lanes": ({True, False}, lambda e: {s.stage.lanes > 1 for s in e.compiled().kernel.stages}),
    "middle": ({0, 1, 2}, lambda e: {len(e.compiled().kernel.levels)}),
    "vector": ({1, 2, 4, 8}, lambda e: {e.compiled().kernel.leaf.vector}),
    "in place": ({True, False}, lambda e: {e.compiled().plan.in_place}),
    "batch": ({True, False}, lambda e: {e.compiled().plan.batch > 1}),
    "dtype": (
        {"float16", "bfloat16", "float32", "float64"},
        lambda e: {e.compiled().plan.dtype},
    ),
    "leaf": ({"l1", "l2", "linf"}, lambda e: {e.compiled().plan.leaf.norm}),
}


@pytest.mark.parametrize("name", CUDA_WAYS)
def test_every_way_is_shown_for_a_gpu(name: str) -> None:
    ways, of = CUDA_WAYS[name]
    assert set().union(*(of(exhibit) for exhibit in CUDA_CANON)) == ways
