"""The contract between the CUDA backend's `lower` and its templates, and what sources keep to."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jinja2 import meta, nodes
from test_templates import TEMPLATES, supplied, tree

import projgen
from projgen.bind import bind
from projgen.check import parse_tree
from projgen.cuda.compiler import compile_binding
from projgen.cuda.group_kernel import BALLS, GroupKernel
from projgen.cuda.kernel import Kernel
from projgen.cuda.levels import Axis, Level, StageCode
from projgen.cuda.lower import lower
from projgen.cuda.pull_kernel import PullKernel, PullLevel, PullStage, Ruled, lower_pull
from projgen.gallery import (
    CUDA_CANON,
    CUDA_GROUP_CANON,
    CUDA_PULL_CANON,
    CudaExhibit,
    CudaPullExhibit,
    gallery,
)
from projgen.norms import CHAINED, NORMS
from projgen.render import render_cuda, render_cuda_pull
from projgen.stage import Stage

NAMES = sorted(path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.glob("cuda/**/*.j2"))
MACROS = {norm: f"cuda/norms/{norm}.cu.j2" for norm in CHAINED}
RULES = {norm: f"cuda/pulls/{norm}.cu.j2" for norm in CHAINED if NORMS[norm].pulls}
IDS = [exhibit.name for exhibit in CUDA_CANON]
GROUP_IDS = [exhibit.name for exhibit in CUDA_GROUP_CANON]
PULL_IDS = [exhibit.name for exhibit in CUDA_PULL_CANON]
GROUPS = {"cuda/group.cu.j2", *(f"cuda/balls/{norm}.cu.j2" for norm in BALLS)}
# Macros of norms are asked by both kinds of levels.
VARIABLES: dict[str, tuple[type, ...]] = {
    "kernel": (Kernel,),
    "top": (StageCode,),
    "s": (StageCode,),
    "l": (Level,),
}
OF_PULLS: dict[str, tuple[type, ...]] = {
    "kernel": (PullKernel,),
    "p": (PullStage,),
    "top": (PullStage,),
    "child": (PullStage,),
    "l": (PullLevel,),
    "last": (PullLevel,),
}
CONTRACT = (Kernel, StageCode, Level, GroupKernel, Ruled, PullStage, PullLevel, PullKernel)
HINTS = {"stage": Stage, "run": Axis, "beside": Axis, "leaf": StageCode}


def used() -> set[tuple[type, str]]:
    """Each (class, name) that a template looks up."""
    found = set()
    for name in NAMES:
        for node in tree(name).find_all(nodes.Getattr):
            owner = node.node
            if isinstance(owner, nodes.Name):
                kinds = (StageCode, Level) if "/norms/" in name else VARIABLES.get(owner.name, ())
                if "/pull" in name:
                    kinds = OF_PULLS.get(owner.name, ())
                if "/pulls/" in name:
                    kinds = (PullStage, PullLevel)
                if name in GROUPS:
                    kinds = (GroupKernel,) if owner.name == "kernel" else ()
                found |= {(kind, node.attr) for kind in kinds}
            elif isinstance(owner, nodes.Getattr) and owner.attr in HINTS:
                found.add((HINTS[owner.attr], node.attr))
    return found


def names_of(kind: type) -> set[str]:
    fields = set(getattr(kind, "__dataclass_fields__", ()))
    return fields | set(supplied(kind)) | {n for n in vars(kind) if not n.startswith("_")}


def test_what_templates_look_up_exists() -> None:
    missing = [f"{k.__name__}.{n}" for k, n in used() if n not in names_of(k) | set(dir(k))]
    assert sorted(missing) == []


def test_nothing_is_supplied_that_nobody_uses() -> None:
    """Neither by a template, nor by Python code outside the line that defines it."""
    package = TEMPLATES.parent / "projgen" / "cuda"
    python = "".join(p.read_text(encoding="utf-8") for p in package.rglob("*.py"))
    templates = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in NAMES)
    unused = [
        f"{kind.__name__}.{name}"
        for kind in CONTRACT
        for name in names_of(kind)
        if not re.search(rf"\.{name}\b", templates + python)
    ]
    assert unused == []


def test_one_object_is_all_that_the_templates_are_given() -> None:
    for name in NAMES:
        found = tree(name).find_all(nodes.Name)
        somewhere = {node.name for node in found if node.ctx == "store"}
        undeclared = meta.find_undeclared_variables(tree(name)) - somewhere
        whole = {"cuda/kernel.cu.j2", "cuda/group.cu.j2", "cuda/pull.cu.j2"}
        assert undeclared == ({"kernel"} if name in whole else set()), name


def test_every_template_is_reached_and_every_macro_used() -> None:
    whole = {"cuda/kernel.cu.j2", "cuda/pull.cu.j2", *GROUPS}
    reached, new = set(), {*whole, *MACROS.values(), *RULES.values()}
    while new:
        reached |= new
        referenced = {r for name in new for r in meta.find_referenced_templates(tree(name))}
        new = referenced - reached - {None}  # a norm's, which only the kernel knows
    assert reached == set(NAMES)
    text = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in NAMES)
    macros = {macro.name for name in NAMES for macro in tree(name).find_all(nodes.Macro)}
    assert [name for name in sorted(macros) if len(re.findall(rf"\b{name}\(", text)) < 2] == []


@pytest.mark.parametrize("own", [{"l2": set()}, {"l2": {"wide"}}], ids=["norms", "rules"])
def test_norms_offer_the_same_macros(own: dict[str, set[str]]) -> None:
    """And so do their rules for gradients, but for what one of them alone has for itself."""
    templates = RULES if own["l2"] else MACROS
    offers = {
        norm: {
            m.name: tuple(a.name for a in m.args)
            for m in tree(name).find_all(nodes.Macro)
            if m.name not in own.get(norm, ())
        }
        for norm, name in templates.items()
    }
    for norm, offer in offers.items():
        assert offer == offers["l2"], norm


def test_balls_offer_the_same_macros() -> None:
    """And each has its template: those are the norms that may be levels of their own on a GPU."""
    offers = {
        name: {m.name: tuple(a.name for a in m.args) for m in tree(name).find_all(nodes.Macro)}
        for name in NAMES
        if name.startswith("cuda/balls/")
    }
    assert offers.keys() == GROUPS - {"cuda/group.cu.j2"}
    for name, offer in offers.items():
        assert offer == offers["cuda/balls/l2.cu.j2"], name


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: source for name, source in gallery().items() if name.endswith(".cu")}


@pytest.mark.parametrize("name", [*IDS, *GROUP_IDS, *PULL_IDS])
class TestSources:
    def test_it_needs_nothing_but_nvrtc(self, name: str, sources: dict[str, str]) -> None:
        headers = set(re.findall(r"#include <(.*)>", sources[name]))
        assert headers == ({"cuda_fp16.h"} if "float16" in name and "b" not in name else set())
        assert "extern __shared__" not in sources[name]

    def test_it_is_laid_out_like_code_that_someone_wrote(
        self, name: str, sources: dict[str, str]
    ) -> None:
        source = sources[name]
        assert source.endswith("}\n")
        assert not re.search(r"[ \t]\n|\t|\r|\n{3}", source)
        assert not re.search(r"\{\n\n|\n\n *\}", source), "an empty line at a block's edge"
        assert source.isascii()
        depth = 0
        for line in source.splitlines():
            code = line.split("//")[0]
            if not code.strip() or code.strip().startswith("#"):
                continue
            depth -= code.strip().startswith("}")
            indent = len(line) - len(line.lstrip())
            assert indent >= 4 * depth, line
            depth += code.count("{") - code.count("}") + code.strip().startswith("}")
        assert depth == 0

    def test_nothing_is_there_for_nothing(self, name: str, sources: dict[str, str]) -> None:
        """Every function, parameter of the geometry and variable is used again."""
        code = re.sub(r"//.*", "", sources[name])
        words = Counter(re.findall(r"[A-Za-z_]\w*", code))
        helpers = re.findall(r"__forceinline__ \S+ (\w+)\(", code)
        assert [word for word in helpers if words[word] == helpers.count(word)] == []
        declared = re.findall(
            r"^ +(?:const |constexpr )?(?:index|int|bool|float|double|Pack|Sum)&? (\w+) =",
            code,
            re.M,
        )
        assert [word for word in declared if words[word] < 2] == []
        fields = re.search(r"struct Geometry \{(.*?)\};", code, re.S)
        assert fields
        named = re.findall(r"\w+", re.sub(r"\b(long long|index|Place)\b", "", fields[1]))
        assert [field for field in named if f"geo.{field}" not in code] == []


def test_equal_kernels_have_equal_sources() -> None:
    """What a shape changes is in the geometry, not in the source."""
    p = projgen.build("l1(linf)", backend="cuda")
    assert p.source((1000, 1000)) == p.source((700, 900)) == p.source(2)
    assert p.source((1000, 1000)) != p.source((1000, 1000), np.float64)
    assert p.source((1000, 1000), "bfloat16") != p.source((1000, 1000), np.float16)


def test_no_text_of_a_spec_reaches_the_source() -> None:
    """Only the canonical spec does, in the first line."""
    source = projgen.build(" ℓ1 (\n linf ( axis = 1 ,) ) ", backend="cuda").source(2)
    assert source == projgen.build("l1(linf(axis=1))", backend="cuda").source(2)
    first, rest = source.split("\n", 1)
    assert first == "// l1(linf(axis=1)): projects float32 arrays on a GPU."
    assert "axis" not in rest


@pytest.mark.parametrize("exhibit", CUDA_CANON, ids=IDS)
def test_lowering_is_a_function_of_the_plan(exhibit: CudaExhibit) -> None:
    compiled = exhibit.compiled()
    assert lower(compiled.plan) == compiled.kernel
    assert render_cuda(compiled.kernel) == compiled.source


@pytest.mark.parametrize("exhibit", CUDA_PULL_CANON, ids=PULL_IDS)
def test_so_is_that_of_the_way_back(exhibit: CudaPullExhibit) -> None:
    compiled = exhibit.compiled()
    assert lower_pull(compiled.plan) == compiled.kernel
    assert render_cuda_pull(compiled.kernel) == compiled.source


LIMITS: dict[str, Callable[[Any], bool]] = {
    "grid": lambda launch: launch.grid[0] < 2**31 and max(launch.grid[1:]) < 2**16,
    "block": lambda launch: 32 <= launch.block[0] <= 1024 and launch.block[0] % 32 == 0,
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("spec", ["l1(linf)", "l1(linf(axis=0))", "l1(l1)", "l1", "l1(l1(axis=0))"])
def test_launches_stay_within_the_limits(spec: str, limit: str) -> None:
    binding = bind(parse_tree(spec), 2)
    for shape in ((1, 1), (2**20, 2**12), (2**12, 2**20), (2**31, 3), (3, 2**31), (2**16, 2**16)):
        compiled = compile_binding(binding, shape, "float32")
        assert all(map(LIMITS[limit], compiled.schedule.launches)), shape
        assert compiled.kernel.wide == (shape[0] * shape[1] > 2**31)


@pytest.mark.parametrize("spec", ["l1", "linf", "l2"])
@pytest.mark.parametrize("size", [2**31 - 1, 2**31 - 300, 2**31 - 2**16, 2**31 - 2**17])
def test_an_index_has_room_for_a_step_past_the_end(spec: str, size: int) -> None:
    compiled = compile_binding(bind(parse_tree(spec), 1), (size,), "float32")
    cut = compiled.plan.leaf.cut
    assert compiled.kernel.wide or cut.blocks * cut.step + 1024 < 2**31


def test_as_many_values_as_there_are_can_be_counted() -> None:
    """Above a threshold: those of a window that slides over few are many too."""
    for strides in ((2**12, 1), (1, 1)):
        source = compile_binding(
            bind(parse_tree("l1"), 2), (2**20, 2**12), "float32", strides, in_place=True
        ).source
        assert "typedef long long index;" in source
        assert "int above" not in source and "index above" in source


@pytest.mark.parametrize("size", [2**31 - 2**20, 2**31 - 100, 2**31 - 1, 2**31, 2**31 + 1])
def test_offsets_that_do_not_fit_an_int(size: int) -> None:
    """Loops step beyond their ends, and an extent may be where no offset is."""
    compiled = compile_binding(bind(parse_tree("l1"), 1), (size,), "float32")
    assert compiled.kernel.wide
    assert not re.search(r"\bint (above|warp_sum|block_sum)\b", compiled.source)
    assert not compile_binding(bind(parse_tree("l1"), 1), (2**30,), "float32").kernel.wide


def test_elements_that_overlap_are_counted_one_by_one() -> None:
    """A window slides over few elements, and there may be more values of it than an int holds."""
    compiled = compile_binding(
        bind(parse_tree("l1"), 2), (50_000, 50_000), "float32", (1, 1), in_place=True
    )
    assert compiled.kernel.wide


def test_more_groups_than_a_launch_has_blocks() -> None:
    with pytest.raises(ValueError, match="too many groups here: a launch would need 2147483648"):
        compile_binding(bind(parse_tree("linf(axis=1)"), 3), (2**31, 2, 3), "float16")


@pytest.mark.parametrize("spec", ["l1(linf)", "l1(linf(axis=0))", "l2(l2)", "linf(l2)"])
def test_few_launches(spec: str) -> None:
    """At most three for two levels."""
    for shape in ((1000, 1000), (64, 4096), (4096, 64), (10_000, 10_000)):
        compiled = compile_binding(bind(parse_tree(spec), 2), shape, "float32")
        assert len(compiled.schedule.launches) <= 3
