import importlib
import pickle

import numpy as np
import pytest

import mcq
from mcq.errors import FormatError, InputError
from mcq_search.readers import open_vectors

N, D = 23, 5


def write_xvecs(path, x):
    dtype = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4"}[path.suffix]
    path.write_bytes(b"".join(np.int32(len(row)).tobytes() + row.astype(dtype).tobytes() for row in x))


def write_bin(path, x):
    dtype = {".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1", ".ibin": "<i4"}[path.suffix]
    path.write_bytes(np.array(x.shape, "<u4").tobytes() + x.astype(dtype).tobytes())


def write_hdf5(path, x, **more):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, data in {"train": x, **more}.items():
            file[name] = data


def write_parquet(path, rows, kind="list", value="float32"):
    pa = pytest.importorskip("pyarrow")
    value = getattr(pa, value)()
    types = {"list": pa.list_(value), "large": pa.large_list(value), "fixed": pa.list_(value, D)}
    rows = [None if row is None else list(row) for row in rows]
    table = pa.table({"id": np.arange(len(rows)), "vector": pa.array(rows, types[kind])})
    importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=7)


WRITERS = {
    "x.npy": np.save,
    "fortran.npy": lambda path, x: np.save(path, np.asfortranarray(x)),
    "big-endian.npy": lambda path, x: np.save(path, x.astype(">i2")),
    "x.fvecs": write_xvecs,
    "x.bvecs": write_xvecs,
    "x.ivecs": write_xvecs,
    "x.fbin": write_bin,
    "x.u8bin": write_bin,
    "x.i8bin": write_bin,
    "x.ibin": write_bin,
    "x.hdf5": write_hdf5,
    "x.h5": write_hdf5,
    "list.parquet": write_parquet,
    "large.parquet": lambda path, x: write_parquet(path, x, "large", "float64"),
    "fixed.parquet": lambda path, x: write_parquet(path, x, "fixed", "int8"),
}


@pytest.fixture
def x():
    return np.random.default_rng(0).integers(0, 128, (N, D))


@pytest.fixture(params=WRITERS)
def opened(request, tmp_path, x):
    path = tmp_path / request.param
    WRITERS[request.param](path, x)
    return open_vectors(path)


def test_any_slice_is_that_of_the_array(opened, x):
    assert (opened.shape, opened.ndim, len(opened)) == ((N, D), 2, N)
    for rows in [slice(0, 0), slice(3, 3), slice(5, 2), slice(6, 8), slice(2, 22), slice(-3, None), slice(20, 99)]:
        part = opened[rows]
        assert part.dtype == opened.dtype
        assert part.dtype.isnative
        assert part.flags.c_contiguous
        np.testing.assert_array_equal(part, x[rows])
    np.testing.assert_array_equal(opened[4:9, 1:3], x[4:9, 1:3])
    np.testing.assert_array_equal(np.concatenate(list(opened.blocks(6))), x)


def test_a_copy_sent_elsewhere_reads_the_same(opened, x):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened))[5:7], x[5:7])


def test_quantizers_take_it_whole(opened, x):
    q = mcq.AdditiveQuantizer(num_codebooks=1, codebook_bits=2, group_size=None, rounds=1)
    assert q.fit_encode(opened) == q.fit_encode(x)


def test_only_plain_slices(opened):
    for key in (3, slice(0, 9, 2), [1, 2], (slice(1), 2)):
        with pytest.raises(TypeError, match="slices without a step"):
            opened[key]


def test_dtypes_are_those_of_the_file(tmp_path, x):
    for name, dtype in [("a.fvecs", "f4"), ("a.bvecs", "u1"), ("a.ivecs", "i4"), ("a.i8bin", "i1"), ("a.fbin", "f4")]:
        (write_xvecs if name.endswith("vecs") else write_bin)(tmp_path / name, x)
        assert open_vectors(tmp_path / name).dtype == dtype


def test_parquet_reads_only_the_row_groups_it_needs(tmp_path, x, monkeypatch):
    write_parquet(tmp_path / "x.parquet", x)
    vectors = open_vectors(tmp_path / "x.parquet")
    read = []
    original = vectors._read_group
    monkeypatch.setattr(vectors, "_read_group", lambda group: read.append(group) or original(group))
    for rows in (slice(8, 10), slice(10, 13), slice(13, 15)):
        np.testing.assert_array_equal(vectors[rows], x[rows])
    assert read == [1, 2]


def test_named_parts(tmp_path, x):
    write_hdf5(tmp_path / "ann.hdf5", x, test=x[:4], neighbors=x[:4, :2], distance=np.float32(1), sub=x[0])
    path = tmp_path / "ann.hdf5"
    assert open_vectors(path, "test").shape == (4, D)
    np.testing.assert_array_equal(open_vectors(path, "neighbors")[:], x[:4, :2])
    with pytest.raises(InputError, match=r"holds 5 data sets; name one of: distance, neighbors, sub, test, train"):
        open_vectors(path)
    with pytest.raises(InputError, match="has no data set 'tset'; name one of"):
        open_vectors(path, "tset")
    with pytest.raises(FormatError, match=r"must have shape \(n, d\), got \(5,\)"):
        open_vectors(path, "sub")
    write_parquet(tmp_path / "x.parquet", x)
    assert open_vectors(tmp_path / "x.parquet", "vector").shape == x.shape
    with pytest.raises(InputError, match="has no column of lists 'id'; name one of: vector"):
        open_vectors(tmp_path / "x.parquet", "id")


def test_neighbours_and_their_distances(tmp_path, x):
    path = tmp_path / "truth.ibin"
    distances = x.astype("<f4") / 3
    path.write_bytes(np.array(x.shape, "<u4").tobytes() + x.astype("<i4").tobytes() + distances.tobytes())
    np.testing.assert_array_equal(open_vectors(path)[:], x)
    np.testing.assert_array_equal(open_vectors(path, "distances")[2:5], distances[2:5])
    write_bin(path, x)
    with pytest.raises(InputError, match="no part called 'distances'"):
        open_vectors(path, "distances")


@pytest.mark.parametrize("name", ["x.npy", "x.fvecs", "x.fbin", "x.ibin", "x.hdf5", "list.parquet"])
@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:2], lambda data: b""])
def test_truncated_files_are_refused(tmp_path, x, name, damage):
    path = tmp_path / name
    WRITERS[name](path, x)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=name):
        open_vectors(path)


@pytest.mark.parametrize("name", ["x.npy", "x.fvecs", "x.u8bin"])
def test_bytes_too_many_are_refused(tmp_path, x, name):
    WRITERS[name](tmp_path / name, x)
    with open(tmp_path / name, "ab") as file:
        file.write(b"more")
    with pytest.raises(FormatError, match=r"bytes"):
        open_vectors(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.hdf5", "list.parquet"])
def test_no_rows_are_refused(tmp_path, name, x):
    WRITERS[name](tmp_path / name, x[:0])
    with pytest.raises(FormatError, match="at least one row"):
        open_vectors(tmp_path / name)


def test_odd_vecs(tmp_path, x):
    path = tmp_path / "x.fvecs"
    for head in (0, -4):
        path.write_bytes(np.int32(head).tobytes() * 6)
        with pytest.raises(FormatError, match=f"must start with the number of entries of its first row, got {head}"):
            open_vectors(path)
    write_xvecs(path, [x[0], x[1][:2], x[2]])
    with pytest.raises(FormatError, match="whole records of 24 bytes"):
        open_vectors(path)
    rows = np.c_[np.full(N, D), x].astype("<i4")
    rows[9, 0] = 7
    rows.tofile(path)
    vectors = open_vectors(path)
    vectors[:9]
    with pytest.raises(FormatError, match="row 9 claims 7"):
        vectors[4:12]
    rows[-1, 0] = 7
    rows.tofile(path)
    with pytest.raises(FormatError, match=f"row {N - 1} claims 7"):
        open_vectors(path)


def test_a_file_that_shrinks_later_is_noticed(tmp_path, x):
    write_bin(tmp_path / "x.fbin", x)
    vectors = open_vectors(tmp_path / "x.fbin")
    write_bin(tmp_path / "x.fbin", x[:5])
    vectors[:5]
    with pytest.raises(FormatError, match="shorter since it was opened"):
        vectors[3:8]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2]] * 9 + [[1, 2, 3]], "must have 2 entries, but row 9 has not"),
        ([[1, 2]] * 8 + [None], "must have 2 entries, but row 8 has not"),
        ([[1, 2]] * 10 + [[1, None]], "must have entries without nulls, but row 10 has not"),
    ],
)
def test_odd_lists(tmp_path, rows, message):
    write_parquet(tmp_path / "x.parquet", rows)
    vectors = open_vectors(tmp_path / "x.parquet")
    assert vectors[:7].tolist() == rows[:7]
    with pytest.raises(FormatError, match=message):
        vectors[7:]


def test_what_is_not_a_matrix_of_numbers(tmp_path):
    for array, message in [
        (np.zeros(4), r"matrix of shape \(n, d\), got shape \(4,\)"),
        (np.array([["a", "b"]]), "real numbers, got <U1"),
        (np.zeros((2, 2), complex), "real numbers, got complex128"),
        (np.array([[None]]), "not a whole .npy file of numbers"),
    ]:
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(FormatError, match=message):
            open_vectors(tmp_path / "x.npy")
    write_parquet(tmp_path / "x.parquet", [["a"]], value="string")
    with pytest.raises(FormatError, match="real numbers, got object"):
        open_vectors(tmp_path / "x.parquet")


def test_wrong_arguments(tmp_path, x):
    with pytest.raises(FileNotFoundError):
        open_vectors(tmp_path / "none.parquet")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match="leave out the name 'train'"):
        open_vectors(tmp_path / "x.npy", "train")
    (tmp_path / "x.txt").write_text("1 2")
    with pytest.raises(InputError, match=r"one of \.npy, \.fvecs"):
        open_vectors(tmp_path / "x.txt")


@pytest.mark.parametrize(("name", "package"), [("x.hdf5", "h5py"), ("list.parquet", "pyarrow.parquet")])
def test_a_missing_package_is_named(tmp_path, x, monkeypatch, name, package):
    WRITERS[name](tmp_path / name, x)
    monkeypatch.setitem(importlib.sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}; run: pip install 'multicodebook\[data\]'"):
        open_vectors(tmp_path / name)
