"""Whether projgen can work here: what is installed, what the machine has, and a proof."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from projgen import __version__, cache, interpret
from projgen.api import build
from projgen.bind import bind
from projgen.cpu.pool import THREADS, asked_threads, processors
from projgen.cuda import nvrtc
from projgen.cuda.cupy import cupy, no_driver
from projgen.terminal import Terminal, format_bytes, format_count, format_seconds, progress

REQUIRED = ("numpy", "numba", "llvmlite", "lark", "jinja2")
OPTIONAL = ("safetensors", "torch")
TOLERANCE = 1e-5  # of the largest entry, for float32


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``status`` is "ok", "note" for what is absent and need not be, or "problem"."""

    topic: str
    text: str
    status: str = "ok"

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    def draw(self, terminal: Terminal) -> None:
        """For people."""
        mark, colour = {"ok": ("✓", "green"), "note": ("·", "dim"), "problem": ("!", "red")}[
            self.status
        ]
        terminal.write(f"{terminal.paint(mark, colour)} {self.topic:12} {self.text}")


def examine() -> Iterator[Finding]:
    """All findings, one by one; the last one takes a moment."""
    yield Finding("projgen", f"{__version__} in {Path(__file__).parent}")
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        version = _version(name)
        yield Finding(name, version or "missing", "ok" if version else "problem")
    for name in OPTIONAL:
        version = _version(name)
        yield Finding(name, version or "not installed (optional)", "ok" if version else "note")
    yield Finding("processor", f"{_processor()}, {os.cpu_count()} in all")
    yield _threads()
    yield from _gpu()
    yield from _cache()
    yield _proof()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _threads() -> Finding:
    asked = asked_threads()
    if asked == 0:
        given = f"{THREADS}={os.environ[THREADS]} is ignored: it is a whole number of at least 1"
        return Finding("threads", f"{processors()} share a large call; {given}", "problem")
    origin = f"({THREADS})" if asked else f"(change it with {THREADS})"
    return Finding("threads", f"{asked or processors()} share a large call {origin}")


def _gpu() -> Iterator[Finding]:
    """What arrays on a GPU need, and what compiling for one needs."""
    try:
        reason = no_driver()
    except ImportError as error:
        reason = str(error)
    if reason is None:
        device = cupy().cuda.Device()
        name = cupy().cuda.runtime.getDeviceProperties(device.id)["name"].decode()
        capability = device.compute_capability
        yield Finding("gpu", f"{name}, sm_{capability}, by CuPy {cupy().__version__}")
    else:
        yield Finding("gpu", f"none to use: {reason}", "note")
    reason = nvrtc.missing()
    if reason:
        yield Finding("nvrtc", reason, "note")
        return
    known = nvrtc.architectures()
    yield Finding("nvrtc", f"{nvrtc.version()}, compiles for {known[0]} to {known[-1]}")
    if not tuple(nvrtc.include_paths()):
        hint = "float16 on a GPU: pip install nvidia-cuda-runtime"
        yield Finding("nvrtc", f"no cuda_fp16.h, which it needs for {hint}", "note")


def _cache() -> Iterator[Finding]:
    problems = cache.health()
    kept = cache.entries()
    size = format_bytes(sum(entry.size for entry in kept))
    count = format_count(len(kept), "kernel")
    yield Finding("cache", f"{cache.cache_root()}, {count}, {size}")
    for problem in problems:
        yield Finding("cache", problem, "problem")


def _proof() -> Finding:
    """Compile a tiny kernel and compare it with the reference."""
    spec = "l1(linf(axis=1))"
    y = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    started = perf_counter()
    try:
        with progress(f"compiling {spec}"):
            projection = build(spec)
            x = projection(y, 1.0)
        expected = interpret.project(bind(projection.tree, y.ndim), y, 1.0)
    except Exception as error:  # whatever it is: saying so is what the doctor is for
        return Finding("proof", f"{spec} failed: {type(error).__name__}: {error}", "problem")
    took = format_seconds(perf_counter() - started)
    difference = float(np.max(np.abs(x - expected)) / np.max(np.abs(y)))
    if difference > TOLERANCE:
        return Finding("proof", f"{spec} is wrong by {difference:.1e}", "problem")
    return Finding("proof", f"{spec} compiled or loaded, ran and is right: {took}")
