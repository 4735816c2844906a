"""What may be written on the command line, and how its values are read."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from projgen import __version__, completion
from projgen.outcome import Radius
from projgen.shapes import MAX_RANK

EXAMPLES = """\
examples:
  projgen compile "l1(l2(linf))"
  projgen explain "l1(linf(axis=1))" --shape 1000x1000
  projgen run "l1(linf(axis=1))" model.safetensors sparse.safetensors \\
      --radius 10% --tensor fc.weight
  projgen path "l1(linf(axis=1))" model.npz --tensor fc.weight --out path.png
  projgen bench "l1(linf)" --shape 4000x4000 --threads 1,2
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; completion reads it too."""
    parser = argparse.ArgumentParser(
        prog="projgen",
        description="Projections onto bi-level and multi-level norm balls, compiled from a spec.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"projgen {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    spec = argparse.ArgumentParser(add_help=False)
    spec.add_argument("spec", metavar="SPEC", help='a norm tree, such as "l1(linf(axis=1))"')
    layout = argparse.ArgumentParser(add_help=False)
    layout.add_argument(
        "--dtype",
        choices=("float32", "float64", "float16", "bfloat16"),
        default="float32",
        help="default: float32",
    )
    layout.add_argument(
        "--order", choices=("C", "F"), default="C", help="of memory: C (default) or Fortran"
    )
    in_place = argparse.ArgumentParser(add_help=False)
    in_place.add_argument(
        "--in-place", action="store_true", help="the kernel that overwrites its array"
    )
    backend = argparse.ArgumentParser(add_help=False)
    backend.add_argument("--backend", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    structured = argparse.ArgumentParser(add_help=False)
    structured.add_argument("--json", action="store_true", help="JSON on stdout")
    radius_help = "a number, or a part of the norm such as 10%%"

    command = commands.add_parser(
        "compile", parents=[spec, layout, in_place, backend], help="compile a kernel and keep it"
    )
    extents = command.add_mutually_exclusive_group()
    _add_shapes(extents)
    extents.add_argument(
        "--rank", type=_rank, metavar="N", help="number of axes; default: as few as the spec needs"
    )
    command.add_argument(
        "--arch",
        metavar="sm_90",
        help="for --backend cuda: of the machine code; default: this GPU's, or sm_90",
    )
    results = command.add_mutually_exclusive_group()
    results.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="also write the generated module there"
    )
    results.add_argument(
        "--emit",
        choices=("ast", "tree", "plan", "source"),
        help="print what this stage of the compiler gives, and stop",
    )
    command.add_argument("--json", action="store_true", help="JSON on stdout")

    command = commands.add_parser(
        "explain",
        parents=[spec, layout, in_place, backend, structured],
        help="draw the tree, sweeps, memory traffic, work and span",
    )
    _add_shapes(command, required=True)

    command = commands.add_parser(
        "run",
        parents=[spec, structured],
        help="project tensors of a file",
        # --tensor takes all the names that follow: it comes last.
        usage="projgen run [-h] [--json] [--radius R] [--bind NAME=FILE] SPEC IN OUT "
        "[--tensor NAME [NAME ...]]",
    )
    suffixes = ".npy, .npz or .safetensors"
    command.add_argument("input", metavar="IN", type=Path, help=suffixes)
    command.add_argument("target", metavar="OUT", type=Path, help=f"{suffixes}; may be IN")
    command.add_argument(
        "--radius", type=_radius, metavar="R", help=f"{radius_help}; not for l0 with k"
    )
    _add_bindings(command)
    command.add_argument(
        "--tensor",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="which, if IN has several: the others are copied; a spec with branches takes all by "
        "their names",
    )

    command = commands.add_parser(
        "path",
        parents=[spec, structured],
        help="sweep the radius: sparsity, distance, norm and zero pattern of a tensor",
    )
    command.add_argument("input", metavar="FILE", type=Path, help=suffixes)
    command.add_argument("--tensor", metavar="NAME", help="which, if FILE has several")
    _add_bindings(command)
    chosen = command.add_mutually_exclusive_group()
    chosen.add_argument(
        "--radii", type=_radii, metavar="1,2.5,10%", help="numbers, or parts of the norm"
    )
    chosen.add_argument(
        "--points",
        type=_points,
        default=30,
        metavar="N",
        help="so many radii from 0.1%% to 100%% of the norm; default: 30",
    )
    command.add_argument(
        "--linear", action="store_true", help="evenly spaced; default: on a logarithmic scale"
    )
    command.add_argument(
        "--at",
        type=_radius,
        metavar="R",
        help="show the zero pattern at the radius nearest to it; default: where half is zero",
    )
    command.add_argument("--dtype", choices=("float32", "float64"), help="convert the tensor first")
    command.add_argument(
        "--out",
        type=Path,
        metavar="PICTURE",
        help="also draw it with Matplotlib: .png, .svg or .pdf",
    )

    command = commands.add_parser(
        "bench",
        parents=[spec, layout, structured],
        help="time the kernel against NumPy and a copy of the array",
    )
    _add_shapes(command, required=True, of_several="")
    command.add_argument(
        "--radius",
        type=_radius,
        default=Radius(0.1, relative=True),
        metavar="R",
        help=f"{radius_help} (the default)",
    )
    command.add_argument(
        "--threads", type=_threads, metavar="1,2", help="how many share a call; default: as usual"
    )
    command.add_argument(
        "--seconds", type=_seconds, default=2.0, metavar="S", help="how long to time; default: 2"
    )

    command = commands.add_parser(
        "cache", parents=[structured], help="list or clear the kernels that are kept"
    )
    command.add_argument("action", choices=("list", "path", "clear"))

    command = commands.add_parser(
        "doctor", parents=[structured], help="check that projgen can work here"
    )

    command = commands.add_parser("completion", help="print the completion script of a shell")
    command.add_argument("shell", choices=tuple(completion.SCRIPTS))
    return parser


def _add_shapes(
    command: argparse._ActionsContainer,
    required: bool = False,
    of_several: str = "; NAME=1000x1000 for each, if the spec takes several",
) -> None:
    command.add_argument(
        "--shape",
        required=required,
        action="append",
        type=_named_shape,
        metavar="1000x1000",
        help=f"of the array{of_several}",
    )


def _add_bindings(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--bind",
        action="append",
        type=_binding,
        metavar="NAME=FILE[:TENSOR]",
        help="an array of weights or labels that the spec names",
    )


def _named_shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    name, equals, shape = text.rpartition("=")
    if equals and not name:
        raise argparse.ArgumentTypeError(f"{text!r} names no array: write NAME=1000x1000")
    return name if equals else None, _shape(shape)


def _binding(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name.isidentifier() and equals and file):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no binding: write NAME=FILE, or NAME=FILE:TENSOR"
        )
    return name, file


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,18}([x,*]\d{1,18})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: write it like 1000x1000")
    shape = tuple(map(int, re.split(r"\D", text)))
    if len(shape) > MAX_RANK or math.prod(shape) >= 1 << 60:
        raise argparse.ArgumentTypeError(f"no array has the shape {text}")
    return shape


def _rank(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_RANK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a rank: write 1 to {MAX_RANK}")
    return int(text)


def _radius(text: str) -> Radius:
    try:
        return Radius.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _radii(text: str) -> list[Radius]:
    return [_radius(part.strip()) for part in text.split(",")]


def _points(text: str) -> int:
    if not (text.isdecimal() and 2 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of radii: write 2 to 10000")
    return int(text)


def _threads(text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isdecimal() and 1 <= int(count) <= 1024 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers of threads: write 1 or 1,2")
    return [int(count) for count in counts]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 0 to 3600 seconds")
    return seconds
