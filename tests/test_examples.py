"""The examples run, and what they print is what they are for."""

import re
import runpy
from pathlib import Path

import pytest
from support import rehearsals

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_digits_shrink(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    pytest.importorskip("safetensors")
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)  # where other tests run, threads wait for one another
    main = runpy.run_path(str(EXAMPLES / "digits_shrink.py"))["main"]
    with rehearsals(), torch.random.fork_rng():
        main(["--quick"])

    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {cells[0]: cells[1:] for cells in lines}
    sizes = [rows[kept][0] for kept in ("all", "4, 8, 16, 32", "4, 8, 12, 24", "2, 4, 8, 16")]
    dense, *smaller = [int(size.replace(",", "")) for size in sizes]
    assert dense > smaller[0] > smaller[1] > smaller[2]

    assert rows["parameters"][:2] == [sizes[0], sizes[0]]
    assert rows["parameters"][2] in sizes[1:]
    accuracies = [float(cell) for cell in rows["test accuracy, %"][:3]]
    assert accuracies[1] == accuracies[2]  # the masked network computes what the shrunk one does
    assert accuracies[0] > 30  # of ten digits: training works
    timed = [name for name in rows if re.match(r"batch of (1|256), \d+ threads?, ms", name)]
    assert len(timed) in (2, 4)
    assert all(float(cell) > 0 for name in timed for cell in rows[name][:3])
