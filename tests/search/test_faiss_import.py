"""What FAISS trained becomes a quantizer and codes of mcq, and ours survive the way there and back."""

import faiss
import numpy as np
import pytest

from mcq.errors import ConfigError, InputError
from mcq_search import from_faiss, to_faiss
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
        ("IVF4,RQ3x4", "inverted lists"),
        ("SQ8", "got IndexScalarQuantizer"),
        ("PCA8,RQ3x4", "PCAMatrix"),
        ("L2norm,RQ3x4", "NormalizationTransform"),
    ],
)
def test_what_mcq_cannot_hold_is_refused(wide, factory, message):
    with pytest.raises(InputError, match=message):
        from_faiss(trained(factory, wide))


def test_more_codebooks_than_mcq_allows_are_refused(wide):
    with pytest.raises(ConfigError, match="num_codebooks must be an integer from 1 to .*, got 99"):
        from_faiss(trained("RQ99x1", wide))


def test_an_untrained_index_is_refused():
    with pytest.raises(InputError, match="must be trained"):
        from_faiss(faiss.index_factory(16, "RQ3x4"))
