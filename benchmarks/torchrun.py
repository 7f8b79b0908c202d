"""Several processes under torchrun against one, each with one thread: seconds and layer errors.

The first blocks of a model are quantized in both ways by turns, so that other work on the machine meets both alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mcq_ext
from mcq_llm.config import Options
from mcq_llm.memory import return_freed_memory
from mcq_llm.run import run
from mcq_llm.text import read_text
from mcq_llm.world import is_first


def main() -> None:
    """Print one line per repeat, then the median of the ratios."""
    options = parse()
    if options.work:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(options.model, num_hidden_layers=options.blocks)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(folder)
        ratios = [compare(folder, options) for _ in range(options.repeats)]
    print(f"median: {statistics.median(ratios):.2f} times as fast")


def compare(model: str, options: argparse.Namespace) -> float:
    """Return how many times as fast several processes are as one."""
    one = measure([sys.executable], model, options)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(options.processes)]
    many = measure(launcher, model, options)
    apart = max(abs(b / a - 1) for a, b in zip(one["errors"], many["errors"], strict=True))
    print(
        f"seconds {one['seconds']:6.1f} {many['seconds']:6.1f}, processor time {one['processor']:6.1f} "
        f"{many['processor']:6.1f} (first process), mean error {statistics.mean(one['errors']):.5f} "
        f"{statistics.mean(many['errors']):.5f}, layers apart by at most {apart:.1e}",
        flush=True,
    )
    return float(one["seconds"] / many["seconds"])


def measure(launcher: list[str], model: str, options: argparse.Namespace) -> dict[str, Any]:
    settings = ["--tokens", options.tokens, "--window", options.window, "--tune", options.tune, "--work"]
    command = [*launcher, __file__, model, options.calibration, *settings]
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def work(options: argparse.Namespace) -> None:
    """Quantize, and print what it took, from the loaded libraries to the finished checkpoint."""
    mcq_ext.set_num_threads(1)
    torch.set_num_threads(1)
    return_freed_memory()
    chosen = Options(tokens=options.tokens, window=options.window, tune=options.tune)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        start, processor = time.perf_counter(), time.process_time()
        run(options.model, read_text(options.calibration), chosen, out)
        if is_first():
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            lines = [json.loads(line) for line in (out / "quantize.jsonl").read_text().splitlines()]
            errors = [line["error_after"] for line in sorted(lines, key=lambda line: line["layer"])]
            print(json.dumps({"seconds": seconds, "processor": processor, "errors": errors}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="Hugging Face id or folder")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--blocks", type=int, default=2, help="the others are left out")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=Options.tokens)
    parser.add_argument("--window", type=int, default=Options.window)
    parser.add_argument("--tune", choices=["none", "bias", "block"], default="none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
