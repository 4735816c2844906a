"""The kernel cache: compiled modules on disk, addressed by the hash of their source.

    <root>/<toolchain>/<key>/kernel.py        the generated source; kernel.cu for a GPU
                             *.nbi, *.nbc     numba's index and object code; kernel.cubin
                             *.o, symbols.json  the object code alone, and its functions' names
                             SHA256SUMS       the digest of every file above

Jinja's code of a template is kept in the same way, beside a copy of the template.

An entry is built in a private directory next to its final place and appears there, whole, by one
rename. Afterwards nobody writes into it, and nobody reads it before all its digests are checked:
numba's own index is an unlocked read-modify-write, and damaged object code crashes the process.
Whatever cannot be trusted is not used (see `Store`). Nothing here imports numba.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from uuid import uuid4

from projgen.callers import outside
from projgen.errors import CacheWarning

FORMAT = 2  # of the layout above; part of the toolchain's name
SOURCE = "kernel.py"
CUDA_SOURCE = "kernel.cu"
TEMPLATE = "template.j2"
SUMS = "SHA256SUMS"
STALE_AFTER = 3600.0  # seconds after which an unpublished directory counts as abandoned

_TEMPORARY = ".tmp-"
_KEY = re.compile(r"[0-9a-f]{32}")
_NOTE = re.compile(r"(?:    |(?=level \d))(.+)")  # indented; not so in comments
_TOOLCHAIN = re.compile(r"v\d+-.+-[0-9a-f]{12}")


class UntrustedError(OSError):
    """Somebody else can change this directory, so nothing in it may be executed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached kernel; `size` in bytes, `mtime` in seconds since the epoch. `notes` say how it
    walks its arrays."""

    path: Path
    key: str
    title: str
    notes: tuple[str, ...]
    size: int
    mtime: float


def key_of(source: str) -> str:
    """The name of the entry that holds *source*: 32 hexadecimal digits."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def toolchain(versions: Mapping[str, str], settings: object) -> str:
    """The name of a directory for everything besides the source that decides the machine code.

    `versions` of the packages are readable in it; `settings` (their repr) and the Python build
    go into its closing hash.
    """
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
    packages = "-".join(f"{name}{version}" for name, version in versions.items())
    build = (sys.version_info[:2], sys.implementation.cache_tag, sys.platform, sys.maxsize)
    digest = hashlib.sha256(repr((build, settings)).encode()).hexdigest()[:12]
    return f"v{FORMAT}-{python}-{packages}-{digest}"


def cache_root() -> Path:
    """Where kernels are kept: `PROJGEN_CACHE_DIR`, else the platform's user cache directory."""
    if given := os.environ.get("PROJGEN_CACHE_DIR"):
        return Path(os.path.abspath(os.path.expanduser(given)))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir(), "projgen")
    given = os.environ.get("XDG_CACHE_HOME", "")
    if sys.platform != "darwin" and os.path.isabs(given):
        return Path(given, "projgen")
    try:
        home = Path.home()
    except RuntimeError:  # a user id without a name or a home, as in some containers
        return Path(tempfile.gettempdir(), f"projgen-{os.getuid()}")
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "projgen"


_private: tuple[int, Path] | None = None


def private_root() -> Path:
    """A directory for this process alone, removed at exit; OSError if there is no room."""
    global _private
    pid = os.getpid()  # a forked child must neither use nor remove its parent's
    if _private is None or _private[0] != pid or not _private[1].is_dir():
        _private = pid, Path(tempfile.mkdtemp(prefix="projgen-"))
        atexit.register(_remove_private, *_private)
    return _private[1]


def _remove_private(pid: int, path: Path) -> None:
    if pid == os.getpid():
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Store:
    """The entries of one toolchain under one root; get one from `Store.open`."""

    directory: Path

    @classmethod
    def open(cls, root: Path, toolchain: str) -> Store:
        """Create what is missing, and check that only this user can change it (else OSError)."""
        directory = root / toolchain
        for path in (root, directory):
            _make_directory(path)
            if reason := _distrust(path):
                raise UntrustedError(f"{path} {reason}")
        return cls(directory)

    def path(self, key: str) -> Path:
        """Where the entry is, or will be."""
        return self.directory / key

    def find(self, key: str) -> Path | None:
        """The entry, every byte of it verified, or None. A damaged one is removed."""
        entry = self.path(key)
        while (seen := _identity(entry)) is not None:
            damage = _damage(entry)
            if damage is None:
                return entry
            if _identity(entry) == seen:  # else somebody replaced it while we looked
                self.reject(key, damage)
                return None
        return None

    def reject(self, key: str, damage: str) -> None:
        """Remove an entry that cannot be used, and say so once per process."""
        entry = self.path(key)
        if _discard(entry):
            _warn_once("damaged", f"removed damaged code from the cache: {entry} {damage}")

    def begin(self) -> Path:
        """A fresh private directory, to be filled and then published or abandoned."""
        _make_directory(self.directory)
        build = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.directory))
        # By the file system's own clock, which need not be this machine's.
        for stale in _stale(self.directory, build.stat().st_mtime):
            _erase(stale)
        return build

    def publish(self, build: Path, key: str) -> None:
        """Make *build* the entry *key*, at once and whole; the first of several writers wins."""
        digests = {}
        for file in sorted(build.iterdir()):
            file.chmod(0o600)
            digests[file.name] = _digest(file)
        sums = build / SUMS
        sums.write_bytes(_render_sums(digests))
        sums.chmod(0o600)
        try:
            os.rename(build, self.path(key))
        except OSError:
            if _identity(self.path(key)) is None:
                raise

    def abandon(self, build: Path) -> None:
        """Remove what `begin` created, unless it was published."""
        _erase(build)


def warn_unusable(reason: OSError) -> None:
    """Say, once per process, that compiled kernels will not be there for the next one."""
    _warn_once(
        "unusable",
        f"compiled kernels cannot be kept in {cache_root()}: {reason}; "
        "the next process will compile them again",
    )


def entries() -> list[Entry]:
    """The kernels that the cache holds, for all toolchains, the newest first."""
    found = []
    for path in _entry_paths(cache_root()):
        with suppress(OSError):  # removed meanwhile
            info = path.stat()
            if (path / TEMPLATE).exists():
                continue
            found.append(Entry(path, path.name, *_titled(path), _size(path), info.st_mtime))
    return sorted(found, key=lambda entry: (-entry.mtime, entry.key))


def clear() -> tuple[int, int]:
    """Remove all entries and abandoned directories; how many kernels, and how many bytes."""
    root = cache_root()
    count = size = 0
    for path in _entry_paths(root):
        bytes_held, is_kernel = _size(path), not (path / TEMPLATE).exists()
        if _discard(path):
            count, size = count + is_kernel, size + bytes_held
    for directory in _toolchain_paths(root):
        for stale in _stale(directory, time.time()):
            size += _size(stale)
            _erase(stale)
        with suppress(OSError):  # a kernel is being built in it
            directory.rmdir()
    return count, size


def health() -> list[str]:
    """What is wrong with the cache, one sentence each; empty when all is well."""
    root = cache_root()
    problems = []
    try:
        _make_directory(root)
        for path in (root, *_toolchain_paths(root)):
            if reason := _distrust(path):
                problems.append(f"{path} {reason}")
        os.rmdir(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
    except OSError as error:
        problems.append(f"{root} cannot be written: {error.strerror or error}")
    for path in _entry_paths(root):
        if (damage := _damage(path)) and path.exists():
            problems.append(f"{path} {damage}")
    now = time.time()
    for directory in _toolchain_paths(root):
        problems += [f"{path} was left by a killed process" for path in _stale(directory, now)]
    return problems


def _make_directory(path: Path) -> None:
    """Create *path* and its missing parents, all of them with mode 0700."""
    missing = []
    for ancestor in (path, *path.parents):
        if ancestor.exists():
            break
        missing.append(ancestor)
    for ancestor in reversed(missing):
        ancestor.mkdir(mode=0o700, exist_ok=True)


def _distrust(path: Path) -> str | None:
    """Why not to execute what lies in *path*; None if it is a directory only we can change."""
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        return "is not a directory"
    if sys.platform == "win32":  # ownership and access lists are the profile directory's there
        return None
    me = os.geteuid()
    if info.st_uid != me or path.lstat().st_uid not in (me, 0):
        return "belongs to another user"
    if info.st_mode & 0o022:
        return "can be written by other users (chmod go-w helps)"
    return None


def _damage(entry: Path) -> str | None:
    """What is wrong with an entry; None if it is exactly what was published."""
    try:
        if entry.is_symlink():
            return "is a link"
        if reason := _distrust(entry):
            return reason
        files = sorted(entry.iterdir())
        for file in files:
            info = file.lstat()
            if not stat.S_ISREG(info.st_mode):
                return f"holds {file.name}, which is not a file"
            if sys.platform != "win32" and (info.st_uid != os.geteuid() or info.st_mode & 0o022):
                return f"holds {file.name}, which other users can write"
        sums = (entry / SUMS).read_bytes()
        listed = [line[66:] for line in sums.decode(errors="replace").splitlines()]
        if sorted([*listed, SUMS]) != sorted(file.name for file in files):
            return f"does not hold the files that its {SUMS} lists"
        digests = {file.name: _digest(file) for file in files if file.name != SUMS}
        if sums != _render_sums(digests):
            return f"does not match its {SUMS}"
        sources = [digests[name] for name in (SOURCE, CUDA_SOURCE, TEMPLATE) if name in digests]
        if not sources or sources[0][:32] != entry.name:
            return "holds the source of another kernel"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _render_sums(digests: Mapping[str, str]) -> bytes:
    """In the format of sha256sum, which can check an entry too."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino, info.st_ctime_ns


def _discard(path: Path) -> bool:
    """Take *path* away at once, then delete it; False if somebody else did."""
    trash = path.with_name(f"{_TEMPORARY}{uuid4().hex}")
    try:
        os.rename(path, trash)
    except FileNotFoundError:
        return False
    _erase(trash)
    return True


def _erase(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        path.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _toolchain_paths(root: Path) -> Iterator[Path]:
    """The directories that are ours; whatever else somebody keeps under *root* is left alone."""
    for path in _listing(root):
        if _TOOLCHAIN.fullmatch(path.name) and path.is_dir():
            yield path


def _entry_paths(root: Path) -> Iterator[Path]:
    for directory in _toolchain_paths(root):
        yield from (path for path in _listing(directory) if _KEY.fullmatch(path.name))


def _stale(directory: Path, now: float) -> list[Path]:
    """Unpublished directories that are too old to be still at work."""
    stale = []
    for path in _listing(directory):
        with suppress(FileNotFoundError):
            if path.name.startswith(_TEMPORARY) and path.lstat().st_mtime < now - STALE_AFTER:
                stale.append(path)
    return stale


def _listing(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in _listing(path)) if path.is_dir() else 0


def _titled(entry: Path) -> tuple[str, tuple[str, ...]]:
    """The first line of the kernel's docstring or comment, which names its spec; and the notes
    there, one for each level."""
    try:
        if (entry / CUDA_SOURCE).exists():
            lines = (entry / CUDA_SOURCE).read_text("utf-8").splitlines()
            head = [line[3:] for line in takewhile(lambda line: line.startswith("//"), lines)]
        else:
            text = ast.get_docstring(ast.parse((entry / SOURCE).read_bytes()))
            head = (text or "").splitlines()
    except (OSError, SyntaxError, ValueError):
        head = []
    notes = (match[1] for line in head if (match := _NOTE.match(line)))
    return next(iter(head), ""), tuple(notes)


_warned: set[str] = set()


def _warn_once(kind: str, message: str) -> None:
    if kind in _warned:
        return
    _warned.add(kind)
    warnings.warn(message, CacheWarning, stacklevel=outside("projgen", "jinja2"))
