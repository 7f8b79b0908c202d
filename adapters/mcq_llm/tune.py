"""Block tuning: what is left to choose once the codes of a block are fixed is fitted to the block's output.

Codes are found layer by layer, each for its own output. Codebooks, scales, norms and biases are then tuned together,
by gradients, so that the block as a whole reproduces what it should return on the calibration inputs. The same before
any code is chosen lets a block make up for the errors of the blocks before it, when its weights can still follow.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mcq.errors import InputError
from mcq.validate import in_range, one_of
from mcq_llm.coded_linear import CodedLinear, ScaledLinear
from mcq_llm.parameters import State, adam, overwrite, rounded
from mcq_llm.precision import PRECISIONS, autocast

log = logging.getLogger("mcq")

#: Fraction of all steps over which the learning rate rises.
WARM_UP = 0.1

Forward = Callable[[int], torch.Tensor]
Average = Callable[[int, Sequence[torch.Tensor]], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class TuneOptions:
    """How a block is tuned.

    Attributes
    ----------
    epochs : int
        Passes over the calibration batches with the codes fixed; 0 leaves the block as it is.
    dense_epochs : int
        Passes before the layers are quantized, when their weights are still free. `tune_block` does not read it.
    lookahead : int
        How many of the blocks behind a block, as they are in the original, its error is seen through. `tune_block` does
        not read it.
    learning_rate : float
        Largest step of Adam as a fraction of a tensor's root mean square; rises to it from zero over the first tenth
        of all steps, and falls to zero along a cosine.
    held_out : float
        Fraction of the batches, at least one, that is not trained on but chooses the best epoch.
    patience : int
        Epochs without a better held-out loss before tuning stops.
    precision : {"auto", "float32", "bfloat16"}
        Of the matrix products; parameters and their updates are float32. "auto" takes bfloat16 where the device
        computes in it natively.
    """

    epochs: int = 3
    dense_epochs: int = 4
    lookahead: int = 0
    learning_rate: float = 0.01
    held_out: float = 0.125
    patience: int = 3
    precision: str = "auto"

    def __post_init__(self) -> None:
        in_range(self.epochs, 0, None, "epochs")
        in_range(self.dense_epochs, 0, None, "dense_epochs")
        in_range(self.lookahead, 0, None, "lookahead")
        in_range(self.learning_rate, 0.0, 1.0, "learning_rate")
        in_range(self.held_out, 0.0, 0.5, "held_out")
        in_range(self.patience, 1, None, "patience")
        one_of(self.precision, PRECISIONS, "precision")


@dataclass(frozen=True)
class TuneReport:
    """What tuning did; losses are held-out, of parameters rounded as they are stored.

    Attributes
    ----------
    loss_before, loss_after : float
        Mean over the tokens of the squared error relative to the squared target.
    epochs : int
        That were run.
    best_epoch : int
        Whose parameters were kept; 0 if those from before.
    seconds : float
    """

    loss_before: float
    loss_after: float
    epochs: int
    best_epoch: int
    seconds: float


def tune_block(
    block: nn.Module,
    forward: Forward,
    targets: Sequence[torch.Tensor],
    options: TuneOptions,
    seed: int = 0,
    average: Average = lambda i, tensors: tensors,
) -> TuneReport:
    """Tune all floating-point parameters of a block, in place, towards given outputs.

    Parameters
    ----------
    block : Module
        In float32. With a `CodedLinear` or `ScaledLinear` in place of each quantized layer, the codes are fixed; in a
        layer that is not quantized yet, the weight is tuned like all else.
    forward : callable
        Returns the hidden states, of shape (..., width), that `block` computes for calibration batch i, or those after
        further blocks, through which the error is then seen. Called under autocast; must not run in inference mode.
    targets : sequence of tensor
        What ``forward(i)`` should return.
    options : TuneOptions
    seed : int
        Decides which batches are held out and the order of the others.
    average : callable
        Where several processes have parts of each batch: returns what ``average(i, tensors)`` is handed for its part
        of batch i, loss and gradients, averaged over the whole batch, the same in all processes.

    Returns
    -------
    TuneReport

    Notes
    -----
    Afterwards every parameter has the value that it will have when it is loaded again. The held-out loss never rises;
    if it, or a training loss, becomes NaN or infinite, tuning stops with a warning and the best parameters are kept.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    training, held_out = _split(len(targets), options.held_out, generator)
    run = _Run(block, forward, targets, options, average, steps=max(1, options.epochs * len(training)))
    loss_before = best_loss = run.loss(held_out)
    best, best_epoch, epoch = run.rounded(), 0, 0
    healthy = math.isfinite(loss_before)
    while healthy and epoch < options.epochs and epoch - best_epoch < options.patience:
        epoch += 1
        healthy = run.train([training[i] for i in torch.randperm(len(training), generator=generator)])
        loss = run.loss(held_out)
        healthy = healthy and math.isfinite(loss)
        if healthy and loss < best_loss:
            best, best_loss, best_epoch = run.rounded(), loss, epoch
    if not healthy:
        log.warning("tuning stopped in epoch %d, as the loss was not finite; epoch %d was kept", epoch, best_epoch)
    run.load(best)
    return TuneReport(loss_before, best_loss, epoch, best_epoch, time.perf_counter() - start)


class _Run:
    """The parameters of a block on their way to a lower loss."""

    def __init__(
        self,
        block: nn.Module,
        forward: Forward,
        targets: Sequence[torch.Tensor],
        options: TuneOptions,
        average: Average,
        steps: int,
    ) -> None:
        self.forward, self.targets, self.average = forward, targets, average
        self.parameters = [parameter for parameter in block.parameters() if parameter.is_floating_point()]
        coded = [layer for layer in block.modules() if isinstance(layer, (CodedLinear, ScaledLinear))]
        self.always_half = {id(tensor) for layer in coded for tensor in layer.halves}
        self.precision = options.precision
        self.optimiser = adam(self.parameters, options.learning_rate)
        # Adam's first steps have the full size in every coordinate, whatever the gradient: they must be small.
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: min(1.0, (step + 1) / (WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2,
        )

    def train(self, batches: Sequence[int]) -> bool:
        """Take a step for each batch, and return whether all losses were finite; stop at the first that is not."""
        for i in batches:
            with torch.enable_grad():
                loss = self._error(i)
                # Not backward(): it would also fill gradients of blocks that `forward` runs after this one.
                gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            loss, *averaged = self.average(i, [loss, *gradients])
            if not torch.isfinite(loss):
                return False
            for parameter, gradient in zip(self.parameters, averaged, strict=True):
                parameter.grad = gradient
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.schedule.step()
        return True

    def loss(self, batches: Sequence[int]) -> float:
        """Return the mean loss over batches, with all parameters rounded as they are stored."""
        current = [parameter.detach().clone() for parameter in self.parameters]
        self.load(self.rounded())
        with torch.no_grad():
            loss = sum(float(self.average(i, [self._error(i)])[0]) for i in batches) / len(batches)
        self.load(current)
        return loss

    def rounded(self) -> State:
        """Return the value that each parameter will have when it is loaded again."""
        return rounded(self.parameters, self.always_half)

    def load(self, state: State) -> None:
        """Give every parameter its value in `state`."""
        overwrite(self.parameters, state)

    def _error(self, i: int) -> torch.Tensor:
        with autocast(self.parameters[0].device, self.precision):
            output = self.forward(i)
        return relative_error(output.float(), self.targets[i].float())


def relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens of the squared error relative to the squared target."""
    target = target.to(output.device)
    error = (output - target).square().mean(-1)
    return (error / target.square().mean(-1).clamp(min=torch.finfo(torch.float32).tiny)).mean()


def _split(count: int, fraction: float, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Return the batches to train on and those to hold out."""
    if count < 2:
        raise InputError(
            f"tuning needs at least 2 calibration batches, one of them to be held out, got {count}; "
            f"give more calibration tokens or smaller batches"
        )
    order = torch.randperm(count, generator=generator).tolist()
    held_out = max(1, round(fraction * count))
    return order[held_out:], order[:held_out]
