"""Perplexity under one named protocol."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mcq_llm.text import first_windows, text_hash, tokenize, tokenizer_hash

PROTOCOL = "consecutive-windows-v1"


@dataclass(frozen=True)
class Evaluation:
    """A perplexity and all that is needed to compare it with another.

    Attributes
    ----------
    protocol : str
        "consecutive-windows-v1": the text is tokenized once as a whole with the tokenizer's defaults; the
        first `windows` consecutive windows of `window` tokens are run independently in float32; every
        position but the first of a window is scored; the perplexity is exp of the mean negative
        log-likelihood.
    scored : int
        Number of scored tokens.
    tokenizer, text : str
        16 hexadecimal digits of the SHA-256 of vocabulary and text.
    """

    perplexity: float
    protocol: str
    windows: int
    window: int
    scored: int
    tokenizer: str
    text: str

    def __str__(self) -> str:
        return "\n".join(f"{name:10}  {value}" for name, value in asdict(self).items())


def evaluate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, text: str, windows: int = 8, window: int = 1024
) -> Evaluation:
    """Measure the perplexity of a model on a text.

    Parameters
    ----------
    model : Module
        A causal language model; called with tokens of shape (1, window).
    tokenizer : PreTrainedTokenizerBase
    text : str
        Of at least ``windows * window`` tokens.
    windows, window : int
        See `Evaluation`.
    """
    ids = first_windows(tokenize(tokenizer, text), windows, window)
    return Evaluation(
        perplexity=perplexity(model, ids),
        protocol=PROTOCOL,
        windows=windows,
        window=window,
        scored=windows * (window - 1),
        tokenizer=tokenizer_hash(tokenizer),
        text=text_hash(text),
    )


@torch.inference_mode()
def perplexity(model: nn.Module, windows: torch.Tensor) -> float:
    """Return exp of the mean negative log-likelihood of all tokens but the first of each window.

    Parameters
    ----------
    model : Module
    windows : tensor of shape (windows, window), int64
    """
    total = 0.0
    for ids in tqdm(windows, desc="perplexity", unit="window", leave=False):
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        # In slices, because the softmax over a large vocabulary would double the memory of the logits.
        for scores, targets in zip(logits.split(256), ids[1:].split(256), strict=True):
            total += float(nn.functional.cross_entropy(scores.float(), targets, reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))
