"""What several commands print and write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from projgen import files


def print_json(value: Any) -> int:
    print(json.dumps(_finite(value), indent=2, allow_nan=False))
    return 0


def _finite(value: Any) -> Any:
    """JSON has no infinity: it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_module(directory: Path, name: str, source: str) -> Path:
    """Write a generated module to a directory, which is made; its path."""
    directory.mkdir(parents=True, exist_ok=True)
    module = directory / name
    with files.replacing(module) as out:
        out.write(source.encode())
    return module
