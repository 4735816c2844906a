"""The papers' supervised autoencoder with double descent, on made data and on gene expression.

    pip install -e ".[sklearn,torch,plot]" h5py
    pip install --no-deps scanpy islp
    python examples/double_descent

It trains some 700 networks, which takes some 11 minutes on two free cores, and writes
docs/experiment/ and the tables of docs/experiment.md anew. Of scanpy and islp just the data are
read; a data set that is not there is left out, and said to be. So is what `--seeds` and `--folds`
leave out.

`--tables` makes tables and figures of the results that are there. `--quick` goes through the same
steps with tiny data, in seconds; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import figures
import problems
import protocol
import summary
import timing
from protocol import FULL, QUICK, Row, Scale

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="double_descent", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1),
                        help="processes, each with one thread (default: %(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="for results and figures, beside a page DIR.md that has the tables "
                             "(default: docs/experiment)")  # fmt: skip
    parser.add_argument("--seeds", type=count, metavar="N",
                        help="no more than N for each problem")  # fmt: skip
    parser.add_argument("--folds", type=count, metavar="N",
                        help="no more than N for each seed; as many are cut")  # fmt: skip
    parser.add_argument("--khan", type=Path, metavar="FILE",
                        help="an archive of NumPy with Khan's data, as x_train, y_train, x_test "
                             "and y_test, in place of those of islp")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny data, to see that it runs")
    parser.add_argument("--tables", action="store_true", help="of the results that are there")
    options = parser.parse_args(arguments)
    if options.khan is not None and not options.khan.is_file():
        parser.error(f"--khan: there is no file {options.khan}")
    out: Path = options.out or (
        Path(tempfile.mkdtemp(), "experiment") if options.quick else DOCS / "experiment"
    )
    out.mkdir(exist_ok=True)
    if not options.tables:
        rows, measured = measure(QUICK if options.quick else FULL, options)
        summary.write_rows(rows, out / "results.csv")
        (out / "times.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    report(out)


def count(text: str) -> int:
    """A number of seeds or folds."""
    if (found := int(text)) < 1:
        raise ValueError
    return found


def measure(scale: Scale, options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """All that is trained and timed."""
    begun, busy = time.perf_counter(), timing.load_average()
    there, missing = [], []
    for name in scale.seeds:
        try:
            problems.load(name, 0, options.khan)
            there.append(name)
        except problems.Missing as error:
            missing.append(str(error))
            say(f"LEFT OUT, for the data are not here. {error}")

    say("timing projections")
    todo = protocol.jobs(scale, there, options.khan, seeds=options.seeds, folds=options.folds)
    measured: dict[str, Any] = {
        "machine": timing.machine(),
        "missing": missing,
        "whole": {"folds": scale.folds, "seeds": {name: scale.seeds[name] for name in there}},
        "compile": in_new_process(timing.compile_seconds) if scale.seconds else {},
        "setup": timing.set_up_seconds() if scale.seconds else {},
        "layers": [
            timing.layer(next(job for job in todo if job.problem == name), scale.seconds)
            for name in there
        ],
        "uniform": [timing.uniform(columns, 2 * scale.seconds) for columns in scale.columns],
    }
    rows = sorted(row for found in trained(todo, options.jobs) for row in found)
    minutes = (time.perf_counter() - begun) / 60
    measured["run"] = {"jobs": options.jobs, "minutes": minutes, "load": busy}
    return rows, measured


def in_new_process(call: Callable[[], Any]) -> Any:
    """What `call` returns in a process whose cache of kernels is empty."""
    with (
        tempfile.TemporaryDirectory() as folder,
        one_thread(PROJGEN_CACHE_DIR=folder),
        pool(1) as process,
    ):
        return process.submit(call).result()


def trained(todo: Sequence[protocol.Job], jobs: int) -> Iterator[list[Row]]:
    """The rows of each job, as they are done."""
    total = sum(map(protocol.cost, todo))
    done, begun = 0.0, time.perf_counter()
    for number, (job, rows) in enumerate(_results(todo, jobs), 1):
        done += protocol.cost(job)
        passed = (time.perf_counter() - begun) / 60
        say(f"{number} of {len(todo)}: {job.problem}, seed {job.seed}, fold {job.fold}, "
            f"{protocol.BY_KEY[job.method].label}; {passed:.1f} min, "
            f"about {passed * (total / done - 1):.1f} to go", over=True)  # fmt: skip
        yield rows
    say("")


def _results(
    todo: Sequence[protocol.Job], jobs: int
) -> Iterator[tuple[protocol.Job, list[Row]]]:  # fmt: skip
    if jobs == 1:
        yield from ((job, protocol.run(job)) for job in todo)
        return
    with one_thread(), pool(jobs) as executor:
        futures = {executor.submit(protocol.run, job): job for job in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that share nothing with this one, which has threads."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


@contextmanager
def one_thread(**variables: str) -> Iterator[None]:
    """Processes begun inside have one thread each, as far as libraries ask the environment."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(names, "1") | variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def report(out: Path) -> None:
    """Tables and figures of the results in `out`."""
    rows = summary.read_rows(out / "results.csv")
    measured = json.loads((out / "times.json").read_text(encoding="utf-8"))
    figures.draw(rows, measured, out)
    page = out.with_suffix(".md")
    fragments = summary.fragments(rows, measured)
    text = page.read_text(encoding="utf-8") if page.is_file() else summary.bare(fragments)
    page.write_text(summary.fill(text, fragments), encoding="utf-8", newline="\n")
    say(f"wrote {out} and {page}")


def say(line: str, *, over: bool = False) -> None:
    """Progress, on stderr; on a terminal `over` lets the next line take the place of this one."""
    terminal = sys.stderr.isatty()
    end = "" if over and terminal else "\n"
    print(("\r\033[K" if terminal else "") + line, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
