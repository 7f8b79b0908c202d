"""A whole model at 2 bits: perplexity before and after, seconds, peak memory, and the export against our weights."""

import argparse
import tempfile
import time
from pathlib import Path

import numba
import torch
from transformers import AutoModelForCausalLM

from mcq_llm.config import Options
from mcq_llm.evaluate import evaluate
from mcq_llm.memory import peak_megabytes, return_freed_memory
from mcq_llm.prepare import prepare
from mcq_llm.run import write


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="Hugging Face id, folder or .gguf file")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--tokens", type=int, default=32 * 1024)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return_freed_memory()
    numba.set_num_threads(1)  # the CPU kernel of aqlm adds into one sum from several threads
    text = options.evaluation.read_text(encoding="utf-8")
    prepared = prepare(
        options.model,
        options.calibration.read_text(encoding="utf-8"),
        Options(tokens=options.tokens, precision=options.precision, seed=options.seed),
    )
    model_megabytes = sum(p.numel() * p.element_size() for p in prepared.model.parameters()) / 1e6
    before = peak_megabytes()
    print("before", evaluate(prepared.model, prepared.tokenizer, text), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write(prepared, Path(folder), "model")
        seconds, peak = time.perf_counter() - start, peak_megabytes()
        after = evaluate(prepared.model, prepared.tokenizer, text)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = prepared.tokenizer(text[:2000], return_tensors="pt").input_ids[:, :64]
        with torch.inference_mode():
            difference = (loaded(ids).logits - prepared.model(ids).logits).abs().max().item()
    print("after", after, sep="\n")
    print(f"seconds     {seconds:.0f}")
    print(f"memory      model {model_megabytes:.0f} MB, peak {before:.0f} MB before and {peak:.0f} MB while quantizing")
    print(f"logits      of the export in transformers + aqlm differ from ours by at most {difference:.1e}")


if __name__ == "__main__":
    main()
