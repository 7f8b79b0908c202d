"""Multi-codebook quantization of matrices under any metric.

Examples
--------
>>> import numpy as np
>>> import mcq
>>> x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
>>> q = mcq.AdditiveQuantizer(num_codebooks=2, codebook_bits=6, group_size=8, scale="row")
>>> codes = q.fit_encode(x)
>>> mcq.Identity().relative_error(x, q.decode(codes)) < 0.2
True
"""

from importlib.metadata import PackageNotFoundError, version

from mcq.additive import AdditiveQuantizer
from mcq.banded import BandedCodes, BandedQuantizer
from mcq.codes import Bits, Codes
from mcq.companded import CompandedQuantizer
from mcq.errors import ConfigError, FormatError, InputError, McqError, NotFittedError
from mcq.grids import GridQuantizer, gaussian_grid
from mcq.io import load
from mcq.metric import Diagonal, Gram, Identity, LowRank, Metric
from mcq.outliers import OutlierQuantizer
from mcq.product import ProductQuantizer
from mcq.pyramid import PyramidQuantizer
from mcq.quantizer import Quantizer
from mcq.rate import Allocation, Unit, allocate, residual_curve
from mcq.relaxed import RelaxedQuantizer
from mcq.residual import ResidualQuantizer
from mcq.rotated import RotatedQuantizer
from mcq.scalar import ScalarQuantizer
from mcq.scalar_codes import ScalarCodes
from mcq.score_aware import ScoreAware
from mcq.shell import ShellQuantizer
from mcq.transforms import Composition, Hadamard, Permutation, Scaling, Transform
from mcq.trellis import TrellisQuantizer

try:
    __version__ = version("multicodebook")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "AdditiveQuantizer",
    "Allocation",
    "BandedCodes",
    "BandedQuantizer",
    "Bits",
    "Codes",
    "CompandedQuantizer",
    "Composition",
    "ConfigError",
    "Diagonal",
    "FormatError",
    "Gram",
    "GridQuantizer",
    "Hadamard",
    "Identity",
    "InputError",
    "LowRank",
    "McqError",
    "Metric",
    "NotFittedError",
    "OutlierQuantizer",
    "Permutation",
    "ProductQuantizer",
    "PyramidQuantizer",
    "Quantizer",
    "RelaxedQuantizer",
    "ResidualQuantizer",
    "RotatedQuantizer",
    "ScalarCodes",
    "ScalarQuantizer",
    "Scaling",
    "ScoreAware",
    "ShellQuantizer",
    "Transform",
    "TrellisQuantizer",
    "Unit",
    "allocate",
    "gaussian_grid",
    "load",
    "residual_curve",
]
