"""The contract between `lower` and the templates, and what every generated module keeps to."""

import ast
import builtins
import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from jinja2 import StrictUndefined, meta, nodes
from jinja2.exceptions import UndefinedError
from support import run_python

import projgen
from projgen.bind import bind
from projgen.check import parse_tree
from projgen.compiler import c_strides, compile_binding
from projgen.cpu.ball import Ball
from projgen.cpu.group_kernel import GroupKernel
from projgen.cpu.group_pull_kernel import GroupPullKernel
from projgen.cpu.kernel import Kernel, Phase
from projgen.cpu.lower import lower
from projgen.cpu.nest import Counter, Nest
from projgen.cpu.pull_kernel import PullCode, PullKernel
from projgen.cpu.stages import StageCode
from projgen.cpu.tally import TallyKernel
from projgen.gallery import CANON, Exhibit, gallery
from projgen.norms import CHAINED, NORMS
from projgen.render import environment, render
from projgen.resources import resource_dir
from projgen.stage import Stage, Walk

TEMPLATES = resource_dir("templates")
NAMES = sorted(path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.glob("cpu/**/*.j2"))
MACROS = {norm.name: f"cpu/norms/{norm.name}.py.j2" for norm in CHAINED.values()}
BALLS = {name for name in NAMES if name.startswith("cpu/balls/")}
PARTS = (
    "groups", "abreast", "gather", "lp_steps", "passes", "powers", "ranks", "scales", "spread",
    "survey",
)  # fmt: skip
GROUPS = {*(f"cpu/{part}.py.j2" for part in PARTS), *BALLS}
GROUP_PULLS = {name for name in NAMES if name.startswith("cpu/group_pull")}  # of their way back
PULLS = {name for name in NAMES if name.startswith("cpu/pull")}  # of the way back
TALLY = "cpu/tally.py.j2"  # of shards
GIVEN = {  # what modules that are no kernels are rendered with
    "cpu/series.py.j2": {"columns"},
    "cpu/pull_series.py.j2": {"columns"},
    "cpu/team.py.j2": {"board"},
}
RULES = {name for name in PULLS if name.startswith("cpu/pulls/")}
IDS = [exhibit.name for exhibit in CANON]


def tree(name: str) -> nodes.Template:
    return environment().parse((TEMPLATES / name).read_text(encoding="utf-8"))


# What the templates ask for is what `lower` supplies

# What template variables hold. Everything else there is a string, a number, a list or a macro.
VARIABLES = {
    "kernel": Kernel,
    "s": StageCode,
    "p": Phase,
    "nest": Nest,
    "c": Counter,
}
PULL_VARIABLES = {"kernel": PullKernel, "p": PullCode, "leaf": PullCode}
CONTRACT = (
    Kernel,
    StageCode,
    Nest,
    Counter,
    Phase,
    GroupKernel,
    Ball,
    PullKernel,
    PullCode,
    GroupPullKernel,
    TallyKernel,
)


def supplied(kind: type) -> dict[str, Any]:
    """The public names of a class that a template may use, and their types."""
    names: dict[str, Any] = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    for name, member in inspect.getmembers(kind):
        if name.startswith("_"):
            continue
        function = getattr(member, "fget", None) or getattr(member, "func", None) or member
        if callable(function):
            names[name] = get_type_hints(function).get("return")
    return names


def kind_of(node: nodes.Node, template: str) -> Any:
    """The class of an expression's value, where it is one of the contract's."""
    if isinstance(node, nodes.Name):
        if template in GROUPS:
            return GroupKernel if node.name == "kernel" else None
        if template in GROUP_PULLS:
            return GroupPullKernel if node.name == "kernel" else None
        if template == TALLY:
            return TallyKernel if node.name == "kernel" else None
        if template in PULLS and node.name in PULL_VARIABLES:
            return PULL_VARIABLES[node.name]
        return VARIABLES.get(node.name)
    if isinstance(node, nodes.Getattr):
        owner = kind_of(node.node, template)
        hint = supplied(owner).get(node.attr) if owner else None
        return next((k for k in (*CONTRACT, Stage) if hint in (k, k | None)), None)
    return None


def used() -> set[tuple[type, str]]:
    """Each (class, name) that a template looks up."""
    found = set()
    for name in NAMES:
        for node in tree(name).find_all(nodes.Getattr):
            owner = kind_of(node.node, name)
            if owner is not None:
                found.add((owner, node.attr))
    return found


def test_one_object_is_all_that_the_templates_are_given() -> None:
    for name in NAMES:
        # Jinja counts a name that is set inside an {% if %}, for it may not come to that.
        names = tree(name).find_all(nodes.Name)
        somewhere = {node.name for node in names if node.ctx == "store"}
        undeclared = meta.find_undeclared_variables(tree(name)) - somewhere
        whole = {"cpu/kernel.py.j2", "cpu/pull.py.j2", TALLY, *GROUPS, *GROUP_PULLS}
        allowed = {"kernel"} if name in whole else GIVEN.get(name, set())
        assert undeclared <= allowed, name


def test_every_template_is_reached() -> None:
    reached, new = (
        set(),
        {
            "cpu/kernel.py.j2",
            "cpu/pull.py.j2",
            TALLY,
            *GIVEN,
            *RULES,
            *MACROS.values(),
            *GROUPS,
            *GROUP_PULLS,
        },
    )
    while new:
        reached |= new
        referenced = {r for name in new for r in meta.find_referenced_templates(tree(name))}
        new = referenced - reached - {None}  # a norm's, which only the kernel knows
    assert reached == set(NAMES)


def test_each_ball_of_the_language_has_a_file() -> None:
    files = {norm: f"cpu/balls/{norm}.py.j2" for norm in NORMS}
    assert {files[norm] for norm in NORMS.keys() - CHAINED.keys()} <= BALLS <= {*files.values()}


def test_what_templates_look_up_exists() -> None:
    missing = [f"{kind.__name__}.{name}" for kind, name in used() if name not in supplied(kind)]
    assert missing == []


def test_nothing_is_supplied_that_nobody_uses() -> None:
    """A name that is only for Python code stands outside the line that defines it."""
    package = Path(projgen.__file__).parent
    python = "".join(p.read_text(encoding="utf-8") for p in sorted(package.rglob("*.py")))
    looked_up = used()
    unused = [
        f"{kind.__name__}.{name}"
        for kind in CONTRACT
        for name in supplied(kind)
        if (kind, name) not in looked_up and not re.search(rf"\.{name}\b", python)
    ]
    assert unused == []


def test_norms_offer_the_same_macros_and_all_are_used() -> None:
    texts = {name: (TEMPLATES / name).read_text(encoding="utf-8") for name in NAMES}
    offers = {
        norm: {m.name: tuple(a.name for a in m.args) for m in tree(name).find_all(nodes.Macro)}
        for norm, name in MACROS.items()
    }
    every = offers["l2"]
    for norm, offer in offers.items():
        name = MACROS[norm]
        assert offer.items() <= every.items(), name
        searched = {"limit", "limited"} if CHAINED[norm].searches else set()
        assert set(every) - set(offer) == searched, name
        for macro in offer:
            outside = any(re.search(rf"(n|\])\.{macro}\(", text) for text in texts.values())
            inside = len(re.findall(rf"(?<!\.)\b{macro}\(", texts[name])) > 1
            assert outside or inside, f"{macro} of {name} is not used"


def test_every_macro_is_used() -> None:
    text = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in NAMES)
    macros = {macro.name for name in NAMES for macro in tree(name).find_all(nodes.Macro)}
    assert [name for name in sorted(macros) if len(re.findall(rf"\b{name}\(", text)) < 2] == []


def test_every_parameter_is_used() -> None:
    """But for those of norms, whose macros are all alike."""
    unused = []
    for path in TEMPLATES.glob("c*/*.j2"):
        for macro in tree(path.relative_to(TEMPLATES).as_posix()).find_all(nodes.Macro):
            read = {name.name for name in macro.find_all(nodes.Name) if name.ctx == "load"}
            unused += [f"{macro.name}({a.name})" for a in macro.args if a.name not in read]
    assert unused == []


def test_an_undefined_name_is_an_error() -> None:
    assert environment().undefined is StrictUndefined
    with pytest.raises(UndefinedError):
        environment().from_string("{{ kernel.nothing }}").render(kernel=lowered("l1"))


def lowered(spec: str, shape: tuple[int, ...] = (100, 200)) -> Kernel:
    return compile_binding(bind(parse_tree(spec), len(shape)), shape, "float32").kernel


# What is rendered


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return gallery()


def imports(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module or ""


@pytest.mark.parametrize("name", IDS)
class TestSources:
    def test_it_imports_only_numpy_and_numba(self, name: str, sources: dict[str, str]) -> None:
        found = {imported.split(".")[0] for imported in imports(ast.parse(sources[name]))}
        assert found <= {"math", "numpy", "numba"}

    def test_nothing_is_there_for_nothing(self, name: str, sources: dict[str, str]) -> None:
        """Every import, constant and function is used, and every variable is read."""
        module = ast.parse(sources[name])
        assert unused_names(module) == []

    def test_it_is_laid_out_like_code_that_someone_wrote(
        self, name: str, sources: dict[str, str]
    ) -> None:
        source = sources[name]
        assert source.endswith("\n")
        assert not source.endswith("\n\n")
        assert not re.search(r"[ \t]\n|\t|\r", source)
        assert not re.search(r"\n{4}", source), "more than two blank lines"
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                first = min(n.lineno for n in [node, *node.decorator_list])
                assert lines[first - 3 : first - 1] == ["", ""], f"before {node.name}"
        assert not re.search(r":\n\n", source), "a block that begins with a blank line"
        assert source.isascii()

    def test_functions_say_what_they_do(self, name: str, sources: dict[str, str]) -> None:
        module = ast.parse(sources[name])
        assert ast.get_docstring(module)
        for node in module.body:
            if isinstance(node, ast.FunctionDef):
                assert ast.get_docstring(node), node.name


def unused_names(module: ast.Module) -> list[str]:
    """Top-level names that nothing in the module reads, and local ones that their function does
    not."""

    def names(node: ast.AST, context: type) -> set[str]:
        found = (n for n in ast.walk(node) if isinstance(n, ast.Name))
        return {n.id for n in found if isinstance(n.ctx, context)}

    top = {"project", "pull"}
    defined: set[str] = set()
    unused = []
    for node in module.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            defined.add(node.name)
            unused += [
                f"{node.name}.{name}" for name in names(node, ast.Store) - names(node, ast.Load)
            ]
        else:
            defined |= names(node, ast.Store)
    return sorted([*unused, *(defined - names(module, ast.Load) - top)])


def test_unused_names_are_found() -> None:
    module = ast.parse("import math, re\ndef f(): a = re\nb = c = 1\ndef g(): a = f; return a + b")
    assert unused_names(module) == ["c", "f.a", "g", "math"]


def undefined_names(module: ast.Module) -> list[str]:
    """Names that are read and that nothing in the module defines."""
    read = {n.id for n in ast.walk(module) if isinstance(n, ast.Name)}
    defined = {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and is_stored(n)}
    defined |= {n.arg for n in ast.walk(module) if isinstance(n, ast.arg)}
    defined |= {n.name for n in ast.walk(module) if isinstance(n, ast.FunctionDef)}
    for node in module.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {alias.asname or alias.name for alias in node.names}
    return sorted(read - defined - set(dir(builtins)))


def is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def test_undefined_names_are_found() -> None:
    module = ast.parse("import math\ndef f(x): return max(x, math.pi, y, g)\nz = f")
    assert undefined_names(module) == ["g", "y"]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("leaf", CHAINED)
def test_every_way_of_a_level_goes_with_every_way_of_another(leaf: str, in_place: bool) -> None:
    """All names are defined, and none is there for nothing: packed, wide, far and small levels."""
    ways: set[str] = set()
    seen: set[str] = set()
    for above, order in itertools.product(CHAINED, itertools.permutations(range(3))):
        spec = "linf({}({}(axis={}), axis={}), axis={})".format(above, leaf, *order)
        binding = bind(parse_tree(spec), 3)
        shapes = ((1000, 1000, 9), (100_000, 3, 40), (2000, 3000, 3))
        for shape, positive in itertools.product(shapes, (False, True)):
            compiled = compile_binding(
                binding, shape, "float32", in_place=in_place, positive=positive
            )
            _, _, code = compiled.source.split('"""', 2)  # of many shapes alike, but for the notes
            if code in seen:
                continue
            seen.add(code)
            module = ast.parse(compiled.source)
            ways |= {way for s in compiled.kernel.stages for way in (s.walk, s.threshold)}
            assert undefined_names(module) == [], (spec, shape)
            assert unused_names(module) == [], (spec, shape)
    assert ways >= {*map(str, Walk), "row", "tile", "sweep"}


def group_pulls() -> Iterator[GroupPullKernel]:
    """The ways back through every kind of group."""
    for norm, walk, weighted, nonneg in itertools.product(
        NORMS, ("rows", "columns", "labels"), (False, True), (False, True)
    ):
        if not NORMS[norm].alone or (weighted and not NORMS[norm].weighs):
            continue
        for ragged, depth, p in itertools.product(
            {walk == "labels", walk != "rows"},
            range(3),
            (1.3, 1.5, 3.0) if norm == "lp" else (None,),
        ):
            ball = Ball(norm, p, weighted, nonneg, ragged)
            for unit in ({"y", "w"}, {"y"}, set()):
                if "y" in unit or walk != "columns":
                    yield GroupPullKernel(ball, "float32", walk, frozenset(unit), "float64", depth)


def test_every_way_back_through_groups() -> None:
    """All names are defined, none is there for nothing, and no line is empty but between parts."""
    for source in {kernel.source for kernel in group_pulls()}:
        module = ast.parse(source)
        assert undefined_names(module) == [], source
        assert unused_names(module) == [], source
        assert unused_arguments(module) == [], source
        assert not re.search(r"[ \t]\n|\t|\n{4}|:\n\n", source), source


def unused_arguments(module: ast.Module) -> list[str]:
    """Arguments of functions that these do not read; an intrinsic's are read by its inner one."""
    return sorted(
        f"{node.name}.{argument.arg}"
        for node in module.body
        if isinstance(node, ast.FunctionDef)
        and node.name != "pull"  # all kernels have the same
        and not any(isinstance(inner, ast.FunctionDef) for inner in node.body)
        for argument in node.args.args
        if argument.arg not in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    )


def test_each_norm_of_groups_has_a_way_back() -> None:
    """With the same macros."""
    files = {norm: f"cpu/group_pulls/{norm}.py.j2" for norm in NORMS if NORMS[norm].alone}
    assert {*files.values()} == {name for name in GROUP_PULLS if "/group_pulls/" in name}
    shared = {"gathered", "slope", "known", "elements", "shared", "lifted"}
    for name in files.values():
        assert shared <= {macro.name for macro in tree(name).find_all(nodes.Macro)}, name


def test_rendering_is_deterministic() -> None:
    code = "from projgen.gallery import gallery\nimport hashlib\n"
    code += "print(hashlib.sha256(repr(sorted(gallery().items())).encode()).hexdigest())"
    assert run_python(code, PYTHONHASHSEED="1") == run_python(code, PYTHONHASHSEED="2")


def test_equal_kernels_have_equal_sources() -> None:
    """What a shape changes is in the geometry, not in the source."""
    p = projgen.build("l1(linf)")
    assert p.source((1000, 1000)) == p.source((700, 3000)) == p.source(2)
    assert p.source((1000, 1000)) != p.source((1000, 1000), np.float64)
    assert render(lowered("l1(l2)")) == render(lowered("l1(l2)"))


@pytest.mark.parametrize(
    "spelling",
    [
        "l1(linf(axis=1))",
        " l1 (\n linf ( axis = 1 ,) ) ",
        "ℓ1(ℓ∞(axis=1))",
        "l1(l∞(axis=(1,)))",
    ],
)
def test_no_text_of_a_spec_reaches_the_source(spelling: str) -> None:
    """Only the canonical spec does, in the first line."""
    source = projgen.build(spelling).source(2)
    assert source == projgen.build("l1(linf(axis=1))").source(2)
    first, rest = source.split("\n", 1)
    assert first == '"""l1(linf(axis=1)): projects float32 arrays.'
    assert "axis" not in rest.replace("axes", "")


def test_the_spec_is_all_that_tells_two_spellings_of_axes_apart() -> None:
    def code(spec: str) -> str:
        return projgen.build(spec).source(2).split("\n", 1)[1]

    assert code("l1(linf)") == code("l1(linf(axis=1))") == code("l1(linf(axis=-1), axis=0)")


@pytest.mark.parametrize("exhibit", CANON, ids=IDS)
def test_lowering_is_a_function_of_the_plan(exhibit: Exhibit) -> None:
    compiled = exhibit.compiled()
    assert lower(compiled.plan, exhibit.positive) == compiled.kernel
    assert render(compiled.kernel) == compiled.source


def test_c_order_is_the_default() -> None:
    binding = bind(parse_tree("l1(l2)"), 3)
    shape = (4, 5, 6)
    assert compile_binding(binding, shape, "float32") == compile_binding(
        binding, shape, "float32", c_strides(shape), c_strides(shape)
    )
