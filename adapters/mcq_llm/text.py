"""Text to token windows, for calibration and for evaluation, and the hashes that identify both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from mcq.errors import InputError


def python_documentation() -> str:
    """Return the language reference that CPython ships for `help()`: half a megabyte, always at hand."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(path: Path | None) -> str:
    """Return the text of a file, or Python's documentation if `path` is None."""
    if path is None:
        return python_documentation()
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as UTF-8 text: {error}") from None


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Return the tokens of `text`, taken as a whole, with the tokenizer's defaults: shape (n,), int64."""
    # A text longer than the model's context is what we want here: it is cut into windows.
    ids: torch.Tensor = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
    return ids[0].long()


def spread_windows(tokens: torch.Tensor, count: int, window: int) -> torch.Tensor:
    """Cut `count` windows, evenly spread over the whole text so that they cover as much of it as they can.

    Parameters
    ----------
    tokens : tensor of shape (n,), int64

    Returns
    -------
    tensor of shape (count, window), int64
    """
    return torch.stack([tokens[start : start + window] for start in _starts(len(tokens), count, window)])


def unseen_windows(tokens: torch.Tensor, count: int, window: int, sequences: int, length: int) -> torch.Tensor:
    """Cut sequences from between the windows that `spread_windows` cuts, evenly spread.

    Parameters
    ----------
    tokens, count, window
        As for `spread_windows`.
    sequences, length : int
        Number of sequences, and tokens of each; fewer sequences if the text has no more.

    Returns
    -------
    tensor of shape (sequences, length), int64

    Raises
    ------
    InputError
        If there is none.
    """
    starts = _starts(len(tokens), count, window)
    ends = [*starts[1:], len(tokens)]
    places = [
        place
        for start, end in zip(starts, ends, strict=True)
        for place in range(start + window, end - length + 1, length)
    ]
    if not places:
        raise InputError(
            f"sequences of {length} tokens must be left between the {count} calibration windows, but the text of "
            f"{len(tokens)} tokens is full; give a longer text, or fewer calibration tokens"
        )
    chosen = torch.linspace(0, len(places) - 1, min(sequences, len(places))).round().long().tolist()
    return torch.stack([tokens[places[i] : places[i] + length] for i in chosen])


def _starts(found: int, count: int, window: int) -> list[int]:
    """Return where the windows of `spread_windows` start."""
    require_tokens(found, count, window, "calibration")
    starts: list[int] = torch.linspace(0, found - window, count, dtype=torch.float64).long().tolist()
    return starts


def first_windows(tokens: torch.Tensor, count: int, window: int) -> torch.Tensor:
    """Cut the first `count` consecutive windows: shape (count, window), int64."""
    require_tokens(len(tokens), count, window, "evaluation")
    return tokens[: count * window].reshape(count, window)


def require_tokens(found: int, count: int, window: int, purpose: str) -> None:
    """Refuse a text that is too short for `count` windows."""
    if found < count * window:
        raise InputError(
            f"{purpose} needs {count} windows of {window} tokens = {count * window} tokens, "
            f"but the text has {found}; "
            f"give a longer text, or ask for fewer or shorter windows"
        )


def tokens_hash(tokens: torch.Tensor) -> str:
    """Return the SHA-256 of tokens, in hexadecimal."""
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def text_hash(text: str) -> str:
    """Return 16 hexadecimal digits that identify a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hexadecimal digits that identify a vocabulary, whatever file it was loaded from."""
    return text_hash(json.dumps(sorted(tokenizer.get_vocab().items())))
