"""What FAISS trained becomes a quantizer and codes of mcq, and ours survive the way there and back."""

import faiss
import numpy as np
import pytest

from mcq.errors import ConfigError, InputError
from mcq_search import from_faiss, from_faiss_ivf, to_faiss
from tests.search.conftest import FAMILIES, make_vectors

KINDS = {
    "RQ3x5": "ResidualQuantizer",
    "RQ1x5": "ResidualQuantizer",
    "LSQ3x5_Nqint8": "AdditiveQuantizer",
    "PQ4x5": "ProductQuantizer",
    "RR16,PQ4x5": "ProductQuantizer",
    "PRQ2x2x5": "ProductQuantizer",
    "PLSQ2x2x5_Nfloat": "ProductQuantizer",
    "RQ5x4fs_Nrq2x4": "ResidualQuantizer",
    "PQ4x4fs": "ProductQuantizer",
    "RR16,RQ3x5,Refine(Flat)": "ResidualQuantizer",
    "IDMap,RR16,PRQ2x2x5": "ProductQuantizer",
}


@pytest.fixture(scope="module")
def wide():
    return np.ascontiguousarray(make_vectors(640, seed=3)[:, :16])


def trained(factory, x):
    index = faiss.index_factory(x.shape[1], factory)
    if isinstance(index, faiss.IndexLocalSearchQuantizer):
        index.lsq.train_iters = 4
    index.train(x)
    return index


@pytest.mark.parametrize("factory", KINDS)
def test_decoding_is_that_of_faiss(wide, factory):
    index = trained(factory, wide)
    rows = wide[:77]
    if factory.startswith("IDMap"):
        index.add_with_ids(rows, np.arange(77) * 3)
    else:
        index.add(rows)
    inner = index
    while isinstance(inner, (faiss.IndexRefine, faiss.IndexIDMap)):
        inner = faiss.downcast_index(inner.base_index if isinstance(inner, faiss.IndexRefine) else inner.index)
    quantizer, codes = from_faiss(index)
    assert type(quantizer).__name__ == KINDS[factory]
    # Codebooks are rounded to float16.
    np.testing.assert_allclose(quantizer.decode(codes), inner.reconstruct_n(0, 77), atol=2e-3 * np.abs(wide).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["flat", "fastscan"])
def test_there_and_back_is_exact(encoded, family, kind):
    quantizer, codes, rebuilt = encoded(family, 4, False)
    back, back_codes = from_faiss(to_faiss(quantizer, codes, kind=kind, ids=np.arange(len(codes))))
    assert back_codes == codes
    assert type(back) is type(quantizer)
    np.testing.assert_array_equal(back.decode(back_codes), rebuilt)


def test_an_imported_quantizer_encodes_and_is_saved(wide, tmp_path):
    quantizer, codes = from_faiss(trained("LSQ3x5", wide))
    assert len(codes) == 0
    quantizer.save(tmp_path / "q.mcq")
    again = type(quantizer).load(tmp_path / "q.mcq")
    error = ((again.decode(again.encode(wide)) - wide) ** 2).sum() / (wide**2).sum()
    assert error < 0.3


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("RQ2x4_1x5", r"equally many bits, got \[4, 4, 5\]"),
        ("IVF4,RQ3x4", "call from_faiss_ivf"),
        ("SQ8", "got IndexScalarQuantizer"),
        ("PCA8,RQ3x4", "PCAMatrix"),
        ("L2norm,RQ3x4", "NormalizationTransform"),
    ],
)
def test_what_mcq_cannot_hold_is_refused(wide, factory, message):
    with pytest.raises(InputError, match=message):
        from_faiss(trained(factory, wide))


IVF_KINDS = ["IVF4,RQ3x5", "IVF4,LSQ3x5_Nqint8", "IVF4,PQ4x5", "IVF4,PQ4x4fs", "IVF4,RQ5x4fs_Nrq2x4", "IVF4,PRQ2x2x5"]


@pytest.mark.parametrize("factory", [*IVF_KINDS, "RR16,IVF4,PQ4x5", "RR16,IVF4,RQ3x5,Refine(Flat)"])
def test_codes_in_inverted_lists_decode_as_in_faiss(wide, factory):
    index = trained(factory, wide)
    index.add(wide[:77])
    inner = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    faiss.extract_index_ivf(inner).make_direct_map()
    found = from_faiss_ivf(index)
    assert sorted(found.ids.tolist()) == list(range(77))
    rebuilt = found.quantizer.decode(found.codes)
    assert (found.coarse is None) == (factory in ("IVF4,PQ4x4fs", "IVF4,RQ5x4fs_Nrq2x4"))
    if found.coarse is not None:
        rebuilt += found.coarse[found.lists]
    wanted = np.stack([inner.reconstruct(int(number)) for number in found.ids])
    np.testing.assert_allclose(rebuilt, wanted, atol=2e-3 * np.abs(wide).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["ivf", "ivf_fastscan"])
def test_there_and_back_with_inverted_lists(encoded, coarse, lists, family, kind):
    quantizer, codes, _ = encoded(family, 4, True)
    ids = 1000 - np.arange(len(codes))
    there = to_faiss(quantizer, codes, kind=kind, coarse=coarse, lists=lists, ids=ids)
    found = from_faiss_ivf(there)
    order = np.argsort(lists, kind="stable")
    np.testing.assert_array_equal(found.ids, ids[order])
    np.testing.assert_array_equal(found.lists, lists[order])
    np.testing.assert_array_equal(found.codes.unpack(), codes.unpack()[order])
    np.testing.assert_allclose(found.coarse, coarse, rtol=1e-5, atol=1e-5)
    again = to_faiss(*found[:2], kind=kind, coarse=found.coarse, lists=found.lists, ids=found.ids)
    np.testing.assert_array_equal(again.search(coarse + 1, 9)[1], there.search(coarse + 1, 9)[1])


def test_ids_of_a_map_around_inverted_lists(wide):
    index = trained("IDMap,IVF4,RQ2x4", wide)
    index.add_with_ids(wide[:20], np.arange(20) * 7)
    assert sorted(from_faiss_ivf(index).ids.tolist()) == list(range(0, 140, 7))


def test_an_index_without_inverted_lists_is_refused(wide):
    with pytest.raises(InputError, match=r"must have inverted lists, got IndexResidualQuantizer; call from_faiss"):
        from_faiss_ivf(trained("RQ2x4", wide))
    assert len(from_faiss_ivf(trained("IVF4,PQ4x4", wide)).codes) == 0


def test_fast_scans_in_other_blocks_are_refused(wide):
    index = faiss.IndexPQFastScan(16, 4, 4, faiss.METRIC_L2, 64)
    index.train(wide)
    index.add(wide)
    with pytest.raises(InputError, match="blocks of 32 vectors, got bbs=64"):
        from_faiss(index)


def test_more_codebooks_than_mcq_allows_are_refused(wide):
    with pytest.raises(ConfigError, match="num_codebooks must be an integer from 1 to .*, got 99"):
        from_faiss(trained("RQ99x1", wide))


def test_an_untrained_index_is_refused():
    with pytest.raises(InputError, match="must be trained"):
        from_faiss(faiss.index_factory(16, "RQ3x4"))
