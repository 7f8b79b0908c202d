"""The quantizers as scikit-learn transformers: codes are features, and `inverse_transform` decodes them."""

from __future__ import annotations

import math
from abc import abstractmethod
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.metrics import mean_squared_error
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

import mcq
from mcq.errors import InputError

RandomState = int | np.random.RandomState | None


class Coder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of the transformers; a subclass says which quantizer it fits.

    Attributes
    ----------
    quantizer_ : mcq.Quantizer
        What was learned; `save` it, or hand it to whatever takes quantizers.
    codebooks_ : array of shape (M, K, d) or, for products, (num_splits, M, K, ceil(d / num_splits)), float32
        The entries whose sums are decoded, in the units of the data.
    n_features_in_ : int
        d, the columns of the data.
    feature_names_in_ : array of str
        Names of the columns, if the data had any.
    """

    random_state: RandomState

    @abstractmethod
    def _quantizer(self) -> Any:
        """Return the quantizer to be fitted; it checks its options."""

    def fit(self, X: ArrayLike, y: None = None) -> Self:  # noqa: N803
        """Learn codebooks from the rows of `X` (n, d), real and finite; `y` is ignored.

        Raises
        ------
        ValueError
            If `X` is not such a matrix, or an option out of range (`mcq.ConfigError`).
        """
        x = validate_data(self, X, dtype=(np.float32, np.float64))
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        self.quantizer_ = self._quantizer().fit(x, seed=seed)
        self.codebooks_ = self.quantizer_.codebooks.astype(np.float32) * np.float32(self.quantizer_.gain)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.unsignedinteger[Any]]:  # noqa: N803
        """Return the codes of `X` (n, d), one column per codebook; rows do not influence each other.

        Returns
        -------
        array of shape (n, number of codes), uint8, or uint16 if a code has more than 8 bits
        """
        check_is_fitted(self)
        x = validate_data(self, X, dtype=(np.float32, np.float64), reset=False)
        codes = self.quantizer_.encode(x)
        return codes.unpack().reshape(len(codes), -1).astype(np.min_scalar_type(self.codebooks_.shape[-2] - 1))

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """Return the vectors (n, d) that the codes `X` (n, number of codes) stand for.

        Raises
        ------
        mcq.InputError
            If `X` is not a matrix of integers with one column per code, each below K.
        """
        check_is_fitted(self)
        codes = np.asarray(X)
        if codes.ndim != 2 or codes.shape[1] != self._n_features_out:
            raise InputError(f"codes must have shape (n, {self._n_features_out}), got {codes.shape}")
        codes_ngm = codes.reshape(len(codes), -1, self.codebooks_.shape[-3])
        bits = self.quantizer_.config.codebook_bits
        return self.quantizer_.decode(mcq.Codes.pack(codes_ngm, codebook_bits=bits, d=self.n_features_in_))

    def score(self, X: ArrayLike, y: None = None) -> float:  # noqa: N803
        """Return the negative mean squared error per entry of `X` (n, d) rebuilt from its codes; `y` is ignored."""
        return -float(mean_squared_error(X, self.inverse_transform(self.transform(X))))

    @property
    def _n_features_out(self) -> int:
        return math.prod(self.codebooks_.shape[:-2])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # whatever goes in, integers come out
        return tags


class AdditiveCoder(Coder):
    """Codes whose entries add up to the vector, found together: the lowest error for its size.

    Minimises the squared error, with codes by local search and codebooks by least squares in turns.

    Parameters
    ----------
    num_codebooks : int
        M, codes of a vector, 1 to 64.
    codebook_bits : int
        Bits of a code, 1 to 16; K = 2 ** codebook_bits entries in a codebook.
    rounds : int
        Alternations of codes and codebooks.
    random_state : int, RandomState or None
        An int is the seed of `mcq.AdditiveQuantizer.fit`: same seed, same result. None: another one each time.

    Raises
    ------
    mcq.ConfigError
        By `fit`, if an option is out of range.

    References
    ----------
    Babenko and Lempitsky, Additive Quantization, CVPR 2014.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    >>> coder = AdditiveCoder(num_codebooks=2, codebook_bits=4).fit(x)
    >>> codes = coder.transform(x)
    >>> codes.shape, coder.inverse_transform(codes).shape
    ((200, 2), (200, 8))
    >>> coder.score(x) > -0.4
    True
    """

    def __init__(
        self, num_codebooks: int = 8, codebook_bits: int = 8, rounds: int = 8, random_state: RandomState = 0
    ) -> None:
        self.num_codebooks = num_codebooks
        self.codebook_bits = codebook_bits
        self.rounds = rounds
        self.random_state = random_state

    def _quantizer(self) -> Any:
        return mcq.AdditiveQuantizer(self.num_codebooks, self.codebook_bits, group_size=None, rounds=self.rounds)


class ResidualCoder(Coder):
    """Codes of which each refines the sum of those before it, so that the first few are a code of their own.

    Parameters
    ----------
    num_codebooks, codebook_bits, rounds, random_state
        As in `AdditiveCoder`; `rounds` counts for each codebook.
    beam_width : int
        Partial codes that the search keeps, 1 to 256.

    Raises
    ------
    mcq.ConfigError
        By `fit`, if an option is out of range.

    References
    ----------
    Chen, Guan and Wang, Approximate nearest neighbor search by residual vector quantization, Sensors 2010.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    >>> ResidualCoder(num_codebooks=3, codebook_bits=4).fit_transform(x).shape
    (200, 3)
    """

    def __init__(
        self,
        num_codebooks: int = 8,
        codebook_bits: int = 8,
        rounds: int = 8,
        beam_width: int = 8,
        random_state: RandomState = 0,
    ) -> None:
        self.num_codebooks = num_codebooks
        self.codebook_bits = codebook_bits
        self.rounds = rounds
        self.beam_width = beam_width
        self.random_state = random_state

    def _quantizer(self) -> Any:
        return mcq.ResidualQuantizer(
            self.num_codebooks,
            self.codebook_bits,
            group_size=None,
            rounds=self.rounds,
            beam_width=self.beam_width,
        )


class ProductCoder(Coder):
    """Codes of slices of the vector: fast to find, and the usual choice for many codes.

    Parameters
    ----------
    num_splits : int
        Slices, each of ceil(d / num_splits) entries; zeros fill the last one.
    num_codebooks : int
        M, codes of a slice. 1 is plain product quantization.
    codebook_bits : int
        Bits of a code, 1 to 16.
    method : "additive" or "residual"
        How the codes of a slice relate, if there are several.
    rotation : "none", "random" or "learned"
        Orthogonal map before the cut into slices.
    rounds : int
        Alternations of codes and codebooks.
    random_state : int, RandomState or None
        As in `AdditiveCoder`.

    Raises
    ------
    mcq.ConfigError
        By `fit`, if an option is out of range.

    References
    ----------
    Jegou, Douze and Schmid, Product quantization for nearest neighbor search, PAMI 2011. Ge et al., Optimized product
    quantization, CVPR 2013.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    >>> ProductCoder(num_splits=4, codebook_bits=4).fit_transform(x).shape
    (200, 4)
    """

    def __init__(
        self,
        num_splits: int = 8,
        num_codebooks: int = 1,
        codebook_bits: int = 8,
        method: Literal["additive", "residual"] = "additive",
        rotation: Literal["none", "random", "learned"] = "none",
        rounds: int = 8,
        random_state: RandomState = 0,
    ) -> None:
        self.num_splits = num_splits
        self.num_codebooks = num_codebooks
        self.codebook_bits = codebook_bits
        self.method = method
        self.rotation = rotation
        self.rounds = rounds
        self.random_state = random_state

    def _quantizer(self) -> Any:
        return mcq.ProductQuantizer(
            num_splits=self.num_splits,
            num_codebooks=self.num_codebooks,
            codebook_bits=self.codebook_bits,
            method=self.method,
            rotation=self.rotation,
            rounds=self.rounds,
        )
