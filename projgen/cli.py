"""The command line: how it begins and ends; `projgen.commands` has what the commands do.

Commands return their exit status: 0, or 1 for a failure. Input that is wrong is a ValueError
(a SpecError draws its carets) and ends with status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import MappingProxyType
from typing import NoReturn, TextIO

from projgen import completion
from projgen.arguments import make_parser
from projgen.commands.bench import run_bench
from projgen.commands.compile import run_compile
from projgen.commands.explain import run_explain
from projgen.commands.files import run_path, run_run
from projgen.commands.upkeep import run_cache, run_completion, run_doctor
from projgen.terminal import Terminal

MISSING_OR_MISPLACED = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
FAILURE, WRONG_INPUT, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Nothing but results goes to stdout."""
    words = list(sys.argv[1:] if argv is None else argv)
    # None where the caller has closed them, as with >&- or a job without a console.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        with _plain_warnings():
            status = _run(words)
            sys.stdout.flush()
            return status
    except SystemExit as stop:  # argparse: help, version and usage errors
        return stop.code if isinstance(stop.code, int) else FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence(sys.stdout)
        return BROKEN_PIPE
    except (ValueError, *MISSING_OR_MISPLACED) as error:
        return _complain(error, WRONG_INPUT)
    except (OSError, ImportError, MemoryError) as error:
        return _complain(error, FAILURE)


def _run(words: list[str]) -> int:
    parser = make_parser()
    if words[:1] == [completion.COMMAND]:  # before argparse, which would read the words' options
        found = completion.complete(parser, words[1:])
        print(*found, sep="\n", end="\n" if found else "")
        return 0 if found else FAILURE
    args, strange = parser.parse_known_args(words)
    if strange:
        _refuse(parser, args.command, strange)
    if args.command is None:
        parser.print_help(sys.stderr)
        return WRONG_INPUT
    return COMMANDS[args.command](args)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = MappingProxyType(
    {
        "compile": run_compile,
        "explain": run_explain,
        "run": run_run,
        "path": run_path,
        "bench": run_bench,
        "cache": run_cache,
        "doctor": run_doctor,
        "completion": run_completion,
    }
)


def _refuse(
    parser: argparse.ArgumentParser, command: str | None, strange: Sequence[str]
) -> NoReturn:
    """End as argparse does for words that the command does not know, and say what is near them."""
    own = parser if command is None else completion.commands(parser)[command]
    option = next((word for word in strange if word.startswith("--")), "")
    close = get_close_matches(option.partition("=")[0], own._option_string_actions, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    own.error(f"unrecognized arguments: {' '.join(strange)}{hint}")


def _complain(error: Exception, status: int) -> int:
    terminal = Terminal(sys.stderr)
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    first, *rest = text.splitlines()
    terminal.write(f"projgen: {terminal.paint('error:', 'red', 'bold')} {first}", *rest)
    return status


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without the source line that raised them."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        terminal = Terminal(sys.stderr)
        terminal.write(f"projgen: {terminal.paint('warning:', 'yellow', 'bold')} {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _silence(stream: TextIO) -> None:
    """Python flushes stdout once more at its end; nobody reads it any more."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
