"""Vector search: indexes of multi-codebook codes that FAISS searches, and conversions to and from FAISS."""

from mcq_search.description import Description
from mcq_search.factory import build_index
from mcq_search.faiss_export import to_faiss
from mcq_search.faiss_import import from_faiss, from_faiss_ivf
from mcq_search.fastscan import pack_blocks, unpack_blocks
from mcq_search.index import Index
from mcq_search.readers import open_vectors

__all__ = [
    "Description",
    "Index",
    "build_index",
    "from_faiss",
    "from_faiss_ivf",
    "open_vectors",
    "pack_blocks",
    "to_faiss",
    "unpack_blocks",
]
