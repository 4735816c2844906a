"""Files of tensors, and the report of what a projection did to them."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support import rehearsals

from projgen import build, files
from projgen.cli import main
from projgen.outcome import Radius, project
from projgen.terminal import format_ranges

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((8, 16)).astype(np.float32)
TENSORS: Mapping[str, Any] = {
    "fc.weight": WEIGHT,
    "fc.bias": RNG.standard_normal(8),
    "steps": np.array(7),
}
METADATA = {"format": "pt", "step": "7"}
SPEC = "l1(linf(axis=1))"
Write = Callable[[Path, Mapping[str, Any]], None]


def write_npz(path: Path, tensors: Mapping[str, Any]) -> None:
    np.savez_compressed(path, **tensors)


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    save_file(dict(tensors), path, METADATA)


def read_all(path: Path) -> dict[str, Any]:
    file = files.open_tensors(path)
    return {name: file.read(name) for name in file.names}


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == np.asarray(expected[name]).dtype
        and np.array_equal(found[name], expected[name])
        for name in expected
    )


@pytest.mark.parametrize("write", [write_npz, write_safetensors])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_all_tensors_are_kept(tmp_path: Path, write: Write, suffix: str) -> None:
    source = tmp_path / ("in.npz" if write is write_npz else "in.safetensors")
    write(source, TENSORS)
    target = tmp_path / f"out{suffix}"
    files.save(files.open_tensors(source), target, {"fc.weight": 2 * WEIGHT})
    assert same(read_all(target), {**TENSORS, "fc.weight": 2 * WEIGHT})


@pytest.mark.parametrize("write", [write_npz, write_safetensors])
def test_nothing_replaced_changes_nothing(tmp_path: Path, write: Write) -> None:
    path = tmp_path / ("in.npz" if write is write_npz else "in.safetensors")
    write(path, TENSORS)
    before = path.read_bytes()
    files.save(files.open_tensors(path), path, {"fc.weight": WEIGHT})
    assert same(read_all(path), TENSORS)
    if write is write_safetensors:
        assert path.read_bytes() == before


def test_metadata_and_compression_are_kept(tmp_path: Path) -> None:
    one, two = tmp_path / "a.safetensors", tmp_path / "b.npz"
    write_safetensors(one, TENSORS)
    write_npz(two, TENSORS)
    for path in (one, two):
        files.save(files.open_tensors(path), path, {"fc.weight": 0 * WEIGHT})
    with safe_open(one, framework="numpy") as file:
        assert file.metadata() == METADATA
    with zipfile.ZipFile(two) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_fortran_order_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    np.save(path, np.asfortranarray(WEIGHT))
    file = files.open_tensors(path)
    assert file.names == ("y",)
    x, _ = project(build(SPEC, backend="numpy"), "y", file.read("y"), Radius(0.1, relative=True))
    files.save(file, path, {"y": x})
    assert np.load(path).flags.f_contiguous
    assert np.array_equal(np.load(path), x)


def test_a_transposed_tensor_goes_to_safetensors_in_c_order(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    write_safetensors(path, TENSORS)
    files.save(files.open_tensors(path), path, {"fc.weight": np.asfortranarray(3 * WEIGHT)})
    assert np.array_equal(read_all(path)["fc.weight"], 3 * WEIGHT)


def test_types_that_numpy_lacks_are_carried_along(tmp_path: Path) -> None:
    header = {
        "half": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "in.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x80?\x00@" + bytes(4))
    file = files.open_tensors(path)
    assert file.describe("half") == "BF16 (2,)"
    files.save(file, path, {"y": np.ones(1, np.float32)})
    assert path.read_bytes().endswith(b"\x80?\x00@\x00\x00\x80?")
    with pytest.raises(ValueError, match=r"out\.npz cannot hold tensor 'half'"):
        files.save(file, tmp_path / "out.npz", {})
    assert not (tmp_path / "out.npz").exists()


def test_members_that_are_no_arrays_are_carried_along(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, y=WEIGHT, words=np.array(["a", None], dtype=object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README", "text")
    file = files.open_tensors(path)
    with pytest.raises(ValueError, match="words"):
        file.read("words")
    files.save(file, path, {"y": -WEIGHT})
    with zipfile.ZipFile(path) as archive:
        assert archive.read("README") == b"text"
    found = np.load(path, allow_pickle=True)
    assert found["words"].tolist() == ["a", None]
    assert np.array_equal(found["y"], -WEIGHT)


def test_a_failure_leaves_the_target_alone(tmp_path: Path) -> None:
    target = tmp_path / "out.npy"
    target.write_bytes(b"before")
    with pytest.raises(RuntimeError), files.replacing(target) as out:
        out.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_a_link_and_its_mode_survive(tmp_path: Path) -> None:
    target, link = tmp_path / "out.npy", tmp_path / "link.npy"
    target.write_bytes(b"before")
    target.chmod(0o640)
    link.symlink_to(target)
    with files.replacing(link) as out:
        out.write(b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert target.stat().st_mode & 0o777 == 0o640


def test_choosing(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    write_npz(path, TENSORS)
    file = files.open_tensors(path)
    assert files.choose(file, ["fc.bias", "fc.weight", "fc.bias"]) == ["fc.bias", "fc.weight"]
    with pytest.raises(ValueError, match="choose with --tensor") as listed:
        files.choose(file, None)
    assert "fc.weight  float32 (8, 16)" in str(listed.value)
    with pytest.raises(ValueError, match=r"did you mean 'fc.weight'\?"):
        files.choose(file, ["fc.weights"])


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.npy", b""), ("a.npy", b"x"), ("a.npz", b"x"), ("a.safetensors", b"x"), ("a.pt", b"")],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        files.open_tensors(path)


def test_radius() -> None:
    assert Radius.parse("10%").of(50.0) == 5.0
    assert Radius.parse("2.5").of(50.0) == 2.5
    assert Radius.parse("inf").of(1.0) == float("inf")
    assert [str(Radius.parse(text)) for text in ("10%", "0.5%", "1e-3")] == ["10%", "0.5%", "0.001"]
    for text in ("", "%", "-1", "-1%", "nan", "inf%", "10%%", "ten"):
        with pytest.raises(ValueError, match="is not a radius"):
            Radius.parse(text)


def test_ranges() -> None:
    assert format_ranges([], 20) == ""
    assert format_ranges([0, 1, 2, 5, 7, 8], 20) == "0-2, 5, 7-8"
    assert format_ranges([*range(100), *range(200, 300, 2)], 14) == "0-99, 200, 202 … 48 more"


def outcome_of(spec: str, y: Any, radius: str) -> dict[str, Any]:
    x, outcome = project(build(spec, backend="numpy"), "y", y, Radius.parse(radius))
    assert outcome.zero_entries == np.count_nonzero(x == 0)
    assert outcome.largest_change == np.abs(x - y).max()
    return outcome.to_json()


def test_groups_of_every_level() -> None:
    y = np.ones((3, 4, 2))
    y[0] = 0.01
    y[1, 2] = 0.0
    found = outcome_of("l1(l1(linf))", y, "5")
    upper, leaf = found["groups"]
    assert (upper["axes"], upper["count"], upper["zero"], upper["indices"]) == ((0,), 3, 1, [0])
    assert (leaf["axes"], leaf["count"], leaf["zero_before"]) == ((0, 1), 12, 1)
    assert leaf["indices"] == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 2]]
    assert found["norm_after"] == pytest.approx(5.0)


def test_a_batch_has_norms_and_radii_of_its_own() -> None:
    y = np.array([[1.0, -3.0], [2.0, 2.0]])
    found = outcome_of("l1(axis=1)", y, "50%")
    assert found["norm_before"] == [4.0, 4.0]
    assert found["radius"] == [2.0, 2.0]
    assert found["norm_after"] == [2.0, 2.0]
    assert [groups["axes"] for groups in found["groups"]] == [(0,)]


def run(*arguments: object) -> int:
    return main(["run", SPEC, *map(str, arguments)])


def test_run_in_place_of_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    arguments = (path, path, "--radius", "20%", "--tensor", "fc.weight", "--json")
    assert run(*arguments) == 0
    (report,) = json.loads(capsys.readouterr().out)["tensors"]
    x = read_all(path)["fc.weight"]
    dead = np.flatnonzero(~x.any(axis=1))
    assert len(dead) > 0
    assert report["groups"][0]["indices"] == dead.tolist()
    assert report["norm_after"] == pytest.approx(0.2 * np.abs(WEIGHT).max(axis=1).sum(), rel=1e-6)
    assert same(read_all(path), {**TENSORS, "fc.weight": x})


def test_run_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], snapshot: Callable[[str, str], None]
) -> None:
    path = tmp_path / "y.npy"
    np.save(path, np.outer([1, 2, 3, 4, 5, 6, 7, 8], np.linspace(-1, 1, 16)).astype(np.float32))
    assert run(path, tmp_path / "x.npz", "--radius", "25%") == 0
    out = capsys.readouterr().out
    assert out.endswith(f"wrote {tmp_path / 'x.npz'}\n")
    snapshot("cli_run", out.replace(str(tmp_path), "DIR"))


def test_run_refuses_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], snapshot: Callable[[str, str], None]
) -> None:
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    bad = WEIGHT.copy()
    bad[2, 3] = np.nan
    write_npz(source, {**TENSORS, "bad": bad})
    target.write_bytes(b"before")
    cases: list[tuple[object, ...]] = [
        (source, target, "--tensor", "bad"),
        (source, target, "--tensor", "steps"),
        (source, target, "--tensor", "fc.bias"),
        (source, target, "--tensor", "fc.wieght"),
        (source, target, "--tensor", "fc*.weight"),
        (source, target),
        (source, tmp_path / "out.npy", "--tensor", "fc.weight"),
        (source, tmp_path / "out.pt", "--tensor", "fc.weight"),
        (source, tmp_path / "no" / "out.npz", "--tensor", "fc.weight"),
        (tmp_path / "no.npz", target),
    ]
    for case in cases:
        assert run("--radius", "1", *case) == 2
    assert main(["run", str(source), SPEC, str(target), "--radius", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    snapshot("cli_run_errors", captured.err.replace(str(tmp_path), "DIR"))
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_lost_metadata_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.safetensors"
    write_safetensors(source, {"y": WEIGHT})
    assert run(source, tmp_path / "out.npy", "--radius", "1") == 0
    assert "warning" in capsys.readouterr().err


def test_safetensors_is_an_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.safetensors"
    write_safetensors(path, {"y": WEIGHT})
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    assert run(path, path, "--radius", "1") == 1
    assert "pip install safetensors" in capsys.readouterr().err


def encrypted(path: Path) -> None:
    """Marks the first member as one that needs a password."""
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def flipped(path: Path, member: int, compressed: bool = False) -> None:
    """Damages a byte in the middle of what is stored of a member."""
    np_save = np.savez_compressed if compressed else np.savez
    np_save(path, a=WEIGHT, b=WEIGHT)
    with zipfile.ZipFile(path) as archive:
        first, second = archive.infolist()
    info = (first, second)[member]
    data = bytearray(path.read_bytes())
    for at in range(20):
        data[info.header_offset + 60 + info.compress_size // 2 + at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("member", "compressed", "said"),
    [(0, False, "tensor 'a' of"), (0, True, "tensor 'a' of"), (1, False, "tensor 'b' of")],
)
def test_damage_in_a_tensor_is_wrong_input(
    member: int, compressed: bool, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the one that is projected, and in one that is only copied."""
    source, target = tmp_path / "m.npz", tmp_path / "o.npz"
    flipped(source, member, compressed)
    with rehearsals():
        assert run(source, target, "--radius", "1", "--tensor", "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "cannot be read" in line
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_no_byte_that_is_wrong_ends_in_a_traceback(tmp_path: Path) -> None:
    """Each byte of small files, changed: an error that says so, or none."""
    array = np.arange(3, dtype=np.float32)
    np.savez_compressed(tmp_path / "c.npz", a=array)
    np.savez(tmp_path / "s.npz", a=array)
    np.save(tmp_path / "y.npy", array)
    for name in ("c.npz", "s.npz", "y.npy"):
        path = tmp_path / name
        whole = path.read_bytes()
        found = set()
        for at in range(len(whole)):
            for mask in (0xFF, 0x01):
                data = bytearray(whole)
                data[at] ^= mask
                path.write_bytes(data)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        file = files.open_tensors(path)
                        _ = [file.read(tensor) for tensor in file.names]
                        file.rewrite({}, io.BytesIO())
                    except ValueError as error:
                        assert str(error)
                        found.add(at)
        assert found
    np.savez(path := tmp_path / "e.npz", a=array)
    encrypted(path)
    with pytest.raises(ValueError, match=r"cannot be read: .*encrypted"):
        files.open_tensors(path).read("a")


def test_a_target_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not the file beside it that would take its place."""
    source, target = tmp_path / "y.npy", tmp_path / "x.npy"
    np.save(source, WEIGHT)

    def refuse(partial: Path, place: Path) -> None:
        raise PermissionError(13, "Permission denied", str(partial), None, str(place))

    with rehearsals(), monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", refuse)
        assert run(source, target, "--radius", "1") == 1
    assert capsys.readouterr().err == f"projgen: error: {target}: Permission denied\n"
