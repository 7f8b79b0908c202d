"""A model whose weights are rotated and that computes what it did: rotations absorbed into adjacent layers.

A root-mean-square norm does not see a rotation of its input. So all that blocks hand on to each other may be rotated,
if what writes there is rotated likewise and what reads from there is rotated back. The factors of the norms, which
would not allow it, go into the layers behind them first. Values rotate within heads, since attention only adds them up.
Weights are then nearly normal without any transform at run time (QuaRot, Ashkboos et al., NeurIPS 2024). What lies
behind a product of entries, the inputs of ``down_proj``, cannot be rotated in this way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from mcq.errors import InputError
from mcq.transforms import Hadamard
from mcq_llm.blocks import LINEAR, Blocks, find_blocks, get_bias, get_weight, linear_layers, set_weight
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.export import finish
from mcq_llm.load import load, require_dense
from mcq_llm.storage import new_folder

#: Layers behind each norm of a block, and layers whose outputs are added to what blocks hand on.
READERS = {"input_layernorm": {"q_proj", "k_proj", "v_proj"}, "post_attention_layernorm": {"gate_proj", "up_proj"}}
WRITERS = {"o_proj", "down_proj"}
#: Largest change of a logit, relative to their standard deviation, that rounding may explain.
TOLERANCE = 1e-3
TRIAL_TOKENS = 32


def rotate(model: PreTrainedModel, seed: int = 0) -> None:
    """Rotate the weights of a model by random orthogonal matrices such that its predictions stay what they are.

    With x the vector that blocks hand on, Q and P randomised Hadamard rotations, and g the factors of a norm:
    embeddings become E Q, layers behind a norm W diag(g) Q, layers that are added to x Q^T W, the head W diag(g) Q;
    values become P^T W within each head, and the layer behind them W P.

    Parameters
    ----------
    model : PreTrainedModel
        In float32, changed in place. Embeddings and head share no weights afterwards, since only one takes the factors
        of the last norm.
    seed : int
        Of both rotations.

    Raises
    ------
    InputError
        If blocks are not made of root-mean-square norms and of projections named as in Llama, Mistral and Qwen, or the
        rotated model predicts something else, which is checked. The model is of no use then.

    Notes
    -----
    Costs O(d log d) per row or column of each weight.
    """
    blocks = find_blocks(model)
    inner = model.get_decoder()
    _require_known(model, blocks, inner)
    ids = torch.arange(TRIAL_TOKENS)[None] % model.config.vocab_size
    before = _logits(model, ids)
    _untie(model)
    stream = Hadamard(model.config.hidden_size, seed)
    for block in blocks.modules:
        layers = {name.rpartition(".")[2]: layer for name, layer in linear_layers(block).items()}
        head = Hadamard(_head_size(block, layers), seed)
        for norm, readers in READERS.items():
            _absorb(block.get_submodule(norm), [layers[name] for name in readers], stream)
        _rotate_heads(layers["v_proj"], layers["o_proj"], head)
        for name in WRITERS:
            _rotate_outputs(layers[name], stream)
    _absorb(inner.norm, [model.get_output_embeddings()], stream)
    embeddings = model.get_input_embeddings()
    set_weight(embeddings, _columns(get_weight(embeddings), stream))
    change = (_logits(model, ids) - before).abs().max() / before.std()
    if not change < TOLERANCE:
        raise InputError(
            f"{type(model).__name__} cannot be rotated: its norms or residual paths are not those of Llama, since its "
            f"logits would change by {change:.2g} of their spread; use --rotate, which rotates within layers"
        )


def rotate_checkpoint(source: str | Path, out: Path, seed: int = 0) -> None:
    """Write a rotated model, an ordinary checkpoint in float16, to the folder `out`, completely or not at all.

    Parameters
    ----------
    source : str or Path
        See `mcq_llm.load.load`.
    out : Path
        Must not exist or be empty.
    seed : int
        See `rotate`.
    """
    with new_folder(out) as partial:
        model, tokenizer = load(source)
        require_dense(model)
        rotate(model, seed)
        blocks = find_blocks(model)
        checkpoint = Checkpoint(partial, model, blocks, plan=[], file_format="dense", run={})
        checkpoint.open()
        for index in range(len(blocks.modules)):
            checkpoint.save_block(index, {})
        finish(checkpoint, model, tokenizer, [], "dense")
        checkpoint.seal()


def _require_known(model: PreTrainedModel, blocks: Blocks, inner: nn.Module) -> None:
    want = {"norms": set(READERS), "layers": WRITERS.union(*READERS.values())}
    for index, block in enumerate(blocks.modules):
        norms = {name for name, child in block.named_children() if next(child.children(), None) is None}
        found = {"norms": norms, "layers": {name.rpartition(".")[2] for name in linear_layers(block)}}
        if found != want:
            raise InputError(
                f"a model that is rotated must have blocks with {_listed(want)}; block {index} of "
                f"{type(model).__name__} has {_listed(found)}; use --rotate, which rotates within layers"
            )
    if not isinstance(model.get_output_embeddings(), LINEAR) or not hasattr(inner, "norm"):
        raise InputError(f"a model that is rotated must have a last norm and a head; {type(model).__name__} has not")


def _listed(found: dict[str, set[str]]) -> str:
    return " and ".join(f"the {kind} {', '.join(sorted(names)) or '(none)'}" for kind, names in found.items())


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits.double()


def _untie(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _head_size(block: nn.Module, layers: dict[str, nn.Module]) -> int:
    attention = next(module for module in block.modules() if getattr(module, "v_proj", None) is layers["v_proj"])
    size: Any = attention.head_dim
    return int(size)


@torch.no_grad()
def _absorb(norm: nn.Module, readers: list[nn.Module], rotation: Hadamard) -> None:
    """Move the factors of a norm into the layers behind it, and rotate their inputs."""
    factors = norm.get_parameter("weight")
    for layer in readers:
        set_weight(layer, _columns(get_weight(layer) * factors, rotation))
    factors.fill_(1)


def _rotate_outputs(layer: nn.Module, rotation: Hadamard) -> None:
    bias = get_bias(layer)
    rotated = None if bias is None else _columns(bias[None], rotation)[0]
    set_weight(layer, _columns(get_weight(layer).T, rotation).T, rotated)


def _rotate_heads(values: nn.Module, behind: nn.Module, rotation: Hadamard) -> None:
    """Rotate values within each head, and the layer behind them back."""
    weight, bias = get_weight(values), get_bias(values)
    heads = weight.T.reshape(-1, rotation.width)  # a row for each input and head
    rotated = None if bias is None else _columns(bias.reshape(-1, rotation.width), rotation).flatten()
    set_weight(values, _columns(heads, rotation).reshape(weight.T.shape).T, rotated)
    after = get_weight(behind)
    set_weight(behind, _columns(after.reshape(-1, rotation.width), rotation).reshape(after.shape))


def _columns(matrix: torch.Tensor, rotation: Hadamard) -> torch.Tensor:
    """Return ``matrix @ Q``."""
    return torch.from_numpy(rotation.apply(np.ascontiguousarray(matrix.detach().numpy())))
