"""Files of tensors: .npy, .npz and .safetensors, read one tensor at a time and rewritten whole.

A file keeps all that is not projected, byte for byte where its format stays the same: metadata,
compression, and tensors of types that NumPy does not know. It is written beside its place and
appears there by one rename, so a failure leaves what was there.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import tokenize
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import TYPES
from projgen.dtypes import bfloat16, is_half
from projgen.errors import quote
from projgen.operands import require_finite

Array = NDArray[Any]

# What zipfile and NumPy's reader raise for files that are damaged, cut off, encrypted, or of a kind
# that they do not know.
DAMAGE: tuple[type[Exception], ...] = (
    ValueError,
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    OverflowError,
)
with suppress(ImportError):  # a Python may lack these, and then has no such files
    from zlib import error as _ZlibError

    DAMAGE += (_ZlibError,)
with suppress(ImportError):
    from lzma import LZMAError

    DAMAGE += (LZMAError,)

LISTED = 100  # tensors that an error message lists


class TensorFile(ABC):
    """A file of named tensors, in the file's order."""

    path: Path
    names: tuple[str, ...]
    metadata: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def read(self, name: str) -> Array:
        """One tensor; a ValueError if NumPy cannot hold it."""

    @abstractmethod
    def describe(self, name: str) -> str:
        """Its dtype and shape."""

    @abstractmethod
    def rewrite(self, replaced: Mapping[str, Array], out: BinaryIO) -> None:
        """The whole file in its own format, with some tensors replaced by ones of their shape."""


class NpyFile(TensorFile):
    """One array, named after the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = (path.stem,)
        with path.open("rb") as file:
            self._array = _read_array(file, f"{path}")

    def read(self, name: str) -> Array:
        return self._array

    def describe(self, name: str) -> str:
        return _describe(self._array)

    def rewrite(self, replaced: Mapping[str, Array], out: BinaryIO) -> None:
        _write_array(replaced.get(self.names[0], self._array), out)


class NpzFile(TensorFile):
    """A zip archive of .npy files, as ``numpy.savez`` writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(f"{path}", "is not an .npz file"), zipfile.ZipFile(path) as archive:
            self._members = {_without_suffix(info.filename): info for info in archive.infolist()}
        self.names = tuple(self._members)

    def read(self, name: str) -> Array:
        with zipfile.ZipFile(self.path) as archive:
            return _read_array(io.BytesIO(self._bytes(archive, name)), self._place(name))

    def _bytes(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """The member as it was before it was compressed; its checksum is looked at."""
        with _reading(self._place(name)):
            return archive.read(self._members[name])

    def _place(self, name: str) -> str:
        return f"tensor {name!r} of {self.path}"

    def describe(self, name: str) -> str:
        try:
            return _describe(self.read(name))
        except ValueError:
            return "not an array of numbers"

    def rewrite(self, replaced: Mapping[str, Array], out: BinaryIO) -> None:
        with zipfile.ZipFile(self.path) as archive, zipfile.ZipFile(out, "w") as target:
            for name, info in self._members.items():
                if name in replaced:
                    target.writestr(info, _npy_bytes(replaced[name]))
                else:
                    target.writestr(info, self._bytes(archive, name))


class SafetensorsFile(TensorFile):
    """The format of Hugging Face: a header in JSON, then the tensors' bytes.

    Reading goes through the library, which checks the header; rewriting needs only where each
    tensor lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = _safetensors()
        try:
            with self._library.safe_open(path, framework="numpy") as file:
                self.names = tuple(file.keys())
                self.metadata = file.metadata() or {}
                slices = {name: file.get_slice(name) for name in self.names}
                self._described = {
                    name: f"{part.get_dtype()} {tuple(part.get_shape())}"
                    for name, part in slices.items()
                }
        except self._library.SafetensorError as error:
            raise ValueError(f"{path} is not a .safetensors file: {error}") from None

    def read(self, name: str) -> Array:
        if self._described[name].startswith("BF16"):
            return self._read_bfloat16(name)
        with self._library.safe_open(self.path, framework="numpy") as file:
            try:
                return np.asarray(file.get_tensor(name))
            except (TypeError, AttributeError, self._library.SafetensorError):
                raise ValueError(
                    f"tensor {name!r} of {self.path} is {self._described[name]}, a type that "
                    "NumPy does not have"
                ) from None

    def _read_bfloat16(self, name: str) -> Array:
        """A tensor that the library's NumPy side does not know."""
        with self.path.open("rb") as file:
            start, header = _header(file)
            first, last = header[name]["data_offsets"]
            file.seek(start + first)
            stored = np.frombuffer(file.read(last - first), bfloat16())
        return stored.reshape(header[name]["shape"])

    def describe(self, name: str) -> str:
        return self._described[name]

    def rewrite(self, replaced: Mapping[str, Array], out: BinaryIO) -> None:
        with self.path.open("rb") as file:
            shutil.copyfileobj(file, out)
            file.seek(0)
            start, header = _header(file)
        for name, array in replaced.items():
            out.seek(start + header[name]["data_offsets"][0])
            out.write(array.tobytes())  # in C order, little-endian: checked types are


def _header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Where the bytes of the tensors begin in a .safetensors file, and what it says of them."""
    length = int.from_bytes(file.read(8), "little")
    return 8 + length, json.loads(file.read(length))


_FORMATS: Mapping[str, Callable[[Path], TensorFile]] = {
    ".npy": NpyFile,
    ".npz": NpzFile,
    ".safetensors": SafetensorsFile,
}


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a file, whose suffix says what it is.

    Raises:
        ValueError: another suffix, or a file that is not what its suffix says.
        OSError: it cannot be read.
        ImportError: .safetensors without the library.
    """
    return _FORMATS[_suffix(path)](path)


def choose(
    file: TensorFile, wanted: list[str] | None, option: str = "--tensor", several: bool = False
) -> list[str]:
    """The tensors to project: those named, or the only one. A ValueError lists what there is, and
    with which `option` to choose, and whether `several`."""
    if not wanted and len(file.names) == 1:
        return list(file.names)
    if not file.names:
        raise ValueError(f"{file.path} holds no tensor")
    unknown = [name for name in wanted or [] if name not in file.names]
    if wanted and not unknown:
        return list(dict.fromkeys(wanted))
    more = ", which takes several names" if several else ""
    head = f"{file.path} holds {len(file.names)} tensors: choose with {option}{more}"
    if unknown:
        close = get_close_matches(unknown[0], file.names, n=1)
        guess = f" did you mean {close[0]!r}?" if close else ""
        if several and "*" in unknown[0]:
            guess = (
                f" several names may follow {option}, and patterns stand in a spec, whose tensors "
                f"share the radius: l1(linf @ {quote(unknown[0])}); it holds"
            )
        head = f"{file.path} has no tensor {unknown[0]!r};{guess or ' it holds'}"
    width = max(map(len, file.names[:LISTED]))
    lines = [f"  {name:{width}}  {file.describe(name)}" for name in file.names[:LISTED]]
    lines += [f"  and {len(file.names) - LISTED} more"] if len(file.names) > LISTED else []
    raise ValueError("\n".join([head, *lines]))


def check_target(file: TensorFile, target: Path) -> None:
    """A ValueError unless `target` is a place and a format for the tensors of `file`."""
    suffix = _suffix(target)
    if not target.resolve().parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory")
    if target.is_dir():
        raise ValueError(f"{target} is a directory")
    if suffix == ".npy" and len(file.names) != 1:
        raise ValueError(
            f"{target} can hold one array, and {file.path} holds {len(file.names)}: "
            "write .npz or .safetensors"
        )
    if suffix == ".safetensors":
        _safetensors()


def save(file: TensorFile, target: Path, replaced: Mapping[str, Array]) -> None:
    """Write all tensors of `file` to `target`, those in `replaced` with their new values.

    `target` may be the file itself. ValueError for a tensor that the target's format cannot hold;
    OSError if it cannot be written.
    """
    suffix = _suffix(target)
    with replacing(target) as out:
        if suffix == _suffix(file.path):
            file.rewrite(replaced, out)
            return
        tensors = {
            name: replaced[name] if name in replaced else file.read(name) for name in file.names
        }
        if suffix != ".safetensors":
            for name, array in tensors.items():
                if array.dtype.name == "bfloat16":  # two bytes without a meaning, to NumPy
                    raise ValueError(f"{target} cannot hold tensor {name!r}, which is bfloat16")
        if suffix == ".npy":
            (array,) = tensors.values()
            _write_array(array, out)
        elif suffix == ".npz":
            with zipfile.ZipFile(out, "w") as archive:
                for name, array in tensors.items():
                    archive.writestr(f"{name}.npy", _npy_bytes(array))
        else:
            out.write(_safetensors_bytes(tensors, dict(file.metadata), target))


def check_numbers(y: Array, hint: str) -> None:
    """A ValueError unless `y` can be projected; `hint` is what to know if its type is wrong."""
    if (y.dtype.char not in "fd" and not is_half(y.dtype)) or not y.dtype.isnative:
        raise ValueError(f"expected {TYPES}, got {y.dtype}: {hint}")
    require_finite(y, hint="")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the body ends without an error."""
    wanted, path = path, path.resolve()  # through a link, to what it points at
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with partial.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    except OSError as error:
        if error.filename in (partial, str(partial)):  # which nobody has asked for
            error.filename = str(wanted)
        raise
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def is_tensors(name: str) -> bool:
    """Whether a file of this name would be one of tensors."""
    return Path(name).suffix.lower() in _FORMATS


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        torch = suffix in (".pt", ".pth", ".bin", ".ckpt")
        hint = "; of PyTorch's, safetensors.torch.save_file makes one" if torch else ""
        raise ValueError(f"{path}: the file's name must end in .npy, .npz or .safetensors{hint}")
    return suffix


def _safetensors() -> Any:
    try:
        return import_module("safetensors")
    except ImportError:
        raise ImportError(
            "files of .safetensors need the safetensors package: pip install safetensors"
        ) from None


def _safetensors_bytes(
    tensors: Mapping[str, Array], metadata: dict[str, str], target: Path
) -> bytes:
    library = import_module("safetensors.numpy")
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    for name, array in plain.items():
        if array.dtype.kind not in "biufc" or not array.dtype.isnative:
            raise ValueError(f"{target} cannot hold tensor {name!r}, which is {array.dtype}")
    # ascontiguousarray makes a vector of a number
    shaped = {name: array.reshape(tensors[name].shape) for name, array in plain.items()}
    data: bytes = library.save(shaped, metadata or None)
    return data


def _read_array(file: Any, where: str) -> Array:
    with _reading(where):
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


@contextmanager
def _reading(where: str, verdict: str = "cannot be read") -> Iterator[None]:
    """What zipfile and NumPy find in bytes that are damaged is a ValueError about `where`."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{where} {verdict}: {str(error) or type(error).__name__}") from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # those are places that no file has
            raise
        raise ValueError(f"{where} {verdict}: {error.strerror or error}") from None


def _write_array(array: Array, out: Any) -> None:
    np.lib.format.write_array(out, array, allow_pickle=False)


def _npy_bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    _write_array(array, buffer)
    return buffer.getvalue()


def _without_suffix(name: str) -> str:
    return name[:-4] if name.endswith(".npy") else name


def _describe(array: Array) -> str:
    return f"{array.dtype} {array.shape}"
