"""Templates' code is kept in the cache: a process that finds it there does not make it again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import run_python

from projgen import cache
from projgen.templates import environment

TEMPLATE = "cpu/series.py.j2"
# How many templates Jinja compiled, what the text is, and what was warned of.
RENDER = """
import hashlib, json, warnings
from jinja2 import Environment
made, genuine = [], Environment.compile
def compile(self, source, name=None, *args, **kwargs):
    made.append(name)
    return genuine(self, source, name, *args, **kwargs)
Environment.compile = compile
from projgen.render import render_series
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    text = render_series(("y", "x", "work"))
assert all("removed damaged code" in str(w.message) and w.filename == "<string>" for w in caught)
print(json.dumps([len(made), hashlib.sha256(text.encode()).hexdigest(), len(caught)]))
"""


def render(root: Path) -> list[object]:
    found: list[object] = json.loads(run_python(RENDER, PROJGEN_CACHE_DIR=str(root)))
    return found


def kept(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob(cache.TEMPLATE))


def test_a_second_process_makes_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path))
    made, text, warned = render(tmp_path)
    assert isinstance(made, int) and made == len(kept(tmp_path)) > 0 and warned == 0
    assert render(tmp_path) == [0, text, 0]

    # It is no kernel, but the cache's to check and to clear.
    assert cache.entries() == [] and cache.health() == []
    for entry in kept(tmp_path):  # of a template that loads others, and of those
        code = entry / "template.code"
        code.write_bytes(code.read_bytes()[:-1])
        assert len(cache.health()) == 1
        assert render(tmp_path) == [1, text, 1]
        assert render(tmp_path) == [0, text, 0]
    count, size = cache.clear()
    assert count == 0 and size > 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", ["a file", "others can write"])
def test_without_a_cache_the_code_is_made_each_time(tmp_path: Path, spoil: str) -> None:
    root = tmp_path / "cache"
    if spoil == "a file":
        root.write_text("")
    elif os.name == "posix":
        root.mkdir()
        root.chmod(0o777)
    else:
        pytest.skip("no modes")
    first, second = render(root), render(root)
    assert first == second and first[0] != 0 and first[2] == 0
    assert root.is_file() or not list(root.iterdir())


def test_a_template_that_changes_has_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path))
    templates = environment().overlay(cache_size=0)
    for text in ("one", "two", "one"):
        monkeypatch.setattr(templates.loader, "get_source", lambda *_, t=text: (t, "file", None))
        assert templates.get_template(TEMPLATE).render() == text
    assert len(kept(tmp_path)) == 2
