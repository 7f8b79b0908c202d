"""Perplexity under a named protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mcq.errors import InputError
from mcq_llm.protocols import DEFAULT, Cut, choose, cut, require_context

ROWS = 256  # positions whose softmax is taken at a time: that of a whole window would double the memory of its logits


@dataclass(frozen=True)
class Evaluation:
    """A perplexity and all that is needed to compare it with another; see `mcq_llm.protocols.Protocol`.

    Attributes
    ----------
    perplexity : float
        exp of the mean negative log-likelihood of the scored tokens, computed in the model's precision.
    protocol : str
    windows, window, stride : int
        Number of windows, tokens in each, and tokens from one to the next.
    positions, bos : str
        Which positions of a window are scored, and where BOS stands.
    tokens, scored : int
        Tokens of the whole text, and how many of them are scored.
    tokenizer, text : str
        16 hexadecimal digits of the SHA-256 of vocabulary and text.
    """

    perplexity: float
    protocol: str
    windows: int
    window: int
    stride: int
    positions: str
    bos: str
    tokens: int
    scored: int
    tokenizer: str
    text: str

    @classmethod
    def of(cls, windows: Cut, loss: float) -> Evaluation:
        """Take the mean negative log-likelihood of the scored tokens."""
        rule = windows.protocol
        return cls(
            perplexity=math.exp(loss),
            protocol=rule.name,
            windows=len(windows.ids),
            window=rule.window,
            stride=rule.stride,
            positions=rule.scored,
            bos=rule.bos,
            tokens=windows.tokens,
            scored=windows.scored,
            tokenizer=windows.tokenizer,
            text=windows.text,
        )

    def __str__(self) -> str:
        return "\n".join(f"{name:10}  {value}" for name, value in asdict(self).items())


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[str],
    windows: int | None = None,
    window: int | None = None,
    protocol: str = DEFAULT,
) -> Evaluation:
    """Measure the perplexity of a model on a text.

    Parameters
    ----------
    model : Module
        A causal language model; called with tokens of shape (1, window).
    tokenizer : PreTrainedTokenizerBase
    text : str, or sequence of str
        Several documents are joined as the protocol says.
    windows, window : int, optional
        Number and length of windows, instead of the protocol's own.
    protocol : str
        A name in `mcq_llm.protocols.PROTOCOLS`.

    Raises
    ------
    InputError
        If the text is too short, or the model computes NaN.
    ConfigError
        If there is no such protocol, or it does not suit model or tokenizer.
    """
    prepared = cut(choose(protocol, windows, window), tokenizer, text)
    require_context(model, prepared.protocol.window)
    return Evaluation.of(prepared, mean_loss(model, prepared.ids, prepared.first))


def perplexity(model: nn.Module, windows: torch.Tensor) -> float:
    """Return exp of the mean negative log-likelihood of all tokens but the first of each window.

    Parameters
    ----------
    model : Module
    windows : tensor of shape (windows, window), int64
    """
    return math.exp(mean_loss(model, windows, [1] * len(windows)))


@torch.inference_mode()
def mean_loss(model: nn.Module, windows: torch.Tensor, first: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of the tokens from position `first` of each window."""
    total = 0.0
    for ids, start in zip(tqdm(windows, desc="perplexity", unit="window", leave=False), first, strict=True):
        logits = scoring_logits(model, ids, start)
        for scores, targets in zip(logits.split(ROWS), ids[start:].to(logits.device).split(ROWS), strict=True):
            loss = nn.functional.cross_entropy(scores.float(), targets, reduction="sum")
            require_numbers(loss)
            total += float(loss)
    return total / sum(len(ids) - start for ids, start in zip(windows, first, strict=True))


def scoring_logits(model: nn.Module, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Run one window and return the logits that predict its tokens `first` and on: shape (tokens, vocabulary)."""
    device = next(model.parameters()).device
    logits: torch.Tensor = model(ids[None].to(device), use_cache=False).logits[0, first - 1 : -1]
    return logits


def require_numbers(values: torch.Tensor, model: str = "the model") -> None:
    """Refuse what a broken model computes."""
    if torch.isnan(values).any():
        raise InputError(
            f"{model} must compute numbers, but computes NaN on this text; its weights are damaged, or its values "
            f"are beyond the range of the precision it computes in"
        )
