"""What an encoded matrix costs, how far it is from the original, and how well its codebooks are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.codes import Bits, Codes
from mcq.metric import Metric
from mcq.quantizer import Quantizer

#: Codes of more bits are numbers of lattice points.
MAX_CODEBOOK_BITS = 16


@dataclass(frozen=True)
class Usage:
    """How the codes spread over the entries of each codebook; K = 2**B entries each.

    Attributes
    ----------
    entropy : tuple of M floats
        Entropy of the codes of each codebook, in bits per code; B if all entries are equally frequent.
    used : tuple of M floats
        Fraction of the entries of each codebook that occur at all.
    """

    entropy: tuple[float, ...]
    used: tuple[float, ...]

    def __str__(self) -> str:
        rows = [f"{m:<10}{e:>14.2f}{u:>10.1%}" for m, (e, u) in enumerate(zip(self.entropy, self.used, strict=True))]
        return "\n".join(["codebook  bits per code      used", *rows])


@dataclass(frozen=True)
class Summary:
    """Quality and cost of an encoded matrix; printing it gives a table.

    Attributes
    ----------
    distortion : float
        Sum over rows of (x - x_hat)^T H (x - x_hat).
    relative_error : float
        The distortion divided by that of rebuilding every row as zero.
    bits : Bits
        Payload and all-in bits per entry.
    usage : Usage or None
        Spread of the codes over the codebooks, see `usage`.
    """

    distortion: float
    relative_error: float
    bits: Bits
    usage: Usage | None

    def __str__(self) -> str:
        lines = [
            f"distortion      {self.distortion:.6g}",
            f"relative error  {self.relative_error:.6f}",
            f"payload         {self.bits.payload:.3f} bits per entry",
            f"all-in          {self.bits.all_in:.3f} bits per entry",
        ]
        return "\n".join(lines if self.usage is None else [*lines, "", str(self.usage)])


def usage(codes: Any) -> Usage | None:
    """Count how often the entries of each codebook occur, over all rows and groups.

    None where codes are not of codebooks: those of more than 16 bits, and scalar ones.

    Examples
    --------
    >>> codes = Codes.pack(np.array([[[0, 1]], [[0, 3]]]), codebook_bits=2, d=8)
    >>> usage(codes)
    Usage(entropy=(0.0, 1.0), used=(0.25, 0.5))
    """
    if not isinstance(codes, Codes) or codes.codebook_bits > MAX_CODEBOOK_BITS:
        return None
    codes_mx = codes.unpack().reshape(-1, codes.num_codebooks).T
    counts = [np.bincount(column, minlength=1 << codes.codebook_bits) for column in codes_mx]
    return Usage(tuple(map(_entropy, counts)), tuple(float(np.mean(count > 0)) for count in counts))


def summary(quantizer: Quantizer, codes: Any, x: ArrayLike, metric: Metric) -> Summary:
    """Compare `x` with what `quantizer` rebuilds from `codes`.

    Parameters
    ----------
    quantizer : a fitted quantizer
    codes : Codes
        What it encoded `x` to.
    x : array-like of shape (n, d)
    metric : Identity, Diagonal, Gram or LowRank

    Examples
    --------
    >>> import mcq
    >>> x = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
    >>> quantizer = mcq.AdditiveQuantizer(num_codebooks=2, codebook_bits=3, group_size=4)
    >>> result = summary(quantizer, quantizer.fit_encode(x), x, mcq.Identity())
    >>> result.bits.payload
    1.5
    """
    x_hat = quantizer.decode(codes)
    return Summary(
        distortion=float(metric.distortion(x, x_hat)),
        relative_error=float(metric.relative_error(x, x_hat)),
        bits=quantizer.bits(codes),
        usage=usage(codes),
    )


def _entropy(counts: NDArray[np.integer[Any]]) -> float:
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0 turns -0.0 into 0.0
