"""What the original model predicts at every position of the calibration text, computed once and kept small.

The k most likely tokens keep their log-probabilities; all others share one bucket. The Kullback-Leibler divergence
over these k + 1 outcomes is a lower bound of the full one, and equal to it where the student spreads the rest as the
original does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from mcq.validate import in_range
from mcq_llm.halves import hidden_states, logits, position_slices
from mcq_llm.precision import autocast

LEAST = -30.0  # log of a mass that counts as none
SAMPLE = 4096  # values of each parameter that the fingerprint of a model looks at


@dataclass(frozen=True)
class Teacher:
    """Calibration sequences with the original model's predictions.

    Attributes
    ----------
    windows : tensor of shape (sequences, window), int64
    records : structured array of shape (sequences, window)
        In memory or in a file; per position ``token`` (k,) int32, ``logprob`` (k,) float16, and ``rest``, float32,
        the log of the mass of all other tokens.
    """

    windows: torch.Tensor
    records: NDArray[np.void]

    def targets(self, sequences: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predictions for all positions of some sequences, one sequence after another.

        Returns
        -------
        tokens : tensor of shape (positions, k), int64
        logprobs : tensor of shape (positions, k + 1), float32
            The last one is that of all other tokens together.
        """
        records = self.records[list(sequences)].reshape(-1)
        logprobs = np.concatenate([records["logprob"].astype(np.float32), records["rest"][:, None]], axis=1)
        # Rounding to float16 leaves the sum of the probabilities a little off 1.
        return torch.from_numpy(records["token"].astype(np.int64)), torch.from_numpy(logprobs).log_softmax(-1)


def ask(
    model: PreTrainedModel,
    windows: torch.Tensor,
    top_k: int = 128,
    precision: str = "auto",
    cache: Path | None = None,
    batch: int = 2,
) -> Teacher:
    """Note what a model predicts at every position.

    Parameters
    ----------
    model : PreTrainedModel
        The original one.
    windows : tensor of shape (sequences, window), int64
    top_k : int
        Tokens per position that keep their own probability; 6 bytes each.
    precision : {"auto", "float32", "bfloat16"}
    cache : Path, optional
        A folder for the predictions, which are then read from a file instead of held in memory. If it holds those of
        the same model on the same windows, the model need not run.
    batch : int
        Sequences that are run together.
    """
    vocabulary = model.config.get_text_config().vocab_size
    top_k = min(in_range(top_k, 1, None, "top_k"), vocabulary)
    layout = np.dtype([("token", "<i4", top_k), ("logprob", "<f2", top_k), ("rest", "<f4")])
    if cache is None:
        records = np.empty(windows.shape, layout)
        _fill(records, model, windows, precision, batch)
        return Teacher(windows, records)
    path = Path(cache) / f"teacher-{_fingerprint(model, windows, top_k, precision)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        file = np.lib.format.open_memmap(partial, mode="w+", dtype=layout, shape=tuple(windows.shape))
        _fill(file, model, windows, precision, batch)
        file.flush()
        partial.rename(path)
    return Teacher(windows, np.load(path, mmap_mode="r"))


def divergence(scores: torch.Tensor, tokens: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """Return the divergence of a student from `Teacher.targets`, over their k + 1 outcomes.

    Parameters
    ----------
    scores : tensor of shape (positions, vocabulary)
        Logits of the student.
    tokens : tensor of shape (positions, k), int64
    logprobs : tensor of shape (positions, k + 1), float32

    Returns
    -------
    tensor of shape (positions,), float32
    """
    scores = scores.float()
    top = scores.gather(1, tokens) - scores.logsumexp(1, keepdim=True)
    student = torch.cat([top, _log_rest(top)], dim=1)
    return (logprobs.exp() * (logprobs.clamp(min=LEAST) - student)).sum(1)


@torch.inference_mode()
def _fill(records: NDArray[np.void], model: PreTrainedModel, windows: torch.Tensor, precision: str, batch: int) -> None:
    k = records["token"].shape[-1]
    for start in tqdm(range(0, len(windows), batch), desc="asking the original", unit="batch", leave=False):
        ids = windows[start : start + batch].to(model.device)
        place = records[start : start + batch].reshape(-1)
        with autocast(model.device, precision):
            hidden = hidden_states(model, ids).flatten(0, 1)
            for part in position_slices(len(hidden), model.config.get_text_config().vocab_size):
                logprobs = logits(model, hidden[part]).float().log_softmax(1)
                top, tokens = logprobs.topk(k, dim=1)
                place["token"][part] = tokens.cpu().numpy()
                place["logprob"][part] = top.cpu().numpy()
                place["rest"][part] = _log_rest(top)[:, 0].cpu().numpy()


def _log_rest(top: torch.Tensor) -> torch.Tensor:
    """Return log(1 - sum(exp(top))), kept finite: shape (positions, 1)."""
    # Next to 1 the sum is all rounding error, and the gradient of the logarithm without bound.
    return torch.log(-torch.expm1(top.logsumexp(1, keepdim=True).clamp(max=-1e-6)))


def _fingerprint(model: PreTrainedModel, windows: torch.Tensor, top_k: int, precision: str) -> str:
    """Return 16 hexadecimal digits that identify a model, as far as samples of its parameters do, and its task."""
    digest = hashlib.sha256(f"{tuple(windows.shape)} {top_k} {precision}".encode())
    digest.update(windows.numpy().tobytes())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLE)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]
