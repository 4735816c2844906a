"""Kernels run on the CPU: arrays and launches to a program that `build` made, and back.

    with Simt(source) as simt:
        y, x = Buffer("y", values), Buffer("x", out, initialised=False, writable=True)
        simt.run([Launch("scale", (4,), (128,), (y, x, np.int64(len(values))))], seed=3)

Every load and store is watched. A `SimtError` says what a kernel did that is an error on a GPU or
may be one: see `memory.cpp` and `fibers.cpp`.
"""

import atexit
import ctypes
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .build import build, command, shared_arrays


class SimtError(Exception):
    """What went wrong in a kernel, with the line of its source."""


@dataclass(frozen=True)
class Part:
    """An array in a buffer: `size` bytes from `offset` on, of elements of `cell` bytes."""

    name: str
    offset: int
    size: int
    cell: int


@dataclass(frozen=True, eq=False)
class Buffer:
    """The memory of `array`, from its lowest to its highest byte, as memory of the device.

    ``initialised``: it holds the array's values; else it is poisoned, and reading it before
    writing it an error. ``writable``: the array receives what the kernels left. `misalignment` is
    the distance of the device's address from a multiple of 256. What lies between its `parts`
    (default: one) is out of bounds.
    """

    name: str
    array: npt.NDArray[Any]
    initialised: bool = True
    writable: bool = False
    misalignment: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def memory(self) -> memoryview:
        low, high = np.lib.array_utils.byte_bounds(self.array)
        size = high - low if self.array.size else 0
        return memoryview((ctypes.c_char * size).from_address(low)).cast("B")

    @property
    def arrays(self) -> tuple[Part, ...]:
        whole = Part(self.name, 0, len(self.memory), min(self.array.itemsize, 4))
        return self.parts or (whole,)


@dataclass(frozen=True)
class At:
    """An argument that points into a buffer, `offset` bytes above its start."""

    buffer: Buffer
    offset: int


@dataclass(frozen=True)
class Launch:
    """A kernel, by name, with its geometry and arguments.

    Arguments are buffers, `At`, None (a null pointer), NumPy scalars, and records as structures.
    """

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: Sequence[Any]
    shared: int = 0


@dataclass(frozen=True)
class Traffic:
    """Bytes that one launch moved, in one buffer. The ``first_`` ones count no byte twice."""

    read: int = 0
    written: int = 0
    atomic: int = 0
    first_read: int = 0
    first_written: int = 0


@dataclass
class Simt:
    """A source's program, which runs until `close`, and starts again when it is asked to.

    No launch may take more than `seconds`.
    """

    source: str
    machine: str = "fibers"
    flags: tuple[str, ...] = ()
    seconds: int = 60
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _errors: Any = field(default=None, init=False)

    def run(self, launches: Sequence[Launch], seed: int = 0) -> list[Mapping[str, Traffic]]:
        """Run `launches` one after the other; the traffic of each, by buffer.

        The seed chooses the order of blocks and threads. A `SimtError` leaves all arrays as they
        were.
        """
        buffers: list[Buffer] = []
        for launch in launches:
            for argument in launch.arguments:
                buffer = argument.buffer if isinstance(argument, At) else argument
                if isinstance(buffer, Buffer) and buffer not in buffers:
                    buffers.append(buffer)
        process = self._started()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(self._job(buffers, launches, seed))
            process.stdin.flush()
            names = [part.name for buffer in buffers for part in buffer.arrays]
            size = len(names) * 5 * 8 * len(launches)
            counts = np.frombuffer(self._read(size), np.int64).reshape(len(launches), -1, 5)
            results = [self._read(len(b.memory)) for b in buffers if b.writable]
        except (BrokenPipeError, EOFError):
            raise SimtError(self._report()) from None
        for buffer, result in zip([b for b in buffers if b.writable], results, strict=True):
            buffer.memory[:] = result
        return [
            {name: Traffic(*map(int, row)) for name, row in zip(names, rows, strict=True)}
            for rows in counts
        ]

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            atexit.register(self.close)
            self._program = build(self.source, self.machine, self.flags)
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                command(self._program, self.machine),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "SECONDS": str(self.seconds)},
            )
        return self._process

    def _job(self, buffers: list[Buffer], launches: Sequence[Launch], seed: int) -> bytes:
        shared = shared_arrays(self._program)
        parts: list[Any] = [_numbers(seed, len(shared))]
        for name, address, size in shared:
            parts += [_text(name), _numbers(address, size)]
        parts.append(_numbers(len(buffers)))
        for b in buffers:
            parts.append(_numbers(len(b.memory), b.misalignment, b.initialised, b.writable))
            parts += [b.memory] if b.initialised else []
        parts.append(_numbers(sum(len(b.arrays) for b in buffers)))
        for i, b in enumerate(buffers):
            for a in b.arrays:
                numbers = _numbers(i, a.offset, a.size, a.cell, b.initialised, b.writable)
                parts += [_text(a.name), numbers]
        parts.append(_numbers(len(launches)))
        for launch in launches:
            grid, block = (t + (1,) * (3 - len(t)) for t in (launch.grid, launch.block))
            parts += [_text(launch.name), _numbers(*grid, *block, launch.shared)]
            parts.append(_numbers(len(launch.arguments)))
            parts += [_argument(argument, buffers) for argument in launch.arguments]
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        assert self._process and self._process.stdout
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _report(self) -> str:
        """Why the program ended, in terms of the source."""
        assert self._process
        code = self._process.wait(60)
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        self.close()
        text = re.sub(r"\bat (0x[0-9a-f]+)", lambda found: _line(self._program, found[1]), text)
        text = re.sub(r"\S*kernel\.cu:(\d+)(:\d+)?", r"line \1", text)
        if "ThreadSanitizer" in text:
            text = "\n".join(re.findall(r".*(?:ThreadSanitizer|\bline \d+).*", text))
        lines = self.source.splitlines()
        for number in dict.fromkeys(map(int, re.findall(r"\bline (\d+)", text))):
            if 0 < number <= len(lines):
                text += f"\n  {number:4}  {lines[number - 1]}"
        return text or f"the program ended with {code}"

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin and self._process.stdout
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close()
            self._process.wait(60)
            self._errors.close()
            self._process = None
            atexit.unregister(self.close)

    def __enter__(self) -> "Simt":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _line(program: Path, address: str) -> str:
    """The line of the source that an instruction comes from, through what was inlined there."""
    place = hex(int(address, 16) - 1)  # the call before the address to which it returns
    done = subprocess.run(
        ["addr2line", "-i", "-e", str(program), place], capture_output=True, text=True
    )
    found = re.search(r"kernel\.cu:(\d+)", done.stdout)
    return f"line {found[1]}" if found else f"at {address}"


def _argument(argument: Any, buffers: list[Buffer]) -> bytes:
    if argument is None:
        return _numbers(ord("p"), -1, 0)
    if isinstance(argument, Buffer):
        argument = At(argument, 0)
    if isinstance(argument, At):
        return _numbers(ord("p"), buffers.index(argument.buffer), argument.offset)
    value = np.asarray(argument)
    kind = {"i": "i", "u": "i", "b": "i", "f": "f", "V": "s"}[value.dtype.kind]
    return _numbers(ord(kind), value.nbytes) + value.tobytes()


def _numbers(*numbers: int) -> bytes:
    return np.array(numbers, np.int64).tobytes()


def _text(text: str) -> bytes:
    return _numbers(len(text.encode())) + text.encode()
