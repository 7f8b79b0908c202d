"""Activations in codes: what layers receive is coded and decoded on the way, to measure what that costs.

A simulation with real codes. Every token is a row: it is coded when it comes, with a scale of its own, and the layer
computes with what the codes stand for. No kernel multiplies codes with codes, so nothing becomes faster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import mcq
from mcq.errors import ConfigError
from mcq.gain_shape import GainShapeQuantizer
from mcq.validate import one_of
from mcq_llm.blocks import find_blocks, fused_experts
from mcq_llm.summary import LINES, summarize

log = logging.getLogger("mcq")

KINDS: dict[str, type[mcq.PyramidQuantizer | mcq.ShellQuantizer]] = {
    "pyramid": mcq.PyramidQuantizer,
    "shell": mcq.ShellQuantizer,
}
#: Columns of the normal entries that gains are made for; widths of layers are of this order.
NORMAL_WIDTH = 1024


@dataclass(frozen=True)
class Rates:
    """Bits of weights and of activations, apart from each other.

    Attributes
    ----------
    codes : str
        Of the activations.
    layers : int
        How many layers receive them.
    payload, all_in : float
        Bits per entry of an activation: the codes alone, and with scales.
    error : float
        Mean over tokens and layers of |x - x^|^2 / |x|^2.
    weights_payload, weights_all_in : float or None
        Bits per weight of the quantized layers; None if the model was not quantized.
    """

    codes: str
    layers: int
    payload: float
    all_in: float
    error: float
    weights_payload: float | None = None
    weights_all_in: float | None = None

    def __str__(self) -> str:
        weights = "not quantized"
        if self.weights_payload is not None:
            weights = f"{self.weights_payload:.4g} bits per weight, {self.weights_all_in:.4g} all-in"
        activations = f"{self.payload:.4g} bits per entry, {self.all_in:.4g} with scales"
        return (
            f"weights     {weights}\n"
            f"activations {activations}; {self.codes}, inputs of {self.layers} layers, relative error {self.error:.4g}"
        )


@dataclass
class Tally:
    """What was coded so far.

    Attributes
    ----------
    codes : str
    layers : int
    rows, entries : int
        Tokens, counted once for each layer that they reach, and their entries.
    payload_bits, all_in_bits : float
    errors : float
        Sum over the rows of |x - x^|^2 / |x|^2.
    """

    codes: str
    layers: int
    rows: int = 0
    entries: int = 0
    payload_bits: float = 0.0
    all_in_bits: float = 0.0
    errors: float = 0.0

    def rates(self, source: str | Path | None = None) -> Rates:
        """Return means, and the bits of the weights if `source` is a folder that `mcq llm quantize` wrote."""
        entries = max(self.entries, 1)
        payload, all_in = self.payload_bits / entries, self.all_in_bits / entries
        rates = (self.codes, self.layers, payload, all_in, self.errors / max(self.rows, 1))
        if source is None or not (Path(source) / LINES).is_file():
            return Rates(*rates)
        weights = summarize(Path(source)).total
        return Rates(*rates, weights.bits_payload, weights.bits_all_in)

    def add(self, x: NDArray[np.float32], x_hat: NDArray[np.float32], bits: mcq.Bits) -> None:
        """Count rows, what they were decoded to, and the bits per entry that this took."""
        self.rows += len(x)
        self.entries += x.size
        self.payload_bits += bits.payload * x.size
        self.all_in_bits += bits.all_in * x.size
        square = np.square(x, dtype=np.float64).sum(1)
        error = np.square(x - x_hat, dtype=np.float64).sum(1)
        self.errors += float(np.divide(error, square, out=np.zeros_like(error), where=square > 0).sum())


def activation_quantizer(text: str, rotate: bool = True) -> mcq.Quantizer:
    """Return the quantizer that a text such as ``shell:16,76,3`` asks for, fitted to normal entries.

    Parameters
    ----------
    text : str
        ``pyramid:N,K,b`` or ``shell:N,R,b``: entries a group, pulses or squared norm, bits of a gain.
    rotate : bool
        Whether tokens are rotated by a randomised Hadamard transform first. Gains are those for normal entries, which
        activations are far from unless they are rotated.

    Raises
    ------
    ConfigError
        If the text does not have this form, or the numbers do not go together.
    """
    kind, _, numbers = text.partition(":")
    quantizer = KINDS[one_of(kind, KINDS, "codes of activations")]
    parts = numbers.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(
            f"codes of activations must be written as {kind}:16,23,3 (entries a group, "
            f"{quantizer.config_type.budget_name}, bits of a gain), got {text!r}"
        )
    size, budget, gain_bits = map(int, parts)
    rotated = mcq.RotatedQuantizer(quantizer(size, budget, gain_bits, scale="row")).fit_normal(NORMAL_WIDTH)
    return rotated if rotate else rotated.inner


@contextmanager
def coded_activations(model: nn.Module, quantizer: mcq.Quantizer) -> Iterator[Tally]:
    """Let every linear layer in the blocks of a model receive what `quantizer` makes of its inputs, for a while.

    Rows do not influence each other, so it does not matter which tokens run together.

    Parameters
    ----------
    model : Module
        With weights that are ordinary tensors, as `mcq_llm.load.load_dense` returns them.
    quantizer : Quantizer
        Fitted, and able to encode rows of any width, such as `activation_quantizer` returns.

    Yields
    ------
    Tally
        Counts on as the model runs.

    Raises
    ------
    InputError
        If the model has no blocks with linear layers.
    """
    blocks = find_blocks(model)
    with ExitStack() as exits:
        layers: list[nn.Module] = []
        for index in range(len(blocks.modules)):
            block = exits.enter_context(blocks.loaded(index))  # takes experts apart
            layers += blocks.layers(index).values()
            for name in fused_experts(block):
                log.warning("%s receives its inputs as they are: how it computes is not known", name)
        tally = Tally(_described(quantizer), len(layers))

        def through_codes(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = inputs[0]
            rows = x.detach().float().reshape(-1, x.shape[-1]).cpu().numpy()
            codes = quantizer.encode(rows)
            decoded = quantizer.decode(codes)
            tally.add(rows, decoded, codes.bits())
            return (torch.from_numpy(decoded).reshape(x.shape).to(x.device, x.dtype), *inputs[1:])

        for layer in layers:
            exits.callback(layer.register_forward_pre_hook(through_codes).remove)
        yield tally


def _described(quantizer: mcq.Quantizer) -> str:
    if isinstance(quantizer, mcq.RotatedQuantizer):
        return f"{_described(quantizer.inner)}, rotated"
    if isinstance(quantizer, GainShapeQuantizer):
        config = quantizer.config
        return f"{quantizer.kind} ({config.group_size}, {config.budget}, {config.gain_bits})"
    return repr(quantizer)
