"""The contract between `lower` and the templates, and what every generated module keeps to."""

import ast
import builtins
import dataclasses
import hashlib
import inspect
import itertools
import os
import re
from collections.abc import Iterator
from functools import cache
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
from projgen.render import render
from projgen.resources import resource_dir
from projgen.stage import Stage, Walk
from projgen.templates import environment

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


@cache
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
        # Jinja counts a name that is set or imported inside an {% if %}: it may not come to that.
        names = tree(name).find_all(nodes.Name)
        somewhere = {node.name for node in names if node.ctx == "store"}
        somewhere |= {node.target for node in tree(name).find_all(nodes.Import)}
        somewhere |= {
            given for node in tree(name).find_all(nodes.FromImport) for given in node.names
        }
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


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    """Those defined in a module or a function, which itself is not among them."""
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node is not tree
    ]


def is_compiled(function: ast.FunctionDef) -> str:
    """What Numba makes of it: the decorator's name, or nothing for a function of Python's."""
    for decorator in function.decorator_list:
        made = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(made, ast.Name):
            return made.id
    return ""


@pytest.mark.parametrize("name", IDS)
class TestSources:
    def test_it_imports_only_numpy_and_numba(self, name: str, sources: dict[str, str]) -> None:
        found = {imported.split(".")[0] for imported in imports(ast.parse(sources[name]))}
        assert found <= {"math", "numpy", "numba"}

    def test_nothing_is_there_for_nothing(self, name: str, sources: dict[str, str]) -> None:
        """Every import, constant and function is used, and none is there twice; every variable is
        read."""
        assert unused_names(sources[name]) == []
        assert repeated_names(sources[name]) == []

    def test_bodies_of_intrinsics_are_plain_python(
        self, name: str, sources: dict[str, str]
    ) -> None:
        """They run while machine code is made, where `max` would be the module's: an intrinsic."""
        module = ast.parse(sources[name])
        compiled = {
            function.name: function for function in functions(module) if is_compiled(function)
        }
        for function in compiled.values():
            if is_compiled(function) == "intrinsic":
                inner = {nested.name for nested in functions(function)}
                called = {
                    call.func.id
                    for call in ast.walk(function)
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
                }
                assert not (called - inner) & set(compiled), function.name

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


@dataclasses.dataclass(frozen=True)
class Names:
    """Of a piece of source: what it defines at its top, or anywhere; what it reads; and what of
    its functions' own names, and of their arguments, they do not read."""

    top: frozenset[str]
    anywhere: frozenset[str]
    read: frozenset[str]
    unused: tuple[str, ...]
    arguments: tuple[str, ...]


def names(source: str) -> list[Names]:
    """Those of each function, which many kernels share: two blank lines are between them."""
    return [names_of_a_piece(piece) for piece in source.split("\n\n\n")]


@cache
def names_of_a_piece(piece: str) -> Names:
    module = ast.parse(piece)
    top, imported, unused, arguments = set(), set(), [], []
    for node in module.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            top.add(node.name)
            stored, read = names_in(node)
            unused += [f"{node.name}.{name}" for name in stored - read]
            # An intrinsic's are read by its inner function; all kernels have the same.
            inner = any(isinstance(child, ast.FunctionDef) for child in node.body)
            if not inner and node.name != "pull":
                given = {argument.arg for argument in node.args.args}
                arguments += [f"{node.name}.{name}" for name in given - stored - read]
        else:
            top |= names_in(node)[0]
    stored, read = names_in(module)
    inside = {node.arg for node in ast.walk(module) if isinstance(node, ast.arg)}
    inside |= {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
    top |= imported
    sets = map(frozenset, (top, stored | inside | imported, read))
    return Names(*sets, tuple(unused), tuple(arguments))


def names_in(node: ast.AST) -> tuple[set[str], set[str]]:
    """The names that are stored in a piece of code, and those that are loaded."""
    found = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    stored = {n.id for n in found if isinstance(n.ctx, ast.Store)}
    return stored, {n.id for n in found if isinstance(n.ctx, ast.Load)}


def unused_names(source: str) -> list[str]:
    """Top-level names that nothing in the module reads, and local ones that their function does
    not."""
    found = names(source)
    top = set().union(*(each.top for each in found)) - {"project", "pull"}
    top -= set().union(*(each.read for each in found))
    return sorted([*top, *(name for each in found for name in each.unused)])


def unused_arguments(source: str) -> list[str]:
    """Arguments of functions that these do not read."""
    return sorted(name for each in names(source) for name in each.arguments)


def repeated_names(source: str) -> list[str]:
    """Functions and constants that are defined twice: of two, all callers would have the last."""
    found = [name for each in names(source) for name in each.top]
    return sorted(name for name in set(found) if found.count(name) > 1)


def undefined_names(source: str) -> list[str]:
    """Names that are read and that nothing in the module defines."""
    found = names(source)
    defined = set(dir(builtins)).union(*(each.anywhere for each in found))
    return sorted(set().union(*(each.read for each in found)) - defined)


def test_unused_names_are_found() -> None:
    source = "import math, re\ndef f(): a = re\n\n\nb = c = 1\ndef g(): a = f; return a + b"
    assert unused_names(source) == ["c", "f.a", "g", "math"]


def test_undefined_names_are_found() -> None:
    source = "import math\n\n\ndef f(x): return max(x, math.pi, y, g)\nz = f"
    assert undefined_names(source) == ["g", "y"]


def test_repeated_names_are_found() -> None:
    source = "def f(): pass\n\n\nx = 1\n\n\ndef f(): pass\n\n\nx = y = 2"
    assert repeated_names(source) == ["f", "x"]


@pytest.mark.parametrize(
    ("shape", "ways"),
    [
        ((2100, 4100, 64), ["transpose", "transpose"]),
        ((100, 512, 1000), ["strip", "tile"]),
        ((2100, 20, 100), ["transpose", "sort"]),
    ],
)
def test_columns_of_both_types(shape: tuple[int, ...], ways: list[str]) -> None:
    """The leaf's are of the array's type, those above of float64: each has functions of its own."""
    binding = bind(parse_tree("linf(l1(l1(axis=1), axis=0))"), 3)
    compiled = compile_binding(binding, shape, "float32")
    assert [s.threshold for s in compiled.kernel.stages] == ["", *ways]
    assert repeated_names(compiled.source) == []
    assert undefined_names(compiled.source) == [] == unused_names(compiled.source)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("leaf", CHAINED)
def test_every_way_of_a_level_goes_with_every_way_of_another(leaf: str, in_place: bool) -> None:
    """All names are defined, and none is there for nothing: packed, wide, far and small levels."""
    ways: set[str] = set()
    seen: set[str] = set()
    shapes = (1000, 1000, 9), (100_000, 3, 40), (2000, 3000, 3), (20, 300, 20)
    chains = itertools.product(CHAINED, itertools.permutations(range(3)))
    for number, ((above, order), shape) in enumerate(itertools.product(chains, shapes)):
        spec = "linf({}({}(axis={}), axis={}), axis={})".format(above, leaf, *order)
        # Each shape and each chain has both; the lines of the other half are the same.
        positive = (number + in_place) % 2 == 1
        compiled = compile_binding(
            bind(parse_tree(spec), 3), shape, "float32", in_place=in_place, positive=positive
        )
        _, _, code = compiled.source.split('"""', 2)  # of many shapes alike, but for the notes
        if code in seen:
            continue
        seen.add(code)
        ways |= {way for s in compiled.kernel.stages for way in (s.walk, s.threshold)}
        assert undefined_names(compiled.source) == [], (spec, shape)
        assert unused_names(compiled.source) == [], (spec, shape)
        assert repeated_names(compiled.source) == [], (spec, shape)
    assert ways >= {*map(str, Walk), "row", "sweep"}
    assert leaf != "l1" or "tile" in ways


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
        assert undefined_names(source) == [], source
        assert unused_names(source) == [], source
        assert repeated_names(source) == [], source
        assert unused_arguments(source) == [], source
        assert not re.search(r"[ \t]\n|\t|\n{4}|:\n\n", source), source


def test_each_norm_of_groups_has_a_way_back() -> None:
    """With the same macros."""
    files = {norm: f"cpu/group_pulls/{norm}.py.j2" for norm in NORMS if NORMS[norm].alone}
    assert {*files.values()} == {name for name in GROUP_PULLS if "/group_pulls/" in name}
    shared = {"gathered", "slope", "known", "elements", "shared", "lifted"}
    for name in files.values():
        assert shared <= {macro.name for macro in tree(name).find_all(nodes.Macro)}, name


def test_rendering_is_deterministic(sources: dict[str, str]) -> None:
    code = "from projgen.gallery import gallery\nimport hashlib\n"
    code += "print(hashlib.sha256(repr(sorted(gallery().items())).encode()).hexdigest())"
    here = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    assert run_python(code, PYTHONHASHSEED=other).strip() == here


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
