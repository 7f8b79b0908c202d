"""Factory strings, and what is built from them."""

import faiss
import numpy as np
import pytest

import mcq
from mcq.errors import ConfigError, InputError
from mcq_search import Description, Index, build_index
from tests.search.conftest import D, make_vectors

CLASSES = {
    "AQ2x4": "IndexLocalSearchQuantizer",
    "RQ2x4_Nfloat": "IndexResidualQuantizer",
    "PQ3x4": "IndexPQ",
    "RR,PQ3x4fs": "IndexPQFastScan",
    "OPQ,PQ4x4": "IndexPQ",
    "PRQ3x2x4fs": "IndexProductResidualQuantizerFastScan",
    "PLSQ3x2x4": "IndexProductLocalSearchQuantizer",
    "RQ3x4fs": "IndexResidualQuantizerFastScan",
    "IVF4,AQ2x4": "IndexIVFLocalSearchQuantizer",
    "RR,IVF4,PQ3x4": "IndexIVFPQ",
    "IVF4,AQ4x4fs,Refine": "IndexIVFLocalSearchQuantizerFastScan",
}


def innermost(index):
    """Return an index without its wrappers, which must outlive it."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexRefine):
        return innermost(inner.base_index)
    if isinstance(inner, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return innermost(inner.index)
    return inner


@pytest.mark.parametrize("factory", CLASSES)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_each_string_builds_its_index(x, queries, factory, metric):
    index = build_index(x, factory, metric)
    exported = index.to_faiss()
    assert type(innermost(exported)).__name__ == CLASSES[factory]
    distances, ids = index.search(queries, 5)
    assert ids.shape == (len(queries), 5)
    assert np.all(np.diff(distances if metric == "l2" else -distances, axis=1) >= 0)


def test_parts_of_a_string():
    parsed = Description.parse("OPQ,IVF64,PLSQ2x4x4fs_Nlsq2x4,Refine(SQ8)")
    assert (parsed.rotation, parsed.lists, parsed.code) == ("learned", 64, "PLSQ")
    assert (parsed.slices, parsed.codebooks, parsed.bits) == (2, 4, 4)
    assert (parsed.kind, parsed.norm, parsed.refine) == ("ivf_fastscan", "lsq2x4", "SQ8")
    assert Description.parse("AQ8x8").kind == "flat"
    quantizer = Description.parse("RQ3x6").quantizer()
    assert isinstance(quantizer, mcq.ResidualQuantizer)
    assert (quantizer.config.num_codebooks, quantizer.config.codebook_bits) == (3, 6)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("AQ8", "a factory string must be"),
        ("HNSW32,AQ8x8", "a factory string must be"),
        ("AQ8x8,Refine(PQ8)", "a factory string must be"),
        ("AQ8x8x8", "has 3 sizes"),
        ("RQ1x16_6x8", "equally many bits, got 'RQ1x16_6x8'; take one size, such as RQ8x8, and inverted lists"),
        ("PLSQ8x8", "has 2 sizes"),
        ("OPQ,AQ8x8", "changes nothing before AQ"),
        ("AQ8x8fs", "codebooks of 4 bits, got 8"),
        ("AQ8x8_Nnone", "ranks wrongly"),
        ("AQ8x8_Nlut", "FAISS aborts"),
        ("AQ4x4fs_Nqint8", "norm in a fast scan"),
        ("AQ4x4_Nint8", "norm must be one of"),
        ("PQ4x4_Nqint8", "norm of plain product codes"),
        ("AQ999x4", "num_codebooks must be an integer from 1 to"),
        ("IVF0,AQ2x4", "at least 0 vectors"),
        ("IVF701,AQ2x4", "at least 701 vectors"),
    ],
)
def test_errors_say_what_is_wrong_with_a_string(x, factory, message):
    with pytest.raises(ConfigError, match=message):
        build_index(x, factory)


def test_a_metric_of_another_name_is_refused(x):
    with pytest.raises(ConfigError, match="metric must be one of"):
        build_index(x, "AQ2x4", "cosine")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((0, 4)), "at least one row"),
        (np.zeros(4), "must have shape"),
        (np.full((20, 4), np.nan), "must be finite"),
        ([[1, 2], [3]], "must be 2-D"),
        ([["a", "b"]], "must hold real numbers"),
        (None, "must hold real numbers"),
    ],
)
def test_vectors_that_are_none_are_refused(vectors, message):
    with pytest.raises(InputError, match=message):
        build_index(vectors, "RQ1x2")


ODD = {
    "one": make_vectors(2, seed=5)[:1],
    "two": make_vectors(2, seed=5),
    "few": make_vectors(10, seed=5),
    "duplicates": np.repeat(make_vectors(3, seed=5), 30, axis=0),
    "all equal": np.full((60, D), 3.7),
    "zeros": np.zeros((60, D)),
}
CODES = ["AQ3x6", "RQ3x6_Ncqint8", "PQ4x6", "OPQ,PQ4x6", "PLSQ2x2x6", "PRQ2x2x6", "IVF1,RQ3x6_Ncqint4,Refine(SQ8)"]


@pytest.mark.parametrize("factory", CODES)
@pytest.mark.parametrize("name", ODD)
def test_few_or_equal_vectors_are_rebuilt_and_found(factory, name, tmp_path):
    vectors = ODD[name].astype(np.float32)
    index = build_index(vectors, factory)
    np.testing.assert_allclose(index.reconstruct(index.ids), vectors, atol=0.02)
    index.save(tmp_path / "index.mcq")
    distances, ids = Index.load(tmp_path / "index.mcq").search(vectors[:1], 1)
    np.testing.assert_allclose(vectors[ids[0, 0]], vectors[0], atol=1e-6)
    assert abs(distances[0, 0]) < 0.01 * max(1, np.square(vectors).sum(1).max())  # the norm has a byte


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("factory", ["AQ4x4fs", "PQ4x4fs", "IVF1,RQ4x4fs"])
@pytest.mark.parametrize("name", ODD)
def test_a_fast_scan_that_cannot_tell_vectors_apart_finds_nothing_or_right(factory, metric, name):
    vectors = ODD[name].astype(np.float32)
    distances, ids = build_index(vectors, factory, metric).search(vectors[:1], 1)
    assert not np.isnan(distances).any()
    assert (ids[0, 0] == -1) == np.isinf(distances[0, 0])
    if name in ("two", "few") and metric == "l2":
        assert ids[0, 0] == 0


@pytest.mark.parametrize("factor", [1e-15, 1e15])
@pytest.mark.parametrize("factory", ["AQ4x4fs", "RQ2x4_Ncqint8"])
def test_norms_that_faiss_cannot_learn_are_refused(x, factory, factor):
    with pytest.raises(InputError, match=r"squared norms from 1e-15 to 1e\+17.*multiply the vectors by a constant"):
        build_index(x * factor, factory).search(x[:1], 1)
    exact = build_index(x * factor, "RQ2x4_Nfloat")
    assert (exact.search(x[:5] * factor, 1)[1] >= 0).all()


def test_vectors_to_learn_from_are_checked_too(x):
    for learn, message in ((x[:0], "learn must have"), (np.where(x > 2, np.nan, x), "learn must be finite")):
        with pytest.raises(InputError, match=message):
            build_index(x, "RQ2x4", learn=learn)


def test_same_seed_same_codes(x):
    first, second, other = (build_index(x, "IVF4,RQ2x4", seed=seed) for seed in (3, 3, 4))
    assert first.codes == second.codes
    assert first.codes != other.codes


def test_learning_from_a_part_of_the_rows(x):
    index = build_index(x, "RQ2x4", training_rows=100)
    assert len(index) == len(x)
    assert index.codes != build_index(x, "RQ2x4").codes


def test_rows_may_come_in_slices_only(x):
    class Sliced:
        shape = x.shape

        def __getitem__(self, rows):
            assert isinstance(rows, slice)
            return x[rows]

    seen = []
    index = build_index(Sliced(), "IVF4,RQ2x4", progress=lambda done, total: seen.append((done, total)))
    assert index.codes == build_index(x, "IVF4,RQ2x4").codes
    assert seen == [(len(x), len(x))]
