"""Where the data folders are: inside the package in a wheel, beside it in a checkout."""

from pathlib import Path


def resource_dir(name: str) -> Path:
    """The folder `name` (such as ``"grammars"``) that ships with projgen."""
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
