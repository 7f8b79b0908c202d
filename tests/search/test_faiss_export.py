"""FAISS, given our codes, finds what a search through their reconstructions finds."""

import faiss
import numpy as np
import pytest

import mcq
from mcq.errors import ConfigError, InputError
from mcq_search import pack_blocks, to_faiss, unpack_blocks
from tests.search.conftest import FAMILIES

METRICS = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT}
K = 10
# What coarse norms may cost, see `loss`.
LOSS = {"qint8": 0.01, "cqint8": 0.01, "qint4": 0.2, "cqint4": 0.2, "lsq2x4": 0.05, "rq2x4": 0.05}


def find(index, queries):
    """Return the results of visiting all lists, before and after the index was written and read."""
    again = faiss.deserialize_index(faiss.serialize_index(index))
    for one in (index, again):
        inverted = faiss.try_extract_index_ivf(one)
        if inverted is not None:
            inverted.nprobe = inverted.nlist
    return index.search(queries, K), again.search(queries, K)


def loss(found, queries, rebuilt, metric):
    """Return how much worse than the best ten what was found is: 0 if equally good, 1 if as bad as any vector."""
    if metric == "l2":
        scores = ((queries[:, None] - rebuilt) ** 2).sum(axis=2)
    else:
        scores = -queries @ rebuilt.T
    best = np.sort(scores, axis=1)[:, :K].mean()
    return (np.take_along_axis(scores, found, axis=1).mean() - best) / (scores.mean() - best)


def lists_of(kind, coarse, lists):
    return {"coarse": coarse, "lists": lists} if kind.startswith("ivf") else {}


def additive_norms(kind):
    return ["float", "decompress", "qint8", "cqint8", "qint4", "cqint4", "lsq2x4", "rq2x4"] + (
        ["lut"] if kind == "residual" else []
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_search_is_one_through_the_reconstructions(x, queries, coarse, lists, encoded, family, kind, metric):
    quantizer, codes, rebuilt = encoded(family, 5, kind == "ivf")
    distances, _ = faiss.knn(queries, rebuilt, K, metric=METRICS[metric])
    norms = ["none"] if family in ("pq", "opq") or metric == "ip" else additive_norms(family)
    for norm in norms:
        index = to_faiss(quantizer, codes, kind=kind, metric=metric, norm=norm, **lists_of(kind, coarse, lists))
        (found_distances, found), (again_distances, again) = find(index, queries)
        np.testing.assert_array_equal(found, again)
        np.testing.assert_array_equal(found_distances, again_distances)
        assert loss(found, queries, rebuilt, metric) < LOSS.get(norm, 1e-5), norm
        if norm not in LOSS:
            np.testing.assert_allclose(found_distances, distances, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["fastscan", "ivf_fastscan"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_fast_scan_finds_nearly_the_same(queries, coarse, lists, encoded, family, kind, metric):
    quantizer, codes, rebuilt = encoded(family, 4, kind == "ivf_fastscan")
    norms = [None] if family in ("pq", "opq") or metric == "ip" else ["rq2x4", "lsq2x4"]
    for norm in norms:
        index = to_faiss(quantizer, codes, kind=kind, metric=metric, norm=norm, **lists_of(kind, coarse, lists))
        (distances, found), (again_distances, again) = find(index, queries)
        np.testing.assert_array_equal(found, again)
        np.testing.assert_array_equal(distances, again_distances)
        assert loss(found, queries, rebuilt, metric) < 0.05, norm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["flat", "fastscan"])
def test_faiss_rebuilds_what_we_rebuild(x, encoded, family, kind):
    quantizer, codes, rebuilt = encoded(family, 4, False)
    index = faiss.deserialize_index(faiss.serialize_index(to_faiss(quantizer, codes, kind=kind)))
    np.testing.assert_allclose(index.reconstruct_n(0, len(x)), rebuilt, atol=1e-4)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_ids_come_back(x, queries, coarse, lists, encoded, kind):
    quantizer, codes, _ = encoded("residual", 5, kind == "ivf")
    options = lists_of(kind, coarse, lists)
    ids = 10**12 + 3 * np.arange(len(x))
    (_, rows), _ = find(to_faiss(quantizer, codes, kind=kind, **options), queries)
    (_, found), (_, again) = find(to_faiss(quantizer, codes, kind=kind, ids=ids, **options), queries)
    np.testing.assert_array_equal(found, ids[rows])
    np.testing.assert_array_equal(again, ids[rows])


def test_faiss_adds_vectors_as_well_as_we_do(x, encoded):
    quantizer, codes, rebuilt = encoded("residual", 5, False)
    index = to_faiss(quantizer, norm="float")
    assert index.ntotal == 0
    index.add(x)
    # A beam of the same width, over the same codebooks.
    theirs = index.reconstruct_n(0, len(x))
    assert ((theirs - x) ** 2).sum() == pytest.approx(((rebuilt - x) ** 2).sum(), rel=0.01)


def test_an_empty_index_is_calibrated_by_given_norms(encoded):
    quantizer, _, rebuilt = encoded("additive", 5, False)
    index = to_faiss(quantizer, calibration=(rebuilt**2).sum(axis=1))
    assert index.ntotal == 0
    assert index.lsq.norm_max == pytest.approx((rebuilt**2).sum(axis=1).max(), rel=1e-4)
    with pytest.raises(InputError, match="give codes, or calibration"):
        to_faiss(quantizer)


def test_one_vector_and_no_vectors(x, encoded):
    quantizer, codes, _ = encoded("additive", 4, False)
    for kind in ("flat", "fastscan"):
        index = to_faiss(quantizer, codes[:1], kind=kind)
        assert index.search(x[:1], 1)[1].tolist() == [[0]]
    assert to_faiss(quantizer, codes[:0], norm="float").ntotal == 0


@pytest.mark.parametrize("n", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("columns", [2, 6])
def test_blocks_unpack_to_what_was_packed(n, columns):
    packed = np.random.default_rng(n).integers(256, size=(n, columns // 2), dtype=np.uint8)
    blocks = pack_blocks(packed, columns)
    assert blocks.shape == (-(-n // 32), 16 * columns)
    np.testing.assert_array_equal(unpack_blocks(blocks, n), packed)


def test_blocks_are_those_of_faiss():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((77, 12)).astype(np.float32)
    index = faiss.index_factory(12, "PQ6x4fs")
    index.train(rng.standard_normal((700, 12)).astype(np.float32))
    index.add(x)
    packed = index.pq.compute_codes(x)
    np.testing.assert_array_equal(pack_blocks(packed, 6).ravel(), faiss.vector_to_array(index.codes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "none"}, "ranks wrongly"),
        ({"norm": "lut"}, "FAISS aborts the process"),
        ({"norm": "int8"}, "norm must be one of"),
        ({"kind": "fastscan"}, "codebooks of 4 bits, got 5"),
        ({"kind": "tree"}, "kind must be one of"),
        ({"metric": "cosine"}, "metric must be one of"),
        ({"kind": "ivf"}, "coarse centroids are for"),
        ({"coarse": np.ones((3, 18))}, "coarse centroids are for"),
        ({"lists": np.zeros(700, int)}, "lists are for"),
        ({"kind": "ivf", "coarse": np.ones((3, 18))}, "needs lists"),
    ],
)
def test_what_faiss_cannot_search_is_refused(encoded, options, message):
    quantizer, codes, _ = encoded("additive", 5, False)
    with pytest.raises(ConfigError, match=message):
        to_faiss(quantizer, codes, **options)


@pytest.mark.parametrize("norm", ["rq2x4", "none", "qint8"])
def test_a_fast_scan_takes_only_the_norm_for_its_metric(encoded, norm):
    quantizer, codes, _ = encoded("additive", 4, False)
    allowed = {"rq2x4": "l2", "none": "ip"}
    for metric in METRICS:
        if allowed.get(norm) == metric:
            to_faiss(quantizer, codes, kind="fastscan", metric=metric, norm=norm)
        else:
            with pytest.raises(ConfigError, match="norm in a fast scan"):
                to_faiss(quantizer, codes, kind="fastscan", metric=metric, norm=norm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": np.arange(3)}, "ids must be 700 integers"),
        ({"ids": np.ones(700)}, "ids must be 700 integers"),
        ({"calibration": []}, "calibration must be finite"),
        ({"kind": "ivf", "coarse": np.ones((3, 17)), "lists": np.zeros(700, int)}, "18 columns"),
        ({"kind": "ivf", "coarse": np.ones((3, 18)), "lists": np.full(700, 3)}, "rows of coarse, 0 to 2, got 3 to 3"),
    ],
)
def test_wrong_arrays_are_named(encoded, options, message):
    quantizer, codes, _ = encoded("additive", 5, False)
    with pytest.raises(InputError, match=message):
        to_faiss(quantizer, codes, **options)


def test_what_an_index_has_no_place_for_is_refused(x, encoded):
    scaled = mcq.AdditiveQuantizer(2, 4, group_size=None, scale="row", rounds=1)
    with pytest.raises(InputError, match="no place for scales"):
        to_faiss(scaled, scaled.fit_encode(x))
    grouped = mcq.AdditiveQuantizer(2, 4, group_size=6, rounds=1)
    with pytest.raises(InputError, match="one group per row"):
        to_faiss(grouped, grouped.fit_encode(x))
    quantizer, _, _ = encoded("additive", 5, False)
    with pytest.raises(InputError, match="must come from this quantizer"):
        to_faiss(quantizer, encoded("residual", 4, False)[1])
    with pytest.raises(mcq.NotFittedError):
        to_faiss(mcq.AdditiveQuantizer(group_size=None))


def test_codebooks_too_large_for_tables_of_products_say_so(x):
    quantizer = mcq.ResidualQuantizer(3, 13, group_size=None)
    quantizer.arrays = {"codebooks": np.zeros((3, 1 << 13, 4), np.float16), "gain": np.ones(1, np.float32)}
    with pytest.raises(ConfigError, match="take at most"):
        to_faiss(quantizer, norm="lut")
    index = to_faiss(quantizer, norm="float")
    assert index.rq.train_type & faiss.ResidualQuantizer.Skip_codebook_tables
