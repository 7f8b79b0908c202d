"""End-to-end tuning: divergence on held-out sequences against time, and perplexity on other text before and after."""

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from mcq_llm.coded_model import CodedModel, load_coded
from mcq_llm.distill import DistillOptions, distill
from mcq_llm.evaluate import evaluate
from mcq_llm.load import load_dense
from mcq_llm.memory import peak_megabytes, return_freed_memory
from mcq_llm.precision import compute_type
from mcq_llm.teacher import ask
from mcq_llm.text import read_text, spread_windows, tokenize


def main() -> None:
    """Print one line per figure."""
    options, chosen = parse()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return_freed_memory()
    model, tokenizer, stored = load_coded(options.model)
    original, _ = load_dense(options.original)
    ids = tokenize(tokenizer, read_text(options.calibration))
    windows = spread_windows(ids, (options.tokens or len(ids)) // options.window, options.window)
    start = time.perf_counter()
    teacher = ask(original, windows, options.top_k, chosen.precision, options.cache)
    seconds = time.perf_counter() - start
    print(
        f"original    asked about {windows.numel()} tokens in {seconds:.0f} s, peak {peak_megabytes():.0f} MB",
        flush=True,
    )
    text = read_text(options.evaluation)
    print(f"perplexity  original {evaluate(original, tokenizer, text).perplexity:.2f}", flush=True)
    del original
    print(f"perplexity  before {evaluate(model, tokenizer, text).perplexity:.2f}", flush=True)
    student = CodedModel(model, stored, compute_type(model.device, chosen.precision))
    processor = time.process_time()
    report = distill(student, teacher, chosen, options.seed)
    processor = time.process_time() - processor
    for step, loss in report.history:
        print(f"step {step:5}  held-out divergence {loss:.4f}")
    student.finish()
    print(f"perplexity  after {evaluate(model, tokenizer, text).perplexity:.2f} (step {report.best_step} kept)")
    print(f"seconds     {report.seconds:.0f}, {processor:.0f} of processor time; peak {peak_megabytes():.0f} MB")


def parse() -> tuple[argparse.Namespace, DistillOptions]:
    """Return the arguments, and those among them that say how to tune."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of an AQLM checkpoint")
    parser.add_argument("original", help="Hugging Face id, folder or .gguf file")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--top-k", type=int, default=128)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    for field in dataclasses.fields(DistillOptions):
        kind = {"action": "store_true"} if field.default is False else {"type": type(field.default)}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    options = parser.parse_args()
    return options, DistillOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(DistillOptions)})


if __name__ == "__main__":
    main()
