"""Every snapshot file belongs to a test: what nothing compares with is deleted, not forgotten."""

import re
from pathlib import Path

from conftest import SNAPSHOTS


def orphans(snapshots: Path, tests: Path) -> list[Path]:
    """The files of `snapshots` that no test module of `tests` names in a call of the fixture."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(tests.glob("test_*.py")))
    named = set(re.findall(r'\bsnapshot\(\s*"(\w+)"', source))
    return [path for path in snapshots.iterdir() if path.stem not in named]


def test_no_orphans(update_snapshots: bool) -> None:
    found = orphans(SNAPSHOTS, SNAPSHOTS.parent)
    if update_snapshots:
        for path in found:
            path.unlink()
    assert orphans(SNAPSHOTS, SNAPSHOTS.parent) == []


def test_an_orphan_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text('snapshot("kept", text)\nsnapshot(\n    "wrapped",')
    (tmp_path / "snapshots").mkdir()
    for name in ("kept", "left", "wrapped"):
        (tmp_path / "snapshots" / f"{name}.txt").touch()
    assert [path.stem for path in orphans(tmp_path / "snapshots", tmp_path)] == ["left"]
