"""End-to-end tuning: what is left to choose once all codes are fixed is fitted to the original model's predictions.

Codebooks, scales, norms and biases of the whole model are tuned together, by gradients of the Kullback-Leibler
divergence from the original model on the calibration text.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from mcq.errors import InputError
from mcq.validate import in_range, one_of
from mcq_llm.coded_model import CodedModel
from mcq_llm.halves import hidden_states, logits, position_slices
from mcq_llm.parameters import State, adam, overwrite, rounded
from mcq_llm.precision import PRECISIONS, autocast
from mcq_llm.teacher import Teacher, divergence

log = logging.getLogger("mcq")

#: A gradient is shortened to this multiple of the usual length.
LONGEST = 2.0


@dataclass(frozen=True)
class DistillOptions:
    """How a model is tuned.

    Attributes
    ----------
    epochs : float
        Passes over the calibration sequences.
    learning_rate : float
        Largest step of Adam as a fraction of a tensor's root mean square.
    warmup : float
        Fraction of the steps in which the learning rate rises; it then falls to zero along a cosine.
    batch : int
        Sequences per step.
    micro_batch : int
        Sequences that are run together; bounds the memory.
    held_out : int
        Sequences that are not trained on but choose the best state.
    evaluations : int
        How often that is looked at.
    patience : int
        Evaluations without a better held-out loss before tuning stops.
    embeddings : bool
        Whether to tune the embeddings and the head, too.
    checkpointing : bool
        Whether to compute each block again for the gradients instead of holding its activations.
    precision : {"auto", "float32", "bfloat16"}
        Of the matrix products; parameters and their updates are float32. "auto" takes bfloat16 where the device
        computes in it natively.
    """

    epochs: float = 1.0
    learning_rate: float = 0.002
    warmup: float = 0.05
    batch: int = 1
    micro_batch: int = 1
    held_out: int = 16
    evaluations: int = 5
    patience: int = 2
    embeddings: bool = False
    checkpointing: bool = False
    precision: str = "auto"

    def __post_init__(self) -> None:
        in_range(self.epochs, 0.0, None, "epochs")
        in_range(self.learning_rate, 0.0, 1.0, "learning_rate")
        in_range(self.warmup, 0.0, 1.0, "warmup")
        for name in ("batch", "micro_batch", "held_out", "evaluations", "patience"):
            in_range(getattr(self, name), 1, None, name)
        one_of(self.precision, PRECISIONS, "precision")


@dataclass(frozen=True)
class DistillReport:
    """What tuning did.

    Attributes
    ----------
    before, after : float
        Divergence in nats per token on the held-out sequences, of parameters rounded as they are stored.
    history : tuple of (int, float)
        Every evaluation: the step, and the divergence.
    steps, best_step : int
        Taken; and after which the parameters were kept, 0 if those from before.
    seconds : float
    """

    before: float
    after: float
    history: tuple[tuple[int, float], ...]
    steps: int
    best_step: int
    seconds: float


def distill(student: CodedModel, teacher: Teacher, options: DistillOptions, seed: int = 0) -> DistillReport:
    """Tune a model, in place, towards the predictions of the original.

    Parameters
    ----------
    student : CodedModel
    teacher : Teacher
    options : DistillOptions
    seed : int
        Decides which sequences are held out and the order of the others.

    Returns
    -------
    DistillReport

    Notes
    -----
    Afterwards every tuned parameter has the value that it will have when it is loaded again. The held-out divergence
    never rises; if it, or that of a step, becomes NaN or infinite, tuning stops with a warning and the best
    parameters are kept.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    training, held_out = _split(len(teacher.windows), options.held_out, generator)
    batches = list(_batches(training, options, generator))
    evaluated = {round(len(batches) * (i + 1) / options.evaluations) for i in range(options.evaluations)}
    run = _Run(student, teacher, options, len(batches))
    best, best_step, step = run.rounded(), 0, 0
    history = [(0, run.held_out_loss(held_out))]
    healthy = math.isfinite(history[0][1])
    with tqdm(total=len(batches), desc="tuning", unit="step") as bar, student.recomputing(options.checkpointing):
        while healthy and step < len(batches) and _improving(history, options.patience):
            loss = run.step(batches[step])
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", held_out=f"{history[-1][1]:.4f}")
            healthy = math.isfinite(loss)
            if healthy and step in evaluated:
                history.append((step, run.held_out_loss(held_out)))
                healthy = math.isfinite(history[-1][1])
                if healthy and history[-1][1] == min(value for _, value in history):
                    best, best_step = run.rounded(), step
    if not healthy:
        log.warning("tuning stopped in step %d, as the loss was not finite; step %d was kept", step, best_step)
    run.load(best)
    after = dict(history)[best_step]
    return DistillReport(history[0][1], after, tuple(history), step, best_step, time.perf_counter() - start)


class _Run:
    """The parameters of a model on their way to a lower loss."""

    def __init__(self, student: CodedModel, teacher: Teacher, options: DistillOptions, steps: int) -> None:
        self.student, self.teacher, self.options = student, teacher, options
        coded = [tensor for layer in student.layers.values() for tensor in (layer.codebooks, layer.scales)]
        self.always_half = {id(tensor) for tensor in coded}
        self.parameters = coded + _uncoded(student.model, options.embeddings)
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.optimiser = adam(self.parameters, options.learning_rate)
        warmup = max(1, round(options.warmup * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, partial(_rate, warmup=warmup, steps=steps))
        self.usual_length: float | None = None

    def step(self, sequences: Sequence[int]) -> float:
        """Take one step and return the loss before it; none, if the loss is not finite."""
        self.student.decode()
        loss = sum(self._loss(part, len(sequences), train=True) for part in self._parts(sequences))
        if math.isfinite(loss):
            self.student.push_gradients()
            self._clip()
            self.optimiser.step()
            self.schedule.step()
        self.optimiser.zero_grad()
        return loss

    @torch.no_grad()
    def held_out_loss(self, sequences: Sequence[int]) -> float:
        """Return the loss with all parameters rounded as they are stored."""
        current = [parameter.detach().clone() for parameter in self.parameters]
        self.load(self.rounded())
        loss = sum(self._loss(part, len(sequences), train=False) for part in self._parts(sequences))
        self.load(current)
        return loss

    def rounded(self) -> State:
        """Return the value that each parameter will have when it is loaded again."""
        return rounded(self.parameters, self.always_half)

    def load(self, state: State) -> None:
        """Give every parameter its value in `state`, and the model its weights."""
        overwrite(self.parameters, state)
        self.student.decode()

    def _parts(self, sequences: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(sequences), self.options.micro_batch):
            yield sequences[start : start + self.options.micro_batch]

    def _loss(self, sequences: Sequence[int], out_of: int, train: bool) -> float:
        """Return the share of some sequences in the mean over `out_of`, and gather its gradients if `train`."""
        model = self.student.model
        with torch.set_grad_enabled(train), autocast(model.device, self.options.precision):
            hidden = hidden_states(model, self.teacher.windows[sequences].to(model.device)).flatten(0, 1)
        # Cut off here, so that the logits of one slice are gone before those of the next are computed.
        end = hidden.detach().requires_grad_(train)
        tokens, logprobs = self.teacher.targets(sequences)
        total = 0.0
        for part in position_slices(len(end), model.config.get_text_config().vocab_size):
            with torch.set_grad_enabled(train), autocast(model.device, self.options.precision):
                scores = logits(model, end[part])
            with torch.set_grad_enabled(train):
                losses = divergence(scores, tokens[part].to(model.device), logprobs[part].to(model.device))
                loss = losses.sum() / (out_of * self.teacher.windows.shape[1])
            if train:
                loss.backward()
            total += float(loss.detach())
        if train:
            hidden.backward(end.grad)
        return total

    def _clip(self) -> None:
        """Shorten a gradient that is much longer than usual: what is usual depends on the model and the loss."""
        limit = math.inf if self.usual_length is None else LONGEST * self.usual_length
        length = min(float(nn.utils.clip_grad_norm_(self.parameters, limit)), limit)
        self.usual_length = length if self.usual_length is None else 0.9 * self.usual_length + 0.1 * length


def _uncoded(model: PreTrainedModel, embeddings: bool) -> State:
    """Return the parameters to tune besides codebooks and scales: all vectors, and the embeddings if asked."""
    chosen: State = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    if embeddings:
        both = [
            layer.get_parameter("weight") for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        ]
        chosen += {id(weight): weight for weight in both}.values()  # once if they are tied
    return chosen


def _split(count: int, held_out: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Return the sequences to train on and those to hold out."""
    if count <= held_out:
        raise InputError(
            f"tuning needs more calibration sequences than the {held_out} to be held out, got {count}; "
            f"give a longer text, shorter windows, or hold out fewer"
        )
    order = torch.randperm(count, generator=generator).tolist()
    return order[held_out:], order[:held_out]


def _batches(training: list[int], options: DistillOptions, generator: torch.Generator) -> Iterator[list[int]]:
    """Return the sequences of each step: all of them once in every epoch, in a new order."""
    order: list[int] = []
    for _ in range(math.ceil(options.epochs)):
        order += [training[i] for i in torch.randperm(len(training), generator=generator)]
    order = order[: round(options.epochs * len(training))]
    for start in range(0, len(order), options.batch):
        yield order[start : start + options.batch]


def _improving(history: list[tuple[int, float]], patience: int) -> bool:
    losses = [loss for _, loss in history]
    return len(losses) - 1 - losses.index(min(losses)) < patience


def _rate(step: int, warmup: int, steps: int) -> float:
    """Return the factor of the learning rate: a rise, then half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
