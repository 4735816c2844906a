"""Generated CUDA C++ to a program of this machine, with g++; kept on disk, by its content."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
COMMON = ("-std=c++20", "-g1", "-gdwarf-4", "-fno-pie", "-ffp-contract=off")
ENGINE = (*COMMON, "-O2", "-Wall", "-Wextra", "-Werror")
KERNEL = (
    *("-O1", "-fno-strict-aliasing", "-fno-jump-tables", "-ftrivial-auto-var-init=pattern"),
    *("-Werror=uninitialized", "-Werror=maybe-uninitialized", "-Werror=return-type"),
    # Half of UndefinedBehaviorSanitizer; what it finds ends the program.
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fno-sanitize-recover=all",
)
LINKER = ("-fuse-ld=gold",) if shutil.which("ld.gold") else ()  # twice as quick
INCLUDE = ("-I", str(HERE), "-I", str(HERE / "include"))
# The machine on fibers defines what g++ calls for ThreadSanitizer, whose own library stays away.
MACHINES = {
    "fibers": ("fibers.cpp", "memory.cpp", "serve.cpp"),
    "threads": ("threads.cpp", "serve.cpp"),
}
OPTIONS = {"fibers": ("-DSIMT_HOOKED",), "threads": ()}
EXTRA: dict[str, tuple[str, ...]] = {"fibers": (), "threads": ("-fsanitize=thread",)}


class BuildError(Exception):
    """What g++ said of a source."""


@lru_cache
def missing() -> str | None:
    """Why no kernel can be run here, or None."""
    if platform.system() != "Linux":
        return "the SIMT machine needs Linux"
    if not shutil.which("g++") or not shutil.which("addr2line"):
        return "the SIMT machine needs g++ and addr2line"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout
    if int(version.split(".")[0]) < 12:
        return f"the SIMT machine needs g++ 12, not {version.strip()}"
    return None


@lru_cache
def cache() -> Path:
    """A directory of the user's own for programs, in the temporary one."""
    path = Path(tempfile.gettempdir(), f"projgen-simt-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="projgen-simt-"))
    return path


def build(source: str, machine: str = "fibers", flags: tuple[str, ...] = ()) -> Path:
    """The program that runs the kernels of `source`. A `BuildError` if it does not compile.

    Kernels of different specs often differ by their comments alone: they share a program.
    """
    source = uncommented(source)
    flags = (*COMMON, *KERNEL, "-fsanitize=thread", *OPTIONS[machine], *flags)
    directory = cache() / _key(source, machine, *flags)
    program = directory / "program"
    if not program.exists():
        engine = [str(_object(name, *EXTRA[machine])) for name in MACHINES[machine]]
        with tempfile.TemporaryDirectory(dir=cache()) as work:
            Path(work, "kernel.cu").write_text(_for_the_host(source), encoding="utf-8")
            Path(work, "main.cpp").write_text(_main(source), encoding="utf-8")
            include = ("-I", str(_header(flags)), *INCLUDE)
            _run("g++", *flags, *include, "-c", "main.cpp", "-o", "main.o", cwd=work)
            link = ("-no-pie", *LINKER, "main.o", *engine, *EXTRA[machine], "-lubsan")
            _run("g++", *link, "-o", "program", cwd=work)
            _move(Path(work), directory, "program", "kernel.cu")
    return program


def command(program: Path, machine: str) -> list[str]:
    """How to start a program: ThreadSanitizer wants its memory where it expects it."""
    fixed = ["setarch", platform.machine(), "-R"] if machine == "threads" else []
    return [*fixed, str(program)]


@lru_cache(maxsize=1024)
def shared_arrays(program: Path) -> tuple[tuple[str, int, int], ...]:
    """The ``__shared__`` arrays of a program: name, address, size."""
    table = subprocess.run(["objdump", "-t", str(program)], capture_output=True, text=True).stdout
    found = re.findall(r"^(\w+) .*\bsimt_shared\s+(\w+)\s+(\S+)$", table, re.MULTILINE)
    return tuple(
        (_name(symbol), int(address, 16), int(size, 16))
        for address, size, symbol in found
        if int(size, 16)
    )


def _name(symbol: str) -> str:
    """Of a mangled local variable: ``_ZZ...E4sums`` is sums."""
    mangled = re.search(r"E\d+([A-Za-z_]\w*?)(?:_\d+)?$", symbol)
    return mangled[1] if mangled else symbol


def uncommented(source: str) -> str:
    """Without its comments, each line where it was."""
    return re.sub("//.*", "", source)


def _for_the_host(source: str) -> str:
    """Dynamic shared memory is a pointer here; nothing else changes, and no line moves."""
    pattern = r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;"
    return re.sub(pattern, r"\1* const \2 = static_cast<\1*>(simt::dynamic_shared());", source)


def _main(source: str) -> str:
    kernels = re.findall(
        r"__global__\s+void\s+(?:__launch_bounds__\(([^)]*)\)\s*)?(\w+)\s*\(", source
    )
    entries = ", ".join(f"SIMT_KERNEL({name}, {bounds or 0})" for bounds, name in kernels)
    return f"""\
#include "program.h"
namespace {{
#include "kernel.cu"
}}
const simt::Kernel simt::kernels[] = {{{entries}}};
const int simt::kernel_count = {len(kernels)};
"""


def _header(flags: tuple[str, ...]) -> Path:
    """Where program.h lies precompiled: it is a third of a small kernel's time."""
    directory = cache() / f"{_key('program.h', *flags)}-header"
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as work:
            made = ("-x", "c++-header", str(HERE / "program.h"), "-o", "program.h.gch")
            _run("g++", *flags, *INCLUDE, *made, cwd=work)
            _move(Path(work), directory, "program.h.gch")
    return directory


def _object(name: str, *flags: str) -> Path:
    """A part of the machine, compiled once."""
    path = cache() / f"{_key(name, *flags)}-{name}.o"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as work:
            made = Path(work, name + ".o")
            _run("g++", *ENGINE, *flags, "-c", str(HERE / name), "-o", str(made), cwd=work)
            os.replace(made, path)
    return path


@lru_cache
def _harness() -> bytes:
    files = sorted([*HERE.rglob("*.h"), *HERE.rglob("*.cpp"), HERE / "build.py"])
    version = subprocess.run(["g++", "--version"], capture_output=True).stdout
    return version + b"".join(path.read_bytes() for path in files)


def _key(*texts: str) -> str:
    state = hashlib.sha256(_harness())
    for text in texts:
        state.update(text.encode() + b"\0")
    return state.hexdigest()[:32]


def _run(*command: str, cwd: str) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(done.stderr[:5000])


def _move(work: Path, directory: Path, *names: str) -> None:
    """Files from `work` to `directory`, which is there as a whole or not at all."""
    staged = work.with_name(work.name + "-made")
    staged.mkdir()
    for name in names:
        os.replace(work / name, staged / name)
    try:
        os.rename(staged, directory)
    except OSError:  # somebody else was quicker
        shutil.rmtree(staged)
