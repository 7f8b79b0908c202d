"""What an error of a layer means for the model: the factor of its relative output error in the sum that is minimised.

All providers count the same thing, the relative error tr(D H D^T) / tr(W H W^T) of a layer's outputs under the Gram H
of its inputs. So what the Gram tells is not counted again: a provider adds what happens behind the layer only.

- ``activation``: nothing; the relative errors of all layers count alike.
- ``noise``: random weights D are added to one layer at a time, and the Kullback-Leibler divergence of the next-token
  distributions is divided by the relative error that they make (the linearity theorem of HIGGS, Malinovskii et al.,
  NAACL 2025).
- ``measured``: the same, with D the error of the layer when it is quantized, with a setting within the budget.
- ``attributed``: all layers are quantized so at once, and the divergence is shared out among them
  (`mcq_llm.attribution`).
- ``walked``: the same of a model whose layers are quantized in a run, where each corrects the drift that those before
  it have caused, and only for the errors that layers then make themselves (`mcq_llm.walked`).
- ``fisher``: the divergence to second order, 1/2 sum F D^2. The diagonal F of the Fisher information is the mean square
  of the gradient of a label that is drawn from the model's own prediction.
- ``gradient``: the same with principal components of the last hidden states in place of labels (CVXQ, Young, 2024).
- a JSON file with an object of layer names and numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from mcq.errors import ConfigError, FormatError
from mcq_llm.attribution import attributed, log_probabilities, smoothed
from mcq_llm.blocks import Blocks, as_stored_by, get_weight, set_weight
from mcq_llm.config import PROVIDERS, SHARED
from mcq_llm.device import moved
from mcq_llm.drafts import Drafts
from mcq_llm.ledger import Ledger
from mcq_llm.observe import observe
from mcq_llm.plan import plan_digest, quantized
from mcq_llm.prepared import Prepared
from mcq_llm.text import tokens_hash
from mcq_llm.walked import walked

#: Relative errors of the noise; the factor is a mean over them.
LEVELS = (0.01, 0.04)
#: Sequences, and tokens of each, that divergences are measured on.
DIVERGENCE_SEQUENCES, DIVERGENCE_TOKENS = 4, 128
#: Sequences, and tokens of each, that gradients are taken of. Each sequence is one draw of what a mean square is
#: estimated from; estimates from 16 differ from one another as much as the rows of a layer do.
GRADIENT_TEXT = 64, 256
#: The same for a divergence that is shared out, of text that is not calibrated on, and points of the way.
SHARED_TEXT, SHARED_POINTS = (32, 512), 1
#: Principal components of the last hidden states, and tokens from one that they are taken of to the next.
COMPONENTS, STRIDE = 64, 8
#: Least share of a layer in a divergence, relative to an equal one: shares near 0, or below, are uncertain.
LEAST_SHARE = 0.05
LEAST = 1e-12


class Power(Protocol):
    """What is known of a layer."""

    @property
    def power(self) -> float:
        """Mean square of an output, relative to that of an input."""


def require_measurable(provider: str, bands: int, prepared: Prepared, names: Collection[str]) -> None:
    """Refuse a provider, or a number of bands, that asks more of the model than it has, before anything is measured.

    Raises
    ------
    ConfigError
        If it needs the whole model in memory.
    FormatError
        If it is a file that does not give a positive number for each layer.
    """
    if provider not in PROVIDERS:
        _given(Path(provider), names)
    elif provider != "activation":
        _modules(prepared, names, f"the sensitivity {provider!r} needs")
    if bands > 1:
        _modules(prepared, names, "bands of rows need")


def sensitivities(
    provider: str, prepared: Prepared, layers: Mapping[str, Power], cache: Path | None, identity: Mapping[str, str]
) -> dict[str, float]:
    """Return what the relative error of each layer counts; the mean over layers is 1.

    Parameters
    ----------
    provider : str
        One of `PROVIDERS` but those that share out a divergence, see `shared_out`, or the path of a JSON file.
    prepared : Prepared
        With the original model, which is afterwards as before, and a plan with one setting for all `layers`: where a
        provider needs to know what errors are like, they are those of this plan.
    layers : mapping of str to Power
        By full name.
    cache : Path or None
        Folder for what is measured, layer by layer.
    identity : mapping of str to str
        What decides all measurements.

    Raises
    ------
    ConfigError
        If there is no such provider, or it needs the whole model in memory and does not have it.
    FormatError
        If the file does not give a positive number for each layer.
    """
    if provider == "activation":
        return dict.fromkeys(layers, 1.0)
    if provider not in PROVIDERS:
        return _scaled(_given(Path(provider), layers))
    model, blocks = prepared.model, prepared.blocks
    modules = _modules(prepared, layers, f"the sensitivity {provider!r} needs")
    ledger = _ledger("sensitivity", provider, prepared, cache, identity)
    missing = {name: module for name, module in modules.items() if name not in ledger}
    if missing:
        with moved(model, blocks.device):
            _measure(provider, prepared, layers, missing, ledger)
    return _scaled({name: ledger[name] for name in layers if name in ledger})


def _ledger(kind: str, provider: str, prepared: Prepared, cache: Path | None, identity: Mapping[str, str]) -> Ledger:
    """Return the ledger of what a provider measures; one for each plan, if that depends on the settings."""
    decisive, options = dict(identity), prepared.options
    if prepared.unseen is not None and provider in SHARED:
        decisive["text"] = f"{tokens_hash(prepared.unseen)} {SHARED_POINTS}"
    if provider in ("fisher", "gradient"):
        decisive["text"] = str(GRADIENT_TEXT)
    if provider == "walked":
        decisive["run"] = f"{options.target} {options.correction} {options.damping}"
    if provider == "measured" or provider in SHARED:
        decisive["plan"] = plan_digest(prepared.plan)
        decisive["seed"] = str(options.seed)
    return Ledger(cache, f"{kind}-{provider}", decisive)


def _measure(
    provider: str, prepared: Prepared, layers: Mapping[str, Power], missing: Mapping[str, nn.Module], ledger: Ledger
) -> None:
    """Add to the ledger what the relative errors of the `missing` ones of `layers` count."""
    model, blocks, windows = prepared.model, prepared.blocks, prepared.windows
    if provider == "noise":
        meter = DivergenceMeter(model, blocks, windows)
        for name, layer in tqdm(missing.items(), desc="noise", unit="layer", smoothing=0):
            ledger[name] = _noise(meter, name, layer, layers[name].power)
    elif provider == "measured":
        meter = DivergenceMeter(model, blocks, windows)
        for name, weight, error in _quantized(prepared, missing, Drafts(None, {})):
            ledger[name] = meter.of(name, missing[name], weight) / error
    else:
        squares = _mean_squares(model, missing, windows, provider == "fisher")
        for name, square in squares.items():
            ledger[name] = float(square.sum()) * layers[name].power / 2


class Share(NamedTuple):
    """What a layer has done to a model that is coded.

    Attributes
    ----------
    rows : list of float
        Share of each output in the divergence, in nats.
    error : float
        Relative error tr(D H D^T) / tr(W H W^T) of the layer.
    """

    rows: list[float]
    error: float


def shared_out(
    provider: str, prepared: Prepared, names: Collection[str], cache: Path | None, identity: Mapping[str, str]
) -> dict[str, Share]:
    """Return what each layer does to a model that is coded as planned.

    Parameters
    ----------
    provider : str
        One of `SHARED`.
    prepared, cache, identity
        See `sensitivities`.
    names : collection of str
        Of layers.

    Raises
    ------
    ConfigError
        If the whole model is not in memory.
    """
    modules = _modules(prepared, names, f"the sensitivity {provider!r} needs")
    ledger = _ledger("shares", provider, prepared, cache, identity)
    if any(name not in ledger for name in names):
        drafts = Drafts(cache, ledger.identity)
        with moved(prepared.model, prepared.blocks.device):
            for name, share in _shared_out(provider, prepared, modules, drafts).items():
                ledger[name] = {"rows": [float(f"{row:.4g}") for row in share.rows], "error": share.error}
        drafts.remove()
    return {name: Share(**ledger[name]) for name in names}


def _shared_out(
    provider: str, prepared: Prepared, modules: Mapping[str, nn.Module], drafts: Drafts
) -> dict[str, Share]:
    """Code the model and share out its divergence among the outputs of all layers."""
    assert prepared.unseen is not None  # noqa: S101 (see `prepare`)
    errors: dict[str, torch.Tensor] | None = None
    if provider == "attributed":
        found = list(_quantized(prepared, modules, drafts))
        coded = {name: weight for name, weight, _ in found}
        relative = {name: error for name, _, error in found}
    else:
        run = list(walked(prepared, drafts))
        coded, errors = {layer.name: layer.weight for layer in run}, {layer.name: layer.error for layer in run}
        relative = {layer.name: layer.relative for layer in run}
    rows = attributed(prepared.model, modules, coded, prepared.unseen, errors, SHARED_POINTS)
    return {name: Share(own.tolist(), relative[name]) for name, own in rows.items()}


def by_shares(found: Mapping[str, Share], blocks: Blocks) -> dict[str, float]:
    """Return what the relative error of each layer counts, by its share; the mean over layers is 1."""
    shares = smoothed({name: math.fsum(share.rows) for name, share in found.items()}, blocks)
    least = LEAST_SHARE * max(math.fsum(shares.values()), LEAST) / len(shares)
    return _scaled({name: max(shares[name], least) / max(share.error, LEAST) for name, share in found.items()})


def row_sensitivities(
    prepared: Prepared, names: Collection[str], cache: Path | None, identity: Mapping[str, str]
) -> dict[str, list[float]]:
    """Return what a squared error of each output counts, up to a factor for the layer: the Fisher information.

    Parameters
    ----------
    prepared, cache, identity
        See `sensitivities`.
    names : collection of str
        Of layers.

    Raises
    ------
    ConfigError
        If the whole model is not in memory.
    """
    modules = _modules(prepared, names, "bands of rows need")
    ledger = Ledger(cache, "rows", {**identity, "text": str(GRADIENT_TEXT)})
    missing = {name: module for name, module in modules.items() if name not in ledger}
    if missing:
        with moved(prepared.model, prepared.blocks.device):
            for name, square in _mean_squares(prepared.model, missing, prepared.windows, labels=True).items():
                ledger[name] = [float(f"{value:.4g}") for value in square.tolist()]
    return {name: ledger[name] for name in names}


def _modules(prepared: Prepared, names: Collection[str], who: str) -> dict[str, nn.Module]:
    """Return the modules of layers, if they are all there is to them."""
    modules = dict(prepared.model.named_modules())
    if prepared.blocks.shards is not None or any(name not in modules for name in names):
        raise ConfigError(
            f"{who} all weights in memory, each layer a module of its own; leave out --stream and --bands, and for "
            f"fused experts take --sensitivity activation, or a file"
        )
    return {name: modules[name] for name in names}


def _quantized(prepared: Prepared, names: Collection[str], drafts: Drafts) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Quantize layers as planned, by their inputs in the original model; yield name, weight and relative error."""
    planned = {layer.name: layer for layer in quantized(prepared.plan)}
    for seen in observe(prepared.model, prepared.blocks, prepared.windows, prepared.options, names):
        metric = seen.statistics.metric
        rebuilt = drafts.coded(planned[seen.name], seen.weight, metric, prepared.options.seed)
        yield seen.name, torch.from_numpy(rebuilt), max(metric.relative_error(seen.weight, rebuilt), LEAST)


def _scaled(found: Mapping[str, float]) -> dict[str, float]:
    mean = math.fsum(found.values()) / max(len(found), 1)
    return {name: max(value / (mean or 1.0), LEAST) for name, value in found.items()}


def _given(path: Path, names: Collection[str]) -> dict[str, float]:
    """Read the factors of all layers `names` from a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: _positive(found[name]) for name in names}
    except OSError as error:
        raise ConfigError(
            f"the sensitivity must be one of {', '.join(PROVIDERS)}, or a JSON file that can be read; {path}: "
            f"{error.strerror}"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} must give a positive number for each layer by its full name, but: {error}") from None


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(f"got {value!r}")
    return float(value)


class DivergenceMeter:
    """Measures how far the predictions of a model go from what they are, when the weight of a layer changes.

    Parameters
    ----------
    model : PreTrainedModel
    blocks : Blocks
        Of `model`, all in memory.
    windows : tensor of shape (sequences, window), int64
    """

    def __init__(self, model: PreTrainedModel, blocks: Blocks, windows: torch.Tensor) -> None:
        self._model, self._blocks = model, blocks
        self._ids = _spread(windows, DIVERGENCE_SEQUENCES, DIVERGENCE_TOKENS)
        self._outputs: list[Any] = []  # of each block; the blocks before the one at work need not compute again
        hooks = [
            block.register_forward_hook(lambda _, args, output: self._outputs.append(output))
            for block in blocks.modules
        ]
        self._reference = self._log_probabilities()
        for hook in hooks:
            hook.remove()

    @torch.no_grad()
    def of(self, name: str, layer: nn.Module, weight: torch.Tensor) -> float:
        """Return the mean Kullback-Leibler divergence in nats if `layer`, called `name`, has this weight instead."""
        kept = get_weight(layer).clone()
        try:
            set_weight(layer, weight)
            with self._skipping(self._blocks.number(name)):
                found = self._log_probabilities()
        finally:
            set_weight(layer, kept)
        return float((self._reference.exp() * (self._reference - found)).sum(-1).mean(dtype=torch.float64))

    @contextmanager
    def _skipping(self, count: int) -> Iterator[None]:
        """Let the first `count` blocks return what they returned before."""
        skipped = list(self._blocks.modules)[:count]
        try:
            for block, output in zip(skipped, self._outputs, strict=False):
                block.forward = lambda *args, output=output, **kwargs: output
            yield
        finally:
            for block in skipped:
                del block.forward

    @torch.no_grad()
    def _log_probabilities(self) -> torch.Tensor:
        return log_probabilities(self._model, self._ids)


def _noise(meter: DivergenceMeter, name: str, layer: nn.Module, power: float) -> float:
    """Return the divergence by noise of several levels, relative to the error of the outputs that it makes."""
    weight, generator = get_weight(layer).float(), torch.Generator().manual_seed(0)
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    found = [meter.of(name, layer, weight + math.sqrt(level * power) * noise) / level for level in LEVELS]
    return math.fsum(found) / len(found)


def _mean_squares(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], windows: torch.Tensor, labels: bool
) -> dict[str, torch.Tensor]:
    """Return for each layer and output the sum over its weights of the mean square of the gradient, per token.

    Of the likelihood of labels drawn from the model, or of principal components of its last hidden states.
    """
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    generator = torch.Generator().manual_seed(0)
    sequences = _spread(windows, *GRADIENT_TEXT)
    scalar = _likelihood if labels else _components(model, sequences)
    sums = [torch.zeros(len(get_weight(layer)), dtype=torch.float64) for layer in layers.values()]
    was_asked = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for ids in tqdm(sequences, desc="gradients", unit="sequence", smoothing=0):
            with torch.enable_grad():
                value = scalar(model, ids[None], generator)
                gradients = torch.autograd.grad(value, weights, materialize_grads=True)
            for total, layer, gradient in zip(sums, layers.values(), gradients, strict=True):
                by_row = as_stored_by(layer, gradient).square().sum(1, dtype=torch.float64)
                total += by_row.cpu() / sequences.numel()
    finally:
        for weight, asked in zip(weights, was_asked, strict=True):
            weight.requires_grad_(asked)
    return dict(zip(layers, sums, strict=True))


def _likelihood(model: PreTrainedModel, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the log-likelihood of labels that the model draws itself: the square of its gradient means the Fisher."""
    logprobs = log_probabilities(model, ids)[0]
    labels = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator).to(logprobs.device)
    return logprobs.gather(1, labels).sum()


def _components(
    model: PreTrainedModel, sequences: torch.Tensor
) -> Callable[[PreTrainedModel, torch.Tensor, torch.Generator], torch.Tensor]:
    """Return what sums principal components of the last hidden states with random signs.

    The signs make the mean square of one gradient the sum of the mean squares of all.
    """
    with torch.no_grad():
        states = torch.cat([_last_hidden(model, ids[None]) for ids in sequences])
        _, vectors = torch.linalg.eigh(states.T @ states)
    main = vectors[:, -COMPONENTS:]

    def scalar(model: PreTrainedModel, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        chosen = _last_hidden(model, ids)[STRIDE // 2 :: STRIDE] @ main
        signs = torch.randint(0, 2, chosen.shape, generator=generator).to(chosen.device) * 2 - 1
        return (chosen * signs).sum()

    return scalar


def _last_hidden(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    states: torch.Tensor = (
        model(ids.to(model.device), use_cache=False, output_hidden_states=True).hidden_states[-1][0].float()
    )
    return states


def _spread(windows: torch.Tensor, sequences: int, tokens: int) -> torch.Tensor:
    """Cut windows into sequences and return some, evenly from all: shape (sequences, tokens) or less."""
    tokens = min(tokens, windows.shape[1])
    found = windows[:, : windows.shape[1] // tokens * tokens].reshape(-1, tokens)
    return found[torch.linspace(0, len(found) - 1, min(sequences, len(found))).long()]
