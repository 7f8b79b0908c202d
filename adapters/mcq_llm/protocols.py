"""Named rules that say which tokens of a text are scored, and with what in front of them.

Perplexities under different rules differ by more than most methods of quantization do, so a number means
nothing without its rule. A name is never given another meaning: a changed rule gets the next version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from mcq.errors import ConfigError, InputError
from mcq.validate import in_range, one_of
from mcq_llm.text import text_hash, tokenize, tokenizer_hash

Scored = Literal["all but the first", "second half", "new ones"]
Bos = Literal["as tokenized", "before each window", "in place of each first token"]


@dataclass(frozen=True)
class Protocol:
    """How a text becomes scored tokens. Windows are run independently; a rest shorter than a window is dropped.

    Attributes
    ----------
    name : str
    meaning : str
        For people: what it is, and who reports numbers under it.
    window : int
        Tokens that the model sees at once, BOS included.
    windows : int or None
        How many windows from the start of the text; None for all that it fills.
    scored : {"all but the first", "second half", "new ones"}
        Positions of a window whose token is scored: 1 and on; behind window // 2; or those that no earlier
        window has seen, where windows overlap by half.
    bos : {"as tokenized", "before each window", "in place of each first token"}
        Where the token for the beginning of a sequence stands. The first is the tokenizer's default, which puts
        one before the text or none. The last applies to tokenizers whose default puts one, and else does nothing.
    separator : str
        Joins the documents of a text that comes in several, before it is tokenized as a whole.
    """

    name: str
    meaning: str
    window: int
    windows: int | None = None
    scored: Scored = "all but the first"
    bos: Bos = "as tokenized"
    separator: str = "\n\n"

    @property
    def stride(self) -> int:
        """Tokens of text from the start of a window to that of the next."""
        if self.scored == "new ones":
            return self.window // 2
        return self.window - (self.bos == "before each window")

    def join(self, text: str | Sequence[str]) -> str:
        """Return one text, whether it comes as such or as several documents."""
        return text if isinstance(text, str) else self.separator.join(text)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("consecutive-windows-v1", "a short check: the first 8 windows of 1024", window=1024, windows=8),
        Protocol("full-text-v1", "the whole text in windows of 2048, as GPTQ, AQLM, QuIP# and QTIP", window=2048),
        Protocol(
            "full-text-bos-v1",
            "the same with BOS before each window, for models that fail without",
            window=2048,
            bos="before each window",
        ),
        Protocol(
            "second-half-v1",
            "windows of 512, the second half of each scored, as llama-perplexity",
            window=512,
            scored="second half",
            bos="in place of each first token",
        ),
        Protocol(
            "strided-v1",
            "every token with at least half a window before it, as in the guide of transformers",
            window=1024,
            scored="new ones",
        ),
    )
}
DEFAULT = "consecutive-windows-v1"


def choose(name: str = DEFAULT, windows: int | None = None, window: int | None = None) -> Protocol:
    """Return the protocol `name`, with another number or length of windows where given."""
    protocol = PROTOCOLS[one_of(name, PROTOCOLS, "protocol")]
    return dataclasses.replace(
        protocol,
        windows=protocol.windows if windows is None else in_range(windows, 1, None, "windows"),
        window=protocol.window if window is None else in_range(window, 4, None, "window"),
    )


@dataclass(frozen=True)
class Cut:
    """A text as a protocol cuts it for a tokenizer.

    Attributes
    ----------
    protocol : Protocol
    ids : tensor of shape (windows, window), int64
    first : tuple of int
        For each window the first position whose token is scored; the rest of the window is scored, too.
    tokens : int
        Of the whole text.
    tokenizer, text : str
        16 hexadecimal digits of the SHA-256 of vocabulary and joined text.
    """

    protocol: Protocol
    ids: torch.Tensor
    first: tuple[int, ...]
    tokens: int
    tokenizer: str
    text: str

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return sum(self.ids.shape[1] - first for first in self.first)


def cut(protocol: Protocol, tokenizer: PreTrainedTokenizerBase, text: str | Sequence[str]) -> Cut:
    """Cut a text, or several documents, into windows.

    Raises
    ------
    InputError
        If the text is too short, with both numbers of tokens.
    ConfigError
        If the protocol needs a token that the tokenizer does not have.
    """
    joined = protocol.join(text)
    tokens = tokenize(tokenizer, joined)
    prefix = _prefix(protocol, tokenizer)
    length = protocol.window - len(prefix)
    starts = range(0, len(tokens) - length + 1, protocol.stride)[: protocol.windows]
    if len(starts) < (protocol.windows or 1):
        needed = length + ((protocol.windows or 1) - 1) * protocol.stride
        raise InputError(
            f"evaluation needs {protocol.windows or 1} windows of {protocol.window} tokens = {needed} tokens, "
            f"but the text has {len(tokens)}; give a longer text, or ask for fewer or shorter windows"
        )
    ids = torch.stack([torch.cat([prefix, tokens[start : start + length]]) for start in starts])
    if protocol.bos == "in place of each first token" and _puts_bos(tokenizer):
        ids[:, 0] = tokenizer.bos_token_id
    first = tuple(_first_scored(protocol, index) for index in range(len(starts)))
    return Cut(protocol, ids, first, len(tokens), tokenizer_hash(tokenizer), text_hash(joined))


def require_context(model: nn.Module, window: int) -> None:
    """Refuse windows that are longer than the context for which the model was made."""
    config: Any = model.config
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and window > context:
        raise ConfigError(
            f"a window must fit the model's context of {context} tokens, got {window}; ask for shorter windows"
        )


def _first_scored(protocol: Protocol, index: int) -> int:
    if protocol.scored == "second half":
        return protocol.window // 2 + 1
    if protocol.scored == "new ones" and index > 0:
        return protocol.window - protocol.stride
    return 1


def _prefix(protocol: Protocol, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    if protocol.bos != "before each window":
        return torch.empty(0, dtype=torch.int64)
    if tokenizer.bos_token_id is None:
        raise ConfigError(
            f"the protocol {protocol.name} puts BOS before each window, but the tokenizer has no such token; "
            f"choose another protocol, {DEFAULT} for example"
        )
    return torch.tensor([tokenizer.bos_token_id])


def _puts_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and int(tokenize(tokenizer, "a")[0]) == tokenizer.bos_token_id
