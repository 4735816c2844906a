"""What a wheel holds, and that an installed projgen finds its grammars and templates."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
FOLDERS = ("grammars", "templates")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").is_file(), reason="not in a checkout"),
]


def run(*command: object, cwd: Path) -> str:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(directory: Path, *, pip: bool = False) -> Path:
    """A new virtual environment; its interpreter."""
    venv.create(directory, with_pip=pip, symlinks=os.name == "posix")
    return directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has hatchling: this one, or one that pip can give it to."""
    if importlib.util.find_spec("hatchling"):
        return Path(sys.executable)
    python = environment(tmp_path_factory.mktemp("builder"), pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "hatchling>=1.26"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("hatchling is not installed, and pip cannot get it here")
    return python


def build(builder: Path, source: Path, target: str, out: Path) -> Path:
    run(builder, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    (built,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(builder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(builder, CHECKOUT, "wheel", tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(folder: str) -> set[str]:
    return {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_its_data(wheel: Path) -> None:
    expected = tracked("projgen") | {f"projgen/{name}" for f in FOLDERS for name in tracked(f)}
    held = names(wheel)
    assert {name for name in held if ".dist-info/" not in name} == expected
    assert all(any(name.startswith(f"projgen/{folder}/") for name in held) for folder in FOLDERS)
    assert "projgen/py.typed" in held
    assert any(name.endswith("/licenses/LICENSE") for name in held)


def test_the_sdist_gives_the_same_wheel(builder: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build(builder, CHECKOUT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert (source / "tests" / Path(__file__).name).is_file()
    assert names(build(builder, source, "wheel", tmp_path / "wheel")) == names(wheel)


LOOK = """
import importlib.metadata, pathlib, projgen, projgen.resources
print(pathlib.Path(projgen.__file__).resolve().parent)
for folder in ("grammars", "templates"):
    found = projgen.resources.resource_dir(folder)
    print(found.resolve(), sum(path.is_file() for path in found.rglob("*")))
print([script.value for script in importlib.metadata.entry_points(
    group="console_scripts", name="projgen")])
print(projgen.build("l1(linf(axis=1))").norm(__import__("numpy").ones((2, 3))))
"""


@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_an_installed_projgen_works_from_anywhere(
    how: str, builder: Path, wheel: Path, tmp_path: Path
) -> None:
    python = environment(tmp_path / "venv", pip=True)
    place = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    # The dependencies are those of the environment that runs the tests; projgen is not.
    (Path(place.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    built = wheel if how == "wheel" else build_editable(builder, tmp_path / "dist")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", built, cwd=tmp_path)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    package, *folders, script, norm = run(python, "-c", LOOK, cwd=elsewhere).splitlines()
    home = CHECKOUT if how == "editable" else Path(package)
    assert Path(package).is_relative_to(CHECKOUT if how == "editable" else tmp_path.resolve())
    for folder, line in zip(FOLDERS, folders, strict=True):
        assert line == f"{home / folder} {len(tracked(folder))}"
    assert script == "['projgen.cli:main']"
    assert float(norm) == 2.0


def build_editable(builder: Path, out: Path) -> Path:
    """What `pip install --editable` asks hatchling for."""
    out.mkdir()
    hook = "import sys, hatchling.build as b; print(b.build_editable(sys.argv[1]))"
    return out / run(builder, "-c", hook, out, cwd=CHECKOUT).split()[-1]
