"""The container: exact round trips, and no damaged or half-written file under the final name."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from mcq import io
from mcq.errors import FormatError

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2, 3], np.uint8)}

any_arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        st.sampled_from([*io.DTYPES, ">f4", ">u2"]).map(np.dtype),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=3,
)


@pytest.fixture
def path(tmp_path):
    """A container file."""
    target = tmp_path / "some.mcq"
    io.write(target, "test", {"width": 3}, ARRAYS)
    return target


@given(arrays=any_arrays)
def test_read_returns_what_was_written(tmp_path_factory, arrays):
    target = tmp_path_factory.mktemp("io") / "some.mcq"
    config = {"text": "ü", "list": [1, 2.5, None], "nested": {"on": True}}
    io.write(target, "test", config, arrays)
    kind, read_config, read_arrays = io.read(target)
    assert (kind, read_config) == ("test", config)
    assert read_arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read_arrays[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read_arrays[name], array)


def test_same_content_gives_the_same_bytes(path, tmp_path):
    again = tmp_path / "again.mcq"
    io.write(again, "test", {"width": 3}, dict(reversed(ARRAYS.items())))
    assert again.read_bytes() == path.read_bytes()


def test_other_safetensors_readers_can_read_it(path):
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_arrays_without_order_in_memory(tmp_path):
    target = tmp_path / "some.mcq"
    columns = np.arange(12.0).reshape(3, 4).T[::2]
    io.write(target, "test", {}, {"columns": columns})
    np.testing.assert_array_equal(io.read(target).arrays["columns"], columns)


def test_truncated_anywhere(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"some\.mcq"):
            io.read(path)


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_altered_anywhere(path, mask):
    whole = path.read_bytes()
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= mask
        path.write_bytes(altered)
        with pytest.raises(FormatError):
            io.read(path)


def test_appended(path):
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FormatError, match="whole safetensors"):
        io.read(path)


def test_exchanged_tensor_data(path, tmp_path):
    other = tmp_path / "other.mcq"
    io.write(other, "test", {"width": 3}, {name: array + 1 for name, array in ARRAYS.items()})
    ours, theirs = path.read_bytes(), other.read_bytes()
    data = 24 + 3
    path.write_bytes(ours[:-data] + theirs[-data:])
    with pytest.raises(FormatError, match="checksum"):
        io.read(path)


def with_metadata(path, **changes):
    """Write the container anew with other metadata, None removing an entry, as a forger would."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"] | changes
    save_file(ARRAYS, path, {key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "2"}, "format version 2, newer than this mcq; upgrade"),
        ({"format_version": None}, "format version None"),
        ({"format": "pt"}, "not one that mcq wrote"),
        ({"format": None}, "not one that mcq wrote"),
        ({"kind": "other"}, "checksum"),
        ({"config": '{"width": 4}'}, "checksum"),
        ({"sha256": None}, "lacks the metadata entry 'sha256'"),
    ],
)
def test_foreign_newer_or_forged_metadata(path, changes, message):
    with_metadata(path, **changes)
    with pytest.raises(FormatError, match=message):
        io.read(path)


def test_foreign_files(tmp_path):
    target = tmp_path / "some.mcq"
    np.save(target.with_suffix(".npy"), np.arange(3))
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        io.read(target.with_suffix(".npy"))
    target.write_bytes(b"")
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        io.read(target)
    with pytest.raises(FileNotFoundError):
        io.read(tmp_path / "absent.mcq")
    with pytest.raises(IsADirectoryError):
        io.read(tmp_path)


def test_load_builds_the_registered_class(path, monkeypatch):
    monkeypatch.setattr(io, "_CLASSES", {})
    with pytest.raises(FormatError, match="unknown kind 'test'"):
        io.load(path)

    @io.register("test")
    class Thing:
        @classmethod
        def _from_container(cls, config, arrays):
            thing = cls()
            thing.width = config["width"]
            return thing

    assert io.load(path).width == 3
    assert io.load_as(Thing, path).width == 3
    with pytest.raises(FormatError, match="holds Thing, but dict is needed"):
        io.load_as(dict, path)


def test_config_that_json_cannot_hold_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        io.write(tmp_path / "some.mcq", "test", {"width": float("nan")}, {})
    assert list(tmp_path.iterdir()) == []


def test_permissions_follow_the_umask(path, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


# Run in a process of its own: it limits or kills itself.
WRITER = """
import os, resource, signal, sys
import numpy as np
from mcq import io
{sabotage}
io.write(sys.argv[1], "test", {{}}, {{"a": np.zeros(100_000)}})
"""
FULL_DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))"
KILLED = "os.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"


def run_writer(target, sabotage):
    code = WRITER.format(sabotage=sabotage)
    return subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)


@pytest.mark.parametrize("exists", [False, True])
def test_full_disk_leaves_things_as_they_were(tmp_path, exists):
    target = tmp_path / "some.mcq"
    if exists:
        io.write(target, "test", {"old": True}, ARRAYS)
    done = run_writer(target, FULL_DISK)
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == [target] * exists
    assert not exists or io.read(target).config == {"old": True}


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("exists", [False, True])
def test_killed_half_way_leaves_the_final_name_alone(tmp_path, step, exists):
    target = tmp_path / "some.mcq"
    if exists:
        io.write(target, "test", {"old": True}, ARRAYS)
    assert run_writer(target, KILLED.format(step=step)).returncode == -9
    assert target.exists() == exists
    assert not exists or io.read(target).config == {"old": True}
