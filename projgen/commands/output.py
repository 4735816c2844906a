"""What commands print for programs."""

from __future__ import annotations

import json
import math
from typing import Any


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
