"""How far a quantized model is from its original, token by token on the same windows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mcq.errors import InputError
from mcq_llm.evaluate import Evaluation, require_numbers, scoring_logits
from mcq_llm.protocols import DEFAULT, Cut, choose, cut, require_context
from mcq_llm.text import tokenize, tokenizer_hash

SLICE = 1 << 24  # logits that become probabilities at a time: 128 MB in float64, whatever the vocabulary
KL, AGREES, LOSS, ORIGINAL_LOSS = range(4)  # columns of what is kept of each scored token


@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergence KL(original || other) of next-token distributions, in nats.

    Attributes
    ----------
    mean, median, p90, p99, maximum : float
        Over all scored tokens.
    error : float or None
        Standard error of the mean, see `mean_and_error`.
    top1 : float
        Fraction of the scored positions where both models rank the same token first.
    """

    mean: float
    error: float | None
    median: float
    p90: float
    p99: float
    maximum: float
    top1: float

    @classmethod
    def of(cls, tokens: torch.Tensor, windows: Cut) -> Divergence:
        """Summarise what `compare_tokens` found."""
        median, p90, p99, maximum = map(float, np.quantile(tokens[:, KL].numpy(), [0.5, 0.9, 0.99, 1.0]))
        mean, error = mean_and_error(tokens[:, KL], windows)
        return cls(mean, error, median, p90, p99, maximum, float(tokens[:, AGREES].mean()))


@dataclass(frozen=True)
class Comparison:
    """A model beside its original.

    Attributes
    ----------
    model, original : Evaluation
        Perplexities of the two.
    log_ratio : float
        ln(perplexity of the model / perplexity of the original).
    log_ratio_error : float or None
        Its standard error, paired: of the differences on the same tokens, see `mean_and_error`.
    divergence : Divergence
    noise : Divergence or None
        The noise floor: of the original computed in bfloat16 against itself in float32. Whoever runs a model in
        bfloat16 accepts as much. It is not the resolution of the measurement, which is far below, because what
        is measured is computed in float32.
    """

    model: Evaluation
    original: Evaluation
    log_ratio: float
    log_ratio_error: float | None
    divergence: Divergence
    noise: Divergence | None

    def __str__(self) -> str:
        rows = {"KL to the original": self.divergence}
        if self.noise is not None:
            rows["noise floor: original in bfloat16"] = self.noise
        width = max(map(len, rows))
        names = ("mean", "error", "median", "p90", "p99", "maximum", "top1")
        lines = [" " * width + "".join(f"{name:>10}" for name in names)]
        for title, row in rows.items():
            lines.append(f"{title:{width}}" + "".join(f"{_number(asdict(row)[name]):>10}" for name in names))
        ratio = f"{self.log_ratio:.5f} +- {_number(self.log_ratio_error)} (standard error over windows)"
        return "\n".join(
            [str(self.model), f"original    {self.original.perplexity}", f"ln ratio    {ratio}", "", *lines]
        )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def compare(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    original: nn.Module,
    original_tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[str],
    windows: int | None = None,
    window: int | None = None,
    protocol: str = DEFAULT,
    noise_floor: bool = True,
) -> Comparison:
    """Compare a model with its original on a text.

    Holds the logits of one window per model, and the probabilities of a slice of a window.

    Parameters
    ----------
    model, original : Module
        Causal language models over the same vocabulary.
    tokenizer, original_tokenizer : PreTrainedTokenizerBase
        Must be equal.
    text, windows, window, protocol
        As for `mcq_llm.evaluate`.
    noise_floor : bool
        Whether to run the original in bfloat16, too; needs another half of its memory.

    Raises
    ------
    InputError
        If the tokenizers or the vocabularies of the models differ, the text is too short, or a model computes NaN.
    """
    text = choose(protocol).join(text)
    _require_same_tokens(tokenizer, original_tokenizer, text)
    prepared = cut(choose(protocol, windows, window), tokenizer, text)
    for each in (model, original):
        require_context(each, prepared.protocol.window)
    others = {"the model": model}
    if noise_floor:
        others["the original in bfloat16"] = in_bfloat16(original)
    tokens, *noise = compare_tokens(original, others, prepared)
    log_ratio, error = mean_and_error(tokens[:, LOSS] - tokens[:, ORIGINAL_LOSS], prepared)
    return Comparison(
        model=Evaluation.of(prepared, float(tokens[:, LOSS].mean())),
        original=Evaluation.of(prepared, float(tokens[:, ORIGINAL_LOSS].mean())),
        log_ratio=log_ratio,
        log_ratio_error=error,
        divergence=Divergence.of(tokens, prepared),
        noise=Divergence.of(noise[0], prepared) if noise else None,
    )


@torch.inference_mode()
def compare_tokens(original: nn.Module, others: dict[str, nn.Module], windows: Cut) -> list[torch.Tensor]:
    """Run all models on each window; return for each of `others` the columns `KL` and on, shape (scored, 4)."""
    found: list[list[torch.Tensor]] = [[] for _ in others]
    for ids, first in zip(tqdm(windows.ids, desc="divergence", unit="window", leave=False), windows.first, strict=True):
        reference = scoring_logits(original, ids, first)
        for rows, (name, other) in zip(found, others.items(), strict=True):
            logits = scoring_logits(other, ids, first)
            if logits.shape != reference.shape:
                raise InputError(
                    f"both models must have the same vocabulary, but {name} scores {logits.shape[1]} tokens and the "
                    f"original {reference.shape[1]}; give the very model that was quantized as the original"
                )
            size = max(1, SLICE // logits.shape[1])
            for p, q, targets in zip(reference.split(size), logits.split(size), ids[first:].split(size), strict=True):
                rows.append(_compare_slice(name, p, q, targets))
    return [torch.cat(rows) for rows in found]


def _compare_slice(name: str, reference: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits, targets = logits.to(reference.device), targets.to(reference.device)
    p = reference.double().log_softmax(-1)
    q = logits.double().log_softmax(-1)
    require_numbers(p, "the original")
    require_numbers(q, name)
    # A token that the original excludes (logit -inf, as padding of a vocabulary may have) adds nothing.
    kl = torch.where(p > -math.inf, p.exp() * (p - q), 0.0).sum(-1)
    agrees = (reference.argmax(-1) == logits.argmax(-1)).double()
    losses = (-scores.gather(1, targets[:, None])[:, 0] for scores in (q, p))
    return torch.stack([kl, agrees, *losses], dim=1).cpu()


def mean_and_error(values: torch.Tensor, windows: Cut) -> tuple[float, float | None]:
    """Return the mean over scored tokens, and its standard error.

    Tokens of one window depend on one another, so windows count as the independent samples: with r_w the sum over
    window w of value - mean, W windows and n tokens, the error is sqrt(W / (W - 1) sum r_w^2) / n. One window
    tells nothing about it: None.
    """
    mean = values.mean()
    sizes = [windows.ids.shape[1] - first for first in windows.first]
    if len(sizes) < 2:
        return float(mean), None
    sums = torch.stack([part.sum() for part in (values - mean).split(sizes)])
    return float(mean), float((sums.square().sum() * len(sizes) / (len(sizes) - 1)).sqrt() / len(values))


def in_bfloat16(model: nn.Module) -> nn.Module:
    """Return a copy that computes in bfloat16. Buffers stay as they are: rotary frequencies must, for one."""
    converted = {id(p): nn.Parameter(p.detach().bfloat16(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, converted)


def _require_same_tokens(tokenizer: PreTrainedTokenizerBase, original: PreTrainedTokenizerBase, text: str) -> None:
    ours, theirs = tokenizer_hash(tokenizer), tokenizer_hash(original)
    if ours != theirs:
        raise InputError(
            f"model and original must have the same tokenizer, but the vocabulary of the model is {ours} and that of "
            f"the original {theirs}; give the very model that was quantized as the original"
        )
    a, b = tokenize(tokenizer, text), tokenize(original, text)
    if not torch.equal(a, b):
        raise InputError(
            f"model and original must cut a text into the same tokens, but with one vocabulary ({ours}) they make "
            f"{len(a)} and {len(b)} tokens of it, different ones; give both the tokenizer files of the original"
        )
