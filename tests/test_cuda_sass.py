"""CUDA kernels are compiled for real, without a GPU, and what NVRTC made of them is read.

The budget of each function: no spills and no local memory; on the bulk path, accesses of 128 bits
and no float64 instruction in loops over a float array; at least half of the threads that a
multiprocessor holds, at the block size of the launch.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_support import compiled, compiled_pull

from projgen.cpu.ball import Ball
from projgen.cuda import nvrtc
from projgen.cuda.compiler import Compiled, CompiledPull
from projgen.cuda.group_kernel import BALLS, GroupKernel
from projgen.norms import NORMS


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share (CUDA C++ programming guide)."""

    warps: int
    blocks: int
    shared: int  # bytes
    reserved: int  # bytes of shared memory that the system takes for each block

    def occupancy(self, threads: int, registers: int, shared: int) -> float:
        """The share of its warps that can be there at once."""
        warps = -(-threads // 32)
        each = -(-registers * 32 // 256) * 256  # registers of a warp, in their units
        fit = [self.blocks, self.warps // warps, 65536 // each // warps]
        if shared:
            fit.append(self.shared // (-(-(shared + self.reserved) // 128) * 128))
        return min(fit) * warps / self.warps


MACHINES = {
    "sm_75": Multiprocessor(32, 16, 64 << 10, 0),
    "sm_80": Multiprocessor(64, 32, 164 << 10, 1024),
    "sm_90": Multiprocessor(64, 32, 228 << 10, 1024),
    "sm_100": Multiprocessor(64, 32, 228 << 10, 1024),
    "sm_120": Multiprocessor(48, 24, 100 << 10, 1024),
}
# How y is walked, and the norms whose loops differ: rows, columns, packed; warps and blocks.
CANON = {
    ("l1(linf)", (1000, 1000), "float32"): tuple(MACHINES)[:4],
    ("l1(linf(axis=0))", (1000, 1000), "float32"): tuple(MACHINES)[:4],
    ("linf(l1)", (1000, 1000), "float32"): tuple(MACHINES)[:4],
    ("l1(l2)", (1000, 1000), "float32"): ("sm_90",),
    ("l1(l2(axis=0))", (1000, 1000), "float32"): ("sm_75", "sm_90"),
    ("linf(l1)", (100, 10000), "float32"): ("sm_90",),
    ("l1(axis=0)", (1000, 1000), "float32"): ("sm_80",),
    ("l1", (4_000_000,), "float32"): ("sm_90",),
    ("l1(linf)", (100_000, 8), "float32"): ("sm_90",),
    ("l1(axis=-1)", (100_000, 8), "float32"): ("sm_100",),
    ("l1(l2(linf))", (64, 64, 300), "float32"): ("sm_90",),
    ("l1(linf)", (1000, 1000), "float64"): ("sm_90",),
    ("linf(l1)", (1000, 600), "float64"): ("sm_80",),
    ("l1(linf)", (1000, 1024), "float16"): ("sm_90",),
    ("l1(l2(axis=0))", (1000, 1024), "bfloat16"): ("sm_75", "sm_90"),
}
PULL_CANON = {
    ("l1(linf)", (1000, 1000), "float32"): ("sm_75", "sm_90"),
    ("l1(linf(axis=0))", (1000, 1000), "float32"): ("sm_80",),
    ("l1(l1(axis=0))", (1000, 1000), "float32"): ("sm_75", "sm_100"),
    ("l1(l2(axis=0))", (1000, 1000), "float32"): ("sm_90",),
    ("linf(l1)", (100, 10000), "float32"): ("sm_100",),
    ("l1", (4_000_000,), "float32"): ("sm_90",),
    ("l1(linf)", (100_000, 8), "float32"): ("sm_90",),
    ("l1(l2(linf))", (64, 64, 300), "float32"): ("sm_90",),
    ("l1(linf)", (1000, 1000), "float64"): ("sm_80",),
    ("l2(l1(linf(axis=1)))", (8, 1000, 1024), "float16"): ("sm_75",),
    ("l2(l1(axis=0))", (300, 24), "float16"): ("sm_90",),
    ("l1(linf(axis=0))", (1000, 1024), "bfloat16"): ("sm_120",),
}


def cases(canon: dict[tuple[str, tuple[int, ...], str], tuple[str, ...]]) -> list[Any]:
    return [
        pytest.param(
            *case,
            architecture,
            id=f"{case[0]}-{'x'.join(map(str, case[1]))}-{case[2]}-{architecture}",
        )
        for case, architectures in canon.items()
        for architecture in architectures
    ]


@lru_cache
def tool(name: str) -> Path:
    """One of NVIDIA's tools, from its wheel."""
    try:
        files = metadata.files(f"nvidia-cuda-{name}") or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"nvidia-cuda-{name} is not installed")
    return next(Path(str(file.locate())) for file in files if file.stem == name)


@dataclass(frozen=True)
class Function:
    """A kernel in machine code: what it takes, and its instructions with their labels."""

    name: str
    registers: int
    stack: int
    shared: int
    local: int
    lines: tuple[str, ...]

    def count(self, pattern: str, first: int = 0, last: int | None = None) -> int:
        """How many instructions match."""
        return sum(bool(re.match(pattern, line)) for line in self.lines[first:last])

    def loops_with(self, access: str) -> list[tuple[int, int]]:
        """The innermost loops with an access: from where a jump leads back to, to the jump."""
        at = {line: i for i, line in enumerate(self.lines) if line.endswith(":")}
        loops = []
        for i, line in enumerate(self.lines):
            jump = re.match(r"BRA\b.*`\((\.L\w+)\)", line)
            if jump and at[jump[1] + ":"] < i:
                loops.append((at[jump[1] + ":"], i + 1))
        found = [loop for loop in loops if self.count(access, *loop)]
        return [a for a in found if not any(a != b and a[0] <= b[0] <= b[1] <= a[1] for b in found)]


FLOAT64 = r"D(ADD|MUL|FMA|SETP|MNMX)\b|(F2F|I2F|F2I)\S*\.F64|MUFU\.\w*64H"


@lru_cache(maxsize=64)
def machine_code(source: str, architecture: str) -> dict[str, Function]:
    if reason := nvrtc.missing():
        pytest.skip(reason)
    try:
        code = nvrtc.compile_cubin(source, architecture)
    except nvrtc.MissingError as error:  # the headers of half types
        pytest.skip(str(error))
    return dict(_functions(code))


def _functions(code: bytes) -> Iterator[tuple[str, Function]]:
    usage = _ask("cuobjdump", code, "--dump-resource-usage")
    listing = _ask("nvdisasm", code, "-c")
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    texts = {part.split()[0]: part for part in re.split(r"\n//-+ \.text\.", listing)[1:]}
    for name, *numbers in found:
        lines = []
        for line in texts[name].splitlines():
            if re.match(r"\.L\w+:$", line):
                lines.append(line)
            elif instruction := re.match(r"\s+/\*\w+\*/\s+(?:@!?U?P\w+\s+)?(\S.*)", line):
                lines.append(instruction[1])
        yield name, Function(name, *map(int, numbers), tuple(lines))


def _ask(name: str, code: bytes, *options: str) -> str:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, "kernel.cubin")
        path.write_bytes(code)
        command = [str(tool(name)), *options, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def made(spec: str, shape: tuple[int, ...], dtype: str) -> Compiled:
    y = np.empty(shape, "uint16" if dtype == "bfloat16" else dtype)
    return compiled(spec, y, dtype, np.empty_like(y))


@pytest.mark.parametrize(("spec", "shape", "dtype", "architecture"), cases(CANON))
def test_budget(spec: str, shape: tuple[int, ...], dtype: str, architecture: str) -> None:
    within_budget(made(spec, shape, dtype), ("aggregate", "project"), dtype, architecture)


@pytest.mark.parametrize(("spec", "shape", "dtype", "architecture"), cases(PULL_CANON))
def test_budget_of_gradients(
    spec: str, shape: tuple[int, ...], dtype: str, architecture: str
) -> None:
    y = np.empty(shape, "uint16" if dtype == "bfloat16" else dtype)
    within_budget(compiled_pull(spec, y, dtype), ("gather", "share"), dtype, architecture)


def within_budget(
    kernel: Compiled | CompiledPull, sweeps: tuple[str, str], dtype: str, architecture: str
) -> None:
    """Of all functions; `sweeps` are those that read arrays, and that read and write them."""
    functions = machine_code(kernel.source, architecture)
    launches = {launch.name: launch for launch in kernel.schedule.launches}
    assert set(functions) == set(launches), "a function that no launch uses"
    broken = []
    for name, function in functions.items():
        if function.local or function.stack or function.count(r"LDL|STL"):
            broken.append(f"{name} has local memory: {function.stack} bytes of stack")
        threads = int(np.prod(launches[name].block))
        shared = function.shared + launches[name].shared
        machine = MACHINES[architecture]
        if (share := machine.occupancy(threads, function.registers, shared)) < 0.5:
            what = f"{function.registers} registers, {shared} bytes shared, {threads} threads"
            broken.append(f"{name} has an occupancy of {share:.0%}: {what}")
    level = kernel.plan.leaf.level
    broken += _bulk(functions[f"{sweeps[0]}_{level}"], "LDG", dtype)
    broken += _bulk(functions[f"{sweeps[1]}_{level}"], "STG", dtype)
    assert not broken, "\n".join(broken)


def _bulk(function: Function, access: str, dtype: str) -> Iterator[str]:
    """What is wrong with a sweep over y."""
    bulk = function.loops_with(rf"{access}\S*\.128\b")
    if not bulk:
        yield f"{function.name} has no loop with {access} of 128 bits"
    for loop in bulk:
        if narrow := function.count(r"(LDG|STG)(?!\S*\.128\b)", *loop):
            yield f"{function.name} has {narrow} narrow accesses in a bulk loop"
    if dtype != "float64":  # what is per group, or joins partial values, may be of float64
        for loop in function.loops_with("LDG|STG"):
            if wide := function.count(FLOAT64, *loop):
                yield f"{function.name} has {wide} float64 instructions in a loop"


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_levels_of_their_own_keep_to_registers(norm: str, architecture: str) -> None:
    ball = Ball(norm, 1.5 if norm == "lp" else None, weighted=NORMS[norm].weighs)
    for line in (True, False):
        functions = machine_code(GroupKernel(ball, "float32", False, line).source, architecture)
        assert set(functions) == {"aggregate", "project"}
        for function in functions.values():
            assert not (function.local or function.stack or function.count(r"LDL|STL"))
            assert function.registers <= 128  # two blocks of 256 threads


def test_occupancy() -> None:
    """Three examples that NVIDIA's occupancy calculator confirms."""
    assert MACHINES["sm_90"].occupancy(256, 32, 0) == 1.0
    assert MACHINES["sm_90"].occupancy(1024, 64, 0) == 0.5
    assert MACHINES["sm_80"].occupancy(256, 40, 48 << 10) == 0.375


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spills(const float* x, float* y) {
    float held[100];
    for (int i = 0; i < 100; i++) held[i] = x[i * 1024 + threadIdx.x];
    float sum = 0;
    for (int j = 0; j < 100; j++)
        for (int i = 0; i < 100; i++) sum += held[i] * held[(i + j) % 100];
    y[threadIdx.x] = sum;
}
extern "C" __global__ void doubles(const float* x, double* y, int n) {
    double sum = 0;
#pragma unroll 1
    for (int i = 0; i < n; i++) sum += x[i];
    *y = sum;
}
"""


def test_what_breaks_the_budget_is_seen() -> None:
    functions = machine_code(SPILLING, "sm_90")
    assert functions["spills"].stack and functions["spills"].count(r"LDL|STL")
    assert list(_bulk(functions["doubles"], "LDG", "float32")) == [
        "doubles has no loop with LDG of 128 bits",
        "doubles has 2 float64 instructions in a loop",
    ]
