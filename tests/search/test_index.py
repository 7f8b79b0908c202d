"""An index as its user sees it: add, remove, search, save, load."""

import json

import faiss
import numpy as np
import pytest

import mcq
from mcq.errors import ConfigError, FormatError, InputError
from mcq_search import Index, build_index

FACTORIES = ["AQ3x5", "RQ4x4fs", "IVF5,RQ3x5", "IVF5,RQ4x4fs", "RQ4x4fs,Refine", "IVF5,RQ2x5,Refine(SQ8)"]
K = 10


def visiting_all(index):
    return {} if index.lists is None else {"nprobe": 5}


def same(first, second):
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_what_is_added_piece_by_piece_is_found_as_if_added_at_once(x, queries, factory, metric):
    index = build_index(x, factory, metric)
    distances, ids = index.search(queries, K, **visiting_all(index))
    # Emptied and filled anew, with searches between; 33 rows so that blocks of a fast scan fill up in two steps.
    index.remove(index.ids)
    assert len(index) == 0
    for start, stop in ((0, 33), (33, 40), (40, 700)):
        index.add(x[start:stop], ids=np.arange(start, stop))
        index.search(queries, 1)
    same(index.search(queries, K, **visiting_all(index)), (distances, ids))


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_it_is_the_same_after_loading_and_in_faiss(x, queries, tmp_path, factory, metric):
    index = build_index(x, factory, metric, ids=10**15 + 2 * np.arange(len(x)))
    wanted = index.search(queries, K, **visiting_all(index))
    assert wanted[1].min() >= 10**15
    index.save(tmp_path / "index.mcq")
    same(Index.load(tmp_path / "index.mcq").search(queries, K, **visiting_all(index)), wanted)
    assert isinstance(mcq.load(tmp_path / "index.mcq"), Index)
    faiss.write_index(index.to_faiss(), str(tmp_path / "index.faiss"))
    exported = faiss.read_index(str(tmp_path / "index.faiss"))
    distances, ids = exported.search(queries, K)  # five lists are less than the standard nprobe
    np.testing.assert_array_equal(ids, wanted[1])
    if factory != "RQ4x4fs" and factory != "IVF5,RQ4x4fs":  # there FAISS leaves out the norm of the query
        np.testing.assert_array_equal(distances, wanted[0])


@pytest.mark.parametrize("factory", FACTORIES)
def test_distances_are_those_to_what_is_found(x, queries, factory):
    index = build_index(x, factory)
    distances, ids = index.search(queries, 1, **visiting_all(index))
    kept = x if "Refine" in factory else index.reconstruct(np.arange(len(x)))
    true = ((queries - kept[ids[:, 0]]) ** 2).sum(axis=1)
    spread = ((queries[:, None] - x) ** 2).sum(axis=2).std()
    np.testing.assert_allclose(distances[:, 0], true, atol=0.1 * spread)


def test_refining_finds_the_true_neighbours(x, queries):
    index = build_index(x, "RQ2x4,Refine")
    distances, ids = index.search(queries, K, rerank=len(x))
    wanted_distances, wanted = faiss.knn(queries, x, K)
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(distances, wanted_distances, rtol=1e-4, atol=1e-3)
    few = index.search(queries, 1, rerank=1)[1]
    assert (few == wanted[:, :1]).mean() < 0.9


def test_refining_keeps_a_byte_per_entry_nearly_exact(x, queries):
    index = build_index(x, "RQ2x4,Refine(SQ8)")
    assert index.bytes_per_vector == 1 + 1 + x.shape[1]  # 2 codes of 4 bits, a norm, the vector
    _, ids = index.search(queries, 1, rerank=len(x))
    _, wanted = faiss.knn(queries, x, 1)
    assert (ids == wanted).mean() > 0.9


def test_more_lists_find_more(x, queries):
    index = build_index(x, "IVF16,RQ3x5")
    truth = faiss.knn(queries, x, 1)[1]
    recall = [(index.search(queries, 10, nprobe=nprobe)[1] == truth).any(axis=1).mean() for nprobe in (1, 16)]
    assert recall[1] > recall[0]
    distances, ids = index.search(queries, 300, nprobe=1)
    assert (ids == -1).any()
    assert np.isinf(distances[ids == -1]).all()


def test_removed_vectors_are_not_found_and_their_ids_are_free(x, queries):
    index = build_index(x, "IVF5,RQ3x5,Refine")
    index.search(queries, 1)
    nearest = np.unique(index.search(queries, 1)[1])
    index.remove(nearest)
    assert len(index) == len(x) - len(nearest)
    assert not np.isin(nearest, index.search(queries, 50)[1]).any()
    index.add(x[nearest], ids=nearest)
    assert np.isin(nearest, index.search(queries, 1)[1]).all()


def test_ids_go_on_after_the_largest(x):
    index = build_index(x, "RQ2x4", ids=np.arange(5, 705))
    assert index.add(x[:2]).tolist() == [705, 706]
    assert index.reconstruct(706).shape == (1, x.shape[1])


@pytest.mark.parametrize("factory", ["RQ3x5", "IVF5,RQ3x5"])
def test_reconstructions_are_near_the_vectors(x, factory):
    index = build_index(x, factory, ids=np.arange(len(x))[::-1])
    rebuilt = index.reconstruct([699, 3])
    assert ((rebuilt - x[[0, 696]]) ** 2).sum() < 0.6 * (x[[0, 696]] ** 2).sum()


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (np.ones((2, 17)), None, "the 18 columns of the index"),
        (np.full((2, 18), np.inf), None, "must be finite"),
        (np.ones((0, 18)), None, "at least one row"),
        (np.ones((2, 18)), [1000, 1000], "1000 comes 2 times"),
        (np.ones((2, 18)), [1000, 3], "3 is in the index already"),
        (np.ones((2, 18)), [1000], "2 integers"),
        (np.ones((2, 18)), [-1, 5], "must lie in"),
        (np.ones((2, 18)), [0.5, 1], "2 integers"),
    ],
)
def test_what_cannot_be_added_leaves_the_index_as_it_was(x, queries, vectors, ids, message):
    index = build_index(x, "RQ2x4,Refine")
    before = index.search(queries, 3)
    with pytest.raises(InputError, match=message):
        index.add(vectors, ids)
    assert len(index) == len(x)
    same(index.search(queries, 3), before)


def test_a_bad_row_in_a_later_part_adds_nothing(x, monkeypatch):
    monkeypatch.setattr("mcq_search.rows.CHUNK", 64)
    index = build_index(x, "RQ2x4")
    bad = x[:200].copy()
    bad[150, 2] = np.nan
    with pytest.raises(InputError, match=r"x\[128:192\] must be finite, but has nan at row 22"):
        index.add(bad)
    assert len(index) == len(index.codes) == len(x)


@pytest.mark.parametrize(
    ("factory", "options", "error", "message"),
    [
        ("RQ2x4", {"k": 701}, ConfigError, "k .at most the number of vectors in the index. must be .* 1 to 700"),
        ("RQ2x4", {"k": 0}, ConfigError, "from 1 to 700"),
        ("RQ2x4", {"k": 1, "nprobe": 2}, ConfigError, "nprobe is for IVF"),
        ("RQ2x4", {"k": 1, "rerank": 2}, ConfigError, "RQ2x4,Refine"),
        ("RQ2x4,Refine", {"k": 3, "rerank": 2}, ConfigError, "at least 3"),
        ("IVF5,RQ2x4", {"k": 1, "nprobe": 6}, ConfigError, "nprobe must be an integer from 1 to 5"),
    ],
)
def test_searches_that_make_no_sense_are_refused(x, queries, factory, options, error, message):
    with pytest.raises(error, match=message):
        build_index(x, factory).search(queries, **options)


def test_queries_are_checked_and_an_empty_index_says_so(x):
    index = build_index(x, "RQ2x4")
    with pytest.raises(InputError, match="queries must have the 18 columns"):
        index.search(np.ones((2, 3)), 1)
    with pytest.raises(InputError, match="queries must be finite"):
        index.search(np.full((2, 18), np.nan), 1)
    index.remove(index.ids)
    with pytest.raises(InputError, match="the index is empty"):
        index.search(x[:1], 1)


@pytest.mark.parametrize(
    ("ids", "message"), [([9000], "9000 is not"), ([1, 1], "must not repeat"), ([0.5], "integers")]
)
def test_removals_that_cannot_be_done_remove_nothing(x, ids, message):
    index = build_index(x, "RQ2x4")
    with pytest.raises(InputError, match=message):
        index.remove(ids)
    assert len(index) == len(x)


def test_an_empty_index_is_saved_and_filled_again(x, queries, tmp_path):
    index = build_index(x, "IVF5,RQ3x5,Refine(SQ8)")
    wanted = index.search(queries, K)
    index.remove(index.ids)
    index.save(tmp_path / "index.mcq")
    again = Index.load(tmp_path / "index.mcq")
    assert len(again) == 0
    assert again.to_faiss().ntotal == 0
    again.add(x)
    same(again.search(queries, K), wanted)


def test_no_ids_are_no_vectors(x):
    index = build_index(x, "RQ2x4")
    index.remove([])
    assert index.reconstruct([]).shape == (0, x.shape[1])
    assert len(index) == len(x)


def places_of(data):
    """A byte of each part of a file: its length, places of the header, and the middle of each array."""
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = json.loads(data[8:start])
    arrays.pop("__metadata__")
    middles = {name: start + sum(array["data_offsets"]) // 2 for name, array in arrays.items()}
    assert middles.keys() == {"quantizer", "codes", "ids", "calibration", "coarse", "lists", "vectors", "ranges"}
    header = [data.index(text) + 2 for text in (b"sha256", b"config", b"kind", b"format", b"IVF5", b"l2", b"data_off")]
    return [0, 3, *range(8, start, 31), *header, *middles.values(), len(data) - 1]


def test_a_file_that_was_altered_anywhere_is_refused(x, tmp_path):
    path = tmp_path / "index.mcq"
    build_index(x, "IVF5,RQ3x5,Refine(SQ8)").save(path)
    data = path.read_bytes()
    for place in places_of(data):
        altered = bytearray(data)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(FormatError):
            Index.load(path)
    for end in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(FormatError):
            Index.load(path)
    path.write_bytes(data + b"0")
    with pytest.raises(FormatError):
        Index.load(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids", lambda ids: ids[:-1], "ids must be 700 integers"),
        ("ids", lambda ids: ids * 0, "must not repeat"),
        ("lists", lambda lists: lists + 5, "rows of coarse"),
        ("codes", lambda codes: codes[:, :-1], "packed must be"),
        ("vectors", lambda vectors: vectors[:-1], "a stored vector for each"),
        ("vectors", lambda vectors: vectors[:, :-1], "stored vectors must be bytes"),
        ("ranges", lambda ranges: ranges[:-1], "ranges of stored vectors"),
        ("quantizer", lambda data: data[:-1], "truncated"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(x, tmp_path, name, change, message):
    path = tmp_path / "index.mcq"
    build_index(x, "IVF5,RQ3x5,Refine(SQ8)").save(path)
    kind, config, arrays = mcq.io.read(path)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    mcq.io.write(path, kind, config, arrays)
    with pytest.raises(FormatError, match=message):
        Index.load(path)


def test_a_file_of_another_kind_is_refused(x, tmp_path):
    mcq.ResidualQuantizer(1, 2, group_size=None, rounds=1).fit(x).save(tmp_path / "q.mcq")
    with pytest.raises(FormatError, match="holds ResidualQuantizer, but Index is needed"):
        Index.load(tmp_path / "q.mcq")


def test_repr_says_what_it_is(x):
    assert repr(build_index(x, "RQ2x4", "ip")) == "Index('RQ2x4', metric='ip', d=18, n=700)"
