"""A kernel to source text, by the templates of ``templates/``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from projgen.cpu.kernel import Kernel

if TYPE_CHECKING:
    from jinja2 import Template

    from projgen.cpu.group_kernel import GroupKernel
    from projgen.cpu.group_pull_kernel import GroupPullKernel
    from projgen.cpu.pull_kernel import PullKernel
    from projgen.cpu.tally import TallyKernel
    from projgen.cuda.group_kernel import GroupKernel as CudaGroupKernel
    from projgen.cuda.kernel import Kernel as CudaKernel
    from projgen.cuda.pull_kernel import PullKernel as CudaPullKernel


def render_team(board: Mapping[str, int]) -> str:
    """The source of the module that threads share a kernel's blocks with; `board` names cells."""
    return _template("cpu/team.py.j2").render(board=board)


def render_series(columns: tuple[str, ...]) -> str:
    """The source of the module that calls the kernels of small arrays one after the other: those
    of a table with these columns."""
    return _template("cpu/series.py.j2").render(columns=columns)


def render_pull_series(columns: tuple[str, ...]) -> str:
    """The source of the module that takes gradients back through small arrays, one by one: those
    of a table with these columns."""
    return _template("cpu/pull_series.py.j2").render(columns=columns)


# Macros cannot know what stands before them: two empty lines before each definition, wherever.
_EMPTY_LINES = re.compile(r"\n{2,}(?=@|# The desk|EXCHANGES)")


def render(kernel: Kernel) -> str:
    """The source of the module that holds `kernel`. Equal kernels have equal sources."""
    text = _template("cpu/kernel.py.j2").render(kernel=kernel)
    return _EMPTY_LINES.sub("\n\n\n", text).rstrip() + "\n"


def render_group(kernel: GroupKernel) -> str:
    """The source of the module that holds a kernel for one level of groups."""
    text = _template("cpu/groups.py.j2").render(kernel=kernel)
    return _EMPTY_LINES.sub("\n\n\n", text).rstrip() + "\n"


def render_tally(kernel: TallyKernel) -> str:
    """The source of the module that adds up and counts the values above thresholds."""
    return _template("cpu/tally.py.j2").render(kernel=kernel)


def render_pull(kernel: PullKernel) -> str:
    """The source of the module that takes gradients back through a projection."""
    text = _template("cpu/pull.py.j2").render(kernel=kernel)
    return _EMPTY_LINES.sub("\n\n\n", text).rstrip() + "\n"


def render_group_pull(kernel: GroupPullKernel) -> str:
    """The source of the module that takes gradients back through one level of groups."""
    text = _template("cpu/group_pull.py.j2").render(kernel=kernel)
    return _EMPTY_LINES.sub("\n\n\n", text).rstrip() + "\n"


_GAPS = re.compile(r"\n{3,}")
_PRAGMAS = re.compile(r"^ +(?=#pragma)", re.MULTILINE)


def render_cuda(kernel: CudaKernel) -> str:
    """The CUDA C++ source of `kernel`. Equal kernels have equal sources."""
    text = _template("cuda/kernel.cu.j2").render(kernel=kernel)
    return _GAPS.sub("\n\n", text).rstrip() + "\n"


def render_cuda_pull(kernel: CudaPullKernel) -> str:
    """The CUDA C++ source that takes gradients back through a projection."""
    text = _template("cuda/pull.cu.j2").render(kernel=kernel)
    return _GAPS.sub("\n\n", _PRAGMAS.sub("", text)).strip() + "\n"


def render_cuda_group(kernel: CudaGroupKernel) -> str:
    """The CUDA C++ source of one level of groups."""
    text = _template("cuda/group.cu.j2").render(kernel=kernel)
    return _GAPS.sub("\n\n", text).rstrip() + "\n"


def _template(name: str) -> Template:
    from projgen.templates import environment  # and with it Jinja

    return environment().get_template(name)
