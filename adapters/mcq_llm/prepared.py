"""What a run starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq.rate import Allocation
from mcq_llm.blocks import Blocks
from mcq_llm.config import Options
from mcq_llm.plan import Layer
from mcq_llm.world import ALONE, World


@dataclass(frozen=True)
class Prepared:
    """A model that passed every check and can be quantized.

    Attributes
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    blocks : Blocks
        Of `model`.
    plan : list of Layer
    windows : tensor of shape (sequences, window), int64
        Calibration tokens.
    unseen : tensor of shape (sequences, tokens), int64, or None
        Others of the same text, for shares in a divergence: on the calibration tokens errors are less than elsewhere.
    options : Options
        With the precisions that "auto" stands for on this machine.
    text : str
        `text_hash` of the calibration text.
    allocation : mcq.rate.Allocation or None
        How the settings were chosen, if that was asked for.
    spill : Path or None
        Folder for the activations, if they are not to stay in memory.
    world : World
        The processes that share the work; each has prepared the same.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    plan: list[Layer]
    windows: torch.Tensor
    options: Options
    text: str = ""
    unseen: torch.Tensor | None = None
    allocation: Allocation | None = None
    spill: Path | None = None
    world: World = ALONE
