"""The kernel cache and the loader, with hand-written kernels; processes are real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from projgen import cache
from projgen.cpu import machine_code

POSIX = os.name == "posix"
IMPORTABLE = os.pathsep.join(
    [str(Path(cache.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
)
KEY = cache.key_of("source\n")

KERNEL = '''\
"""FACTOR times a vector of float32"""
import numpy as np
from numba import njit, types

VECTOR = types.Array(types.float32, 1, "C", readonly=True)
SIGNATURE = types.int64(VECTOR, types.Array(types.float32, 1, "C"))


@njit(nogil=True)
def scaled(value):
    return value * np.float32(FACTOR)


@njit(SIGNATURE, nogil=True, cache=True)
def project(y, x):
    for i in range(y.size):
        x[i] = scaled(y[i])
    return y.size
'''

# What every child process starts with. It ends with one line of JSON: the warnings, and whatever
# the script put into `report`.
PRELUDE = f"""\
import json, os, sys, warnings
import numpy as np
import numpy.ma  # as a dispatcher of Numba's does when it is called, in nobody's care
KERNEL = {KERNEL!r}
report = {{}}

def source(factor):
    return KERNEL.replace("FACTOR", str(factor))

def run(factor):
    from projgen.cpu.load import load
    y = np.arange(4, dtype=np.float32)
    x = np.zeros_like(y)
    module = load(source(factor))
    assert module.project(y, x) == 4 and np.array_equal(x, y * factor), x
    return module

def hits(module):
    return sum(module.project.stats.cache_hits.values())

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
"""
EPILOGUE = """
report["warnings"] = [f"{w.category.__name__}: {w.message}" for w in caught]
print(json.dumps(report))
"""


def start(script: str, root: Path, **environ: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "PROJGEN_"))}
    ours = {"PROJGEN_CACHE_DIR": str(root), "PYTHONPATH": IMPORTABLE}
    body = textwrap.indent(textwrap.dedent(script), "    ")
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + body + EPILOGUE],
        env={**inherited, **ours, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def python(script: str, root: Path, **environ: str) -> dict[str, Any]:
    return finish(start(script, root, **environ))


def files(root: Path) -> dict[Path, tuple[int, int, bytes]]:
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_warned", set())


def name_toolchain(settings: object = None) -> str:
    return cache.toolchain({"numba": "1.0"}, settings)


@pytest.fixture
def store(root: Path) -> cache.Store:
    return cache.Store.open(root, name_toolchain())


def publish(store: cache.Store, source: str = "source\n") -> Path:
    key = cache.key_of(source)
    build = store.begin()
    (build / cache.SOURCE).write_text(source)
    (build / "kernel.nbi").write_bytes(b"index")
    (build / "kernel.nbc").write_bytes(b"code" * 100)
    store.publish(build, key)
    store.abandon(build)
    return store.path(key)


# --- loading ------------------------------------------------------------------------------------


def test_second_process_loads_what_the_first_compiled(root: Path, tmp_path: Path) -> None:
    first = python("report['hits'] = hits(run(3)); report['file'] = run(3).__file__", root)
    before = files(root)
    # numba's own cache directory and locators must neither be used nor get in the way.
    second = python(
        """
        import numba
        before = numba.config.CACHE_LOCATOR_CLASSES
        report['hits'] = hits(run(3)); report['file'] = run(3).__file__
        assert numba.config.CACHE_LOCATOR_CLASSES == before
        """,
        root,
        NUMBA_CACHE_DIR=str(tmp_path / "numba"),
        NUMBA_CACHE_LOCATOR_CLASSES="InTreeCacheLocator",
    )
    assert (first["hits"], second["hits"]) == (0, 1)
    assert first["file"] == second["file"] and Path(first["file"]).is_file()
    assert files(root) == before
    assert not (tmp_path / "numba").exists()
    assert first["warnings"] == second["warnings"] == []


def test_a_module_is_loaded_once_and_reads_like_a_file(root: Path) -> None:
    report = python(
        """
        import inspect, sys, threading, traceback
        from projgen.cpu.load import load
        modules = []
        work = lambda: modules.append(load(source(3)))
        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(set(modules)) == 1
        module = modules[0]
        assert sys.modules[module.__name__] is module
        assert "np.float32(3)" in inspect.getsource(module.scaled.py_func)

        failing = source(5) + "raise ZeroDivisionError('in the source')\\n"
        names = set(sys.modules)
        try:
            load(failing)
        except ZeroDivisionError:
            assert "raise ZeroDivisionError('in the source')" in traceback.format_exc()
        else:
            raise AssertionError
        assert not {n for n in set(sys.modules) - names if n.startswith("projgen_kernel")}
        """,
        root,
    )
    assert report["warnings"] == []
    assert [entry.title for entry in cache.entries()] == ["3 times a vector of float32"]
    assert not list(root.rglob(".tmp-*"))


def test_persist_false_leaves_no_trace(root: Path) -> None:
    python(
        """
        import inspect
        from projgen.cpu.load import load
        module = load(source(3), persist=False)
        assert "np.float32(3)" in inspect.getsource(module.scaled.py_func)
        """,
        root,
    )
    assert not root.exists()


def test_disabled_jit_runs_and_publishes_nothing(root: Path) -> None:
    report = python("run(3)", root, NUMBA_DISABLE_JIT="1")
    assert report["warnings"] == []
    assert cache.entries() == [] and not list(root.rglob(".tmp-*"))


def test_disabled_jit_and_a_kernel(root: Path) -> None:
    """Which is called by its address: there is none without a compiler."""
    child = start("import projgen; projgen.project(np.ones((4, 3)), 'l1(linf)', 1.0)", root,
                  NUMBA_DISABLE_JIT="1")  # fmt: skip
    _, err = child.communicate(timeout=120)
    assert child.returncode == 1
    assert err.splitlines()[-1].startswith("RuntimeError: NUMBA_DISABLE_JIT is set, so kernels")


def test_four_processes_at_once(root: Path) -> None:
    """All compile one kernel, and two each another one."""
    script = "run(2); run(3 + int(os.environ['WHO']) % 2)"
    children = [start(script, root, WHO=str(who)) for who in range(4)]
    assert [finish(child)["warnings"] for child in children] == [[]] * 4
    assert len(cache.entries()) == 3
    assert cache.health() == []
    assert not list(root.rglob(".tmp-*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", ["import", "compilation"])
def test_fork_while_another_thread_compiles(root: Path, moment: str) -> None:
    report = python(
        f"""
        import threading, time
        import projgen.cpu.load
        thread = threading.Thread(target=run, args=(3,))
        thread.start()
        while {moment!r} == "import" and "numba.core" not in sys.modules:
            time.sleep(0.001)
        while {moment!r} == "compilation" and not os.path.exists(os.environ["PROJGEN_CACHE_DIR"]):
            time.sleep(0.001)
        assert thread.is_alive()
        pid = os.fork()
        if pid == 0:
            run(3), run(4)
            os._exit(0)
        deadline = time.monotonic() + 60
        while not (done := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.01)
        if not done[0]:
            os.kill(pid, 9)
        thread.join()
        report['status'] = done
        """,
        root,
    )
    assert report["status"][0] > 0 and report["status"][1] == 0
    assert len(cache.entries()) == 2


def test_spawned_processes(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(PRELUDE.partition("with warnings")[0])
    report = python(
        """
        import multiprocessing
        import kernels
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=kernels.run, args=(factor,)) for factor in (2, 3)]
        [worker.start() for worker in workers]
        [worker.join(60) for worker in workers]
        report['codes'] = [worker.exitcode for worker in workers]
        report['hits'] = [hits(run(2)), hits(run(3))]
        """,
        root,
        PYTHONPATH=os.pathsep.join([str(tmp_path), IMPORTABLE]),
    )
    assert report == {"codes": [0, 0], "hits": [1, 1], "warnings": []}


def test_settings_that_change_code_change_the_directory(root: Path) -> None:
    report = python(
        """
        from projgen.cpu.load import _toolchain
        import numba
        names = [_toolchain()]
        for name, value in [("OPT", "1"), ("BOUNDSCHECK", "1"), ("LOOP_VECTORIZE", "0"),
                            ("CPU_NAME", "generic")]:
            os.environ["NUMBA_" + name] = value
            names.append(_toolchain())
            del os.environ["NUMBA_" + name]
        names.append(_toolchain())
        report['names'] = names
        report['numba'] = numba.__version__
        """,
        root,
    )
    names = report["names"]
    assert names[0] == names[-1] and len(set(names)) == len(names) - 1
    assert f"-cp{sys.version_info[0]}{sys.version_info[1]}" in names[0]
    assert f"-numba{report['numba']}-" in names[0]


# --- damage -------------------------------------------------------------------------------------


def test_damaged_entries_heal_with_one_warning(root: Path) -> None:
    python("run(2), run(3), run(4)", root)
    two, three, four = sorted(cache.entries(), key=lambda entry: entry.title)
    code = next(two.path.glob("*.nbc"))
    flipped = bytearray(code.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    code.write_bytes(flipped)
    os.truncate(next(three.path.glob("*.nbi")), 40)
    (four.path / "stray").write_text("")
    assert len(cache.health()) == 3

    report = python("report['hits'] = [hits(run(factor)) for factor in (2, 3, 4)]", root)
    assert report["hits"] == [0, 0, 0]
    assert len(report["warnings"]) == 1
    assert report["warnings"][0].startswith("CacheWarning: removed damaged code")
    assert cache.health() == [] and not list(root.rglob(".tmp-*"))

    report = python("report['hits'] = [hits(run(factor)) for factor in (2, 3, 4)]", root)
    assert report == {"hits": [1, 1, 1], "warnings": []}


def test_an_intact_entry_that_numba_refuses_is_replaced(root: Path) -> None:
    python("run(2), run(3)", root)
    two, three = sorted(cache.entries(), key=lambda entry: entry.title)
    # Each file is what its digest says, and yet there is no code (two) or no pickle (three).
    next(two.path.glob("*.nbc")).unlink()
    next(three.path.glob("*.nbc")).write_bytes(b"not a pickle")
    for entry in (two, three):
        digests = {
            file.name: cache._digest(file)
            for file in sorted(entry.path.iterdir())
            if file.name != cache.SUMS
        }
        (entry.path / cache.SUMS).write_bytes(cache._render_sums(digests))
    assert cache.health() == []
    report = python("run(2), run(3)", root)
    assert len(report["warnings"]) == 1 and "refused by numba" in report["warnings"][0]
    report = python("report['hits'] = [hits(run(2)), hits(run(3))]", root)
    assert report == {"hits": [1, 1], "warnings": []}


DAMAGED_FILES = [cache.SOURCE, "kernel.nbi", "kernel.nbc", cache.SUMS]


@pytest.mark.parametrize("name", DAMAGED_FILES)
@pytest.mark.parametrize("damage", ["first bit", "last bit", "truncate", "empty", "remove", "grow"])
def test_every_damage_is_seen(store: cache.Store, name: str, damage: str) -> None:
    entry = publish(store)
    assert store.find(KEY) == entry
    file = entry / name
    content = bytearray(file.read_bytes())
    if damage == "first bit":
        content[0] ^= 1
    elif damage == "last bit":
        content[-1] ^= 128
    elif damage == "truncate":
        del content[-1]
    elif damage == "empty":
        content.clear()
    elif damage == "grow":
        content += b"\0"
    file.unlink() if damage == "remove" else file.write_bytes(content)
    with pytest.warns(cache.CacheWarning) as caught:
        assert store.find(KEY) is None
    assert len(caught) == 1
    assert list(store.directory.iterdir()) == []
    assert publish(store) == store.find(KEY)


def _extra_file(entry: Path) -> None:
    (entry / "extra").write_text("")


def _extra_directory(entry: Path) -> None:
    (entry / "__pycache__").mkdir()


def _empty_directory(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.mkdir(mode=0o700)


def _file_instead(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("")


def _linked_file(entry: Path) -> None:
    os.rename(entry / "kernel.nbc", entry.parents[1] / "elsewhere")
    (entry / "kernel.nbc").symlink_to(entry.parents[1] / "elsewhere")


def _linked_entry(entry: Path) -> None:
    os.rename(entry, entry.parents[1] / "elsewhere")
    entry.symlink_to(entry.parents[1] / "elsewhere", target_is_directory=True)


def _another_kernels(entry: Path) -> None:
    shutil.rmtree(entry)
    os.rename(publish(cache.Store(entry.parent), "another source\n"), entry)


def _pipe(entry: Path) -> None:
    (entry / "kernel.nbc").unlink()
    os.mkfifo(entry / "kernel.nbc")


def _writable_file(entry: Path) -> None:
    (entry / "kernel.nbc").chmod(0o666)


def _writable_entry(entry: Path) -> None:
    entry.chmod(0o770)


POSIX_DAMAGE = [_linked_file, _linked_entry, _pipe, _writable_file, _writable_entry]


@pytest.mark.parametrize(
    "spoil",
    [
        _extra_file,
        _extra_directory,
        _empty_directory,
        _file_instead,
        _another_kernels,
        *(POSIX_DAMAGE if POSIX else ()),
    ],
)
def test_entries_of_a_wrong_shape_are_removed(store: cache.Store, spoil: Any) -> None:
    spoil(publish(store))
    with pytest.warns(cache.CacheWarning):
        assert store.find(KEY) is None
    assert list(store.directory.iterdir()) == []


def test_an_entry_replaced_while_it_is_verified_is_not_damage(
    store: cache.Store, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    entry = publish(store)
    (entry / "kernel.nbc").write_bytes(b"")
    verify = cache._damage

    def verify_and_replace(path: Path) -> str | None:
        monkeypatch.setattr(cache, "_damage", verify)
        damage = verify(path)
        shutil.rmtree(path)
        publish(store)
        return damage

    monkeypatch.setattr(cache, "_damage", verify_and_replace)
    assert store.find(KEY) == entry
    assert not recwarn.list


def test_of_two_publishers_the_first_wins(store: cache.Store) -> None:
    first, second = store.begin(), store.begin()
    for build in (first, second):
        (build / cache.SOURCE).write_text("source\n")
        (build / "kernel.nbc").write_text(build.name)
    store.publish(first, KEY)
    store.publish(second, KEY)
    store.abandon(second)
    assert (store.path(KEY) / "kernel.nbc").read_text() == first.name
    assert store.find(KEY) is not None
    assert [path.name for path in store.directory.iterdir()] == [KEY]


def test_only_abandoned_directories_are_swept(store: cache.Store) -> None:
    live, killed = store.begin(), store.begin()
    (killed / "kernel.py").write_text("half a ker")
    old = time.time() - cache.STALE_AFTER - 60
    os.utime(killed, (old, old))
    assert [problem.partition(" was ")[0] for problem in cache.health()] == [str(killed)]
    newest = store.begin()
    assert sorted(store.directory.iterdir()) == sorted([live, newest])


# --- trust --------------------------------------------------------------------------------------


@pytest.mark.skipif(not POSIX, reason="no owners and modes")
@pytest.mark.parametrize("level", ["root", "toolchain"])
@pytest.mark.parametrize("who", ["group", "world", "foreigner", "link to theirs", "their link"])
def test_what_others_can_change_is_not_trusted(
    root: Path, level: str, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(cache.Store.open(root, name_toolchain()))
    path = root if level == "root" else root / name_toolchain()
    if who == "group":
        path.chmod(0o770)
    elif who == "world":
        path.chmod(0o707)
    elif who == "foreigner":
        change_owner(path, monkeypatch)
    else:
        if who == "their link" and os.geteuid() != 0:
            pytest.skip("only the superuser can give a link away")
        target = tmp_path / "target"
        path.rename(target)
        path.symlink_to(target)
        change_owner(target if who == "link to theirs" else path, monkeypatch)
    with pytest.raises(cache.UntrustedError, match=r"belongs to another|other users"):
        cache.Store.open(root, name_toolchain())
    assert any(str(path) in problem for problem in cache.health())


def change_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make *path* somebody else's; without the right to, make everything so in our eyes."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)


@pytest.mark.skipif(not POSIX, reason="no owners and modes")
def test_a_link_to_a_directory_of_ours_is_fine(root: Path, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "large disk")
    store = cache.Store.open(root, name_toolchain())
    assert publish(store) == store.find(KEY)
    assert cache.health() == []


@pytest.mark.skipif(not POSIX, reason="no owners and modes")
def test_directories_are_created_private(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        publish(cache.Store.open(tmp_path / "a" / "b", name_toolchain()))
    finally:
        os.umask(mask)
    for path in (tmp_path / "a").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("spoil", ["file", "world-writable", "read-only", "rename fails"])
def test_an_unusable_root_costs_one_warning(root: Path, tmp_path: Path, spoil: str) -> None:
    if spoil == "world-writable" and not POSIX:
        pytest.skip("no modes")
    hurt = ""
    if spoil == "file":
        root.write_text("")
    elif spoil == "world-writable":
        root.mkdir()
        root.chmod(0o777)
    elif spoil == "read-only":
        root.mkdir()
        root.chmod(0o500)
        if os.access(root, os.W_OK):  # as for the superuser: let the calls themselves fail
            hurt = "fail('mkdir', errno.EROFS)"
    else:
        hurt = "fail('rename', errno.ENOSPC)"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    report = python(
        f"""
        import errno, functools
        def fail(name, code):
            genuine = getattr(os, name)
            def failing(path, *args, **kwargs):
                if str(path).startswith(os.environ["PROJGEN_CACHE_DIR"]):
                    raise OSError(code, os.strerror(code), str(path))
                return genuine(path, *args, **kwargs)
            setattr(os, name, functools.partial(failing))
        {hurt}
        report['files'] = [run(2).__file__, run(3).__file__]
        report['private'] = [oct(os.stat(p).st_mode & 0o777) for p in os.scandir({str(scratch)!r})]
        """,
        root,
        TMPDIR=str(scratch),
        TEMP=str(scratch),
        TMP=str(scratch),
    )
    assert len(report["warnings"]) == 1
    assert f"CacheWarning: compiled kernels cannot be kept in {root}" in report["warnings"][0]
    if spoil != "rename fails":  # which happens after the kernel was compiled and can be used
        assert all(Path(file).is_relative_to(scratch) for file in report["files"])
        assert not POSIX or report["private"] == ["0o700"]
    assert list(scratch.iterdir()) == []
    assert root.is_file() or not [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.skipif(not POSIX, reason="needs RLIMIT_FSIZE")
def test_a_full_disk_everywhere_compiles_in_memory(root: Path, tmp_path: Path) -> None:
    report = python(
        """
        import inspect, resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        module = run(2)
        run(3)
        assert "np.float32(2)" in inspect.getsource(module.scaled.py_func)
        report['file'] = module.__file__
        """,
        root,
        TMPDIR=str(tmp_path),
    )
    assert len(report["warnings"]) == 1
    assert report["file"].startswith("<projgen kernel ")
    assert not files(root) and [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_error_while_numba_writes_falls_back(root: Path) -> None:
    report = python(
        """
        import errno
        from numba.core import caching
        def full(*args):
            raise OSError(errno.ENOSPC, "no space left on device")
        caching.IndexDataCacheFile._save_data = full
        report['file'] = run(2).__file__
        """,
        root,
    )
    assert report["file"].startswith("<projgen kernel ") and len(report["warnings"]) == 1
    assert not files(root)


# --- what the command line uses -----------------------------------------------------------------


def test_cache_root_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PROJGEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.cache_root() == tmp_path / "xdg" / "projgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_root() == tmp_path / ".cache" / "projgen"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_root() == tmp_path / "Library" / "Caches" / "projgen"
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache.cache_root() == tmp_path / "local" / "projgen"
    monkeypatch.setenv("PROJGEN_CACHE_DIR", "~/mine")
    assert cache.cache_root() == tmp_path / "mine"


def test_entries_and_clear(store: cache.Store, root: Path) -> None:
    old = publish(store, '"""the older kernel\n\nmore"""\n')
    new = publish(store, "'not a docstring' if True else 0\n")
    os.utime(old, (1, 1))
    mine = root / "notes" / KEY
    mine.mkdir(parents=True)
    (mine / "kernel.py").write_text("not ours to remove")

    listed = cache.entries()
    assert [entry.path for entry in listed] == [new, old]
    assert [entry.title for entry in listed] == ["", "the older kernel"]
    assert listed[1].key == old.name and listed[1].mtime == 1
    assert listed[1].size == sum(file.stat().st_size for file in old.iterdir())

    assert cache.clear() == (2, sum(entry.size for entry in listed))
    assert cache.entries() == []
    assert [path for path in root.rglob("*") if path.is_file()] == [mine / "kernel.py"]
    assert cache.clear() == (0, 0)


def test_health(store: cache.Store, root: Path) -> None:
    entry = publish(store)
    assert cache.health() == []
    (entry / "kernel.nbc").unlink()
    assert cache.health() == [f"{entry} does not hold the files that its SHA256SUMS lists"]
    cache.clear()
    assert cache.health() == []
    shutil.rmtree(root)
    root.write_text("")
    assert len(cache.health()) >= 1 and str(root) in cache.health()[0]


def test_import_is_light() -> None:
    code = "import sys, projgen.cpu.load; print({'numba', 'llvmlite', 'jinja2'} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": IMPORTABLE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "set()"


# --- machine code without numba -----------------------------------------------------------------

ADDRESSED = '''\
"""Twice a number, from nine on an exception"""
from numba import cfunc, types


@cfunc(types.int64(types.int64), cache=True)
def double(x):
    if x > 8:
        raise ValueError
    return 2 * x
'''

CALL = f"""
import ctypes
from projgen.cpu.load import load
ADDRESSED = {ADDRESSED!r}
module = load(ADDRESSED)
double = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(module.double.address)
assert double(4) == 8
report['numba'] = 'numba' in sys.modules
"""


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a process has left `ADDRESSED`."""
    kept = tmp_path_factory.mktemp("compiled") / "cache"
    assert python(CALL, kept)["numba"]
    return kept


@pytest.fixture
def compiled(root: Path, compiled_once: Path) -> Path:
    """A copy of it."""
    shutil.copytree(compiled_once, root)
    return root


def test_a_second_process_links_the_code_without_numba(root: Path) -> None:
    assert python(CALL, root)["numba"]
    before = files(root)
    report = python(CALL + "report['file'] = module.__file__", root)
    assert not report["numba"] and report["warnings"] == []
    assert Path(report["file"]).read_text() == ADDRESSED
    assert files(root) == before
    # It is the same entry for a process that has numba for its own ends.
    assert python("import numba\n" + textwrap.dedent(CALL), root)["numba"]
    assert files(root) == before


def test_a_projection_without_numba(root: Path) -> None:
    """Of a tree, whose parts are kernels of a chain and of groups. These call the libm; and they
    copy groups and weights, but allocate nothing: code that does asks for numba's runtime."""
    script = """
    import projgen
    y = np.random.default_rng(0).standard_normal((5, 30, 4))
    p = projgen.build("l1(lp(axis=(0, 2), p=3, w=w))")
    report['x'] = p(y, 2.0, w=np.ones_like(y)).tolist()
    report['numba'] = 'numba' in sys.modules
    """
    first, second = python(script, root), python(script, root)
    assert first["numba"] and not second["numba"]
    assert first["x"] == second["x"]


def test_settings_of_numba_have_code_of_their_own(compiled: Path) -> None:
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert len(cache.entries()) == 1
    settings: list[dict[str, str]] = [{"NUMBA_OPT": "1"}, {"NUMBA_BOUNDSCHECK": "1"}, generic]
    for count, changed in enumerate(settings, start=2):
        assert python(CALL, compiled, **changed)["numba"]
        assert len(cache.entries()) == count


def test_the_usual_settings_are_numba_s_own(root: Path) -> None:
    """If they were not, each process would import numba to learn what they are."""
    script = """
    import numba
    from projgen.cpu import load
    report['changed'] = load._changed_settings()
    """
    assert python(script, root)["changed"] == []


def test_code_that_cannot_be_linked_is_left_to_numba(root: Path) -> None:
    python(CALL, root)
    (entry,) = cache.entries()
    symbols = entry.path / machine_code.SYMBOLS
    symbols.write_text('{"double": "there is none of this name"}')
    sums = {file.name: cache._digest(file) for file in sorted(entry.path.iterdir())}
    del sums[cache.SUMS]
    (entry.path / cache.SUMS).write_bytes(cache._render_sums(sums))
    report = python(CALL, root)
    assert report["numba"] and report["warnings"] == []


def test_a_numba_that_keeps_its_code_elsewhere(root: Path) -> None:
    """It is needed in every process, and works."""
    keep = "machine_code.keep = lambda *_: os.there_is_none"
    other = f"from projgen.cpu import machine_code\n{keep}\n{CALL}"
    for _ in range(2):
        report = python(other, root)
        assert report["numba"] and report["warnings"] == []
    assert not list(root.rglob("*.o"))


def test_damaged_code_is_compiled_again(compiled: Path) -> None:
    (entry,) = cache.entries()
    code = entry.path / "double.o"
    data = bytearray(code.read_bytes())
    data[len(data) // 2] ^= 1
    code.write_bytes(data)
    (warning,) = python(CALL, compiled)["warnings"]
    assert "does not match" in warning
    assert not python(CALL, compiled)["numba"]


def test_an_exception_in_linked_code_is_reported(compiled: Path) -> None:
    child = start(CALL + "report['odd'] = double(9)", compiled)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0 and json.loads(out.splitlines()[-1])["numba"] is False
    assert "a kernel raised an exception" in err
