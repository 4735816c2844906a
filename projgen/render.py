"""A kernel to source text: the only module that knows Jinja."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from projgen.lower import Kernel
from projgen.resources import resource_dir

if TYPE_CHECKING:
    from jinja2 import Environment


def render(kernel: Kernel) -> str:
    """The source of the module that holds `kernel`. Equal kernels have equal sources."""
    return environment().get_template("cpu/kernel.py.j2").render(kernel=kernel)


@cache
def environment() -> Environment:
    """The templates of ``templates/``, where an undefined name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(resource_dir("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
