"""What all tests share: snapshots, hypothesis without deadlines (the machines are slow), and how
the tests are spread over several processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from projgen.norms import CHAINED, NORMS

SNAPSHOTS = Path(__file__).parent / "snapshots"

settings.register_profile("projgen", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("projgen")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-snapshots",
        action="store_true",
        help="write the snapshots that tests compare with, instead of comparing",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Neighbours, which often use the same kernels, in one process, and no process idle."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture
def update_snapshots(request: pytest.FixtureRequest) -> bool:
    """Whether this run writes snapshots."""
    return bool(request.config.getoption("--update-snapshots"))


@pytest.fixture
def snapshot(update_snapshots: bool) -> Callable[[str, str], None]:
    """``snapshot(name, text)`` fails unless ``tests/snapshots/<name>.txt`` holds `text`.

    ``pytest --update-snapshots`` writes the file instead; the change is then read in review. The
    name has to stand in the call as a literal: that is how ``test_snapshots.py`` finds the files
    that nothing compares with any more.
    """

    def compare(name: str, text: str) -> None:
        text = text.replace(f"the norms are {', '.join(NORMS)}", "the norms are <all of them>")
        text = text.replace(f"chain of {', '.join(CHAINED)} over", "chain of <norms> over")
        path = SNAPSHOTS / f"{name}.txt"
        if update_snapshots:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        assert path.exists(), f"no snapshot {path.name}: run pytest --update-snapshots"
        assert text == path.read_text(encoding="utf-8"), f"{path.name} is not up to date"

    return compare
