"""Block tuning alone: the blocks of a finished AQLM checkpoint tuned in order, with the losses of each and perplexity.

Codes stay those of the checkpoint, so settings can be compared without quantizing anew. In a run of the library the
codes of a block are chosen on what the tuned blocks before it compute, which does a little better.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from mcq_llm.aqlm_format import AqlmLayer
from mcq_llm.blocks import Blocks, find_blocks, get_bias
from mcq_llm.calibrate import Stream
from mcq_llm.coded_linear import CodedLinear
from mcq_llm.coded_model import load_coded
from mcq_llm.evaluate import evaluate
from mcq_llm.load import load
from mcq_llm.memory import peak_megabytes, return_freed_memory
from mcq_llm.text import read_text, spread_windows, tokenize
from mcq_llm.tune import TuneOptions, tune_block


def main() -> None:
    """Print one line per block, then the perplexities."""
    options = parse()
    return_freed_memory()
    model, tokenizer = load(options.original)
    quantized, _, stored = load_coded(options.quantized)
    blocks, coded = find_blocks(model), find_blocks(quantized)
    count = options.blocks or len(blocks.modules)
    windows = spread_windows(
        tokenize(tokenizer, read_text(options.calibration)), options.tokens // options.window, options.window
    )
    text = read_text(options.evaluation)
    original = Stream(model, blocks, windows, options.batch, torch.float32)
    stream = original.copy()
    processor, start = time.process_time(), time.perf_counter()
    for index in range(count):
        block = coded_block(coded, index, stored)
        reference = original if options.target == "original" else stream.copy()
        reference.advance(index, blocks.modules[index])
        if options.epochs:
            calls = stream.calls(index, block)
            tuning = TuneOptions(options.epochs, options.learning_rate, options.held_out)
            report = tune_block(block, lambda i, calls=calls: calls[i](), reference.hidden, tuning, options.seed)
            print(
                f"block {index:3}  loss {report.loss_before:.5f} {report.loss_after:.5f} "
                f"(epoch {report.best_epoch} of {report.epochs})  {report.seconds:.0f} s",
                flush=True,
            )
        stream.advance(index, block)
        blocks.modules[index] = block
    print(f"perplexity  {evaluate(model, tokenizer, text).perplexity:.2f} with {count} blocks quantized")
    processor, seconds = time.process_time() - processor, time.perf_counter() - start
    print(f"seconds     {seconds:.0f}, {processor:.0f} of processor time; peak {peak_megabytes():.0f} MB")


def coded_block(blocks: Blocks, index: int, stored: dict[str, AqlmLayer]) -> nn.Module:
    """Return block `index` with layers that decode their weights."""
    block = blocks.modules[index]
    for name, layer in blocks.layers(index).items():
        if name in stored:
            block.set_submodule(name.removeprefix(blocks.prefix(index)), CodedLinear(stored[name], get_bias(layer)))
    return block.requires_grad_(True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", help="Hugging Face id, folder or .gguf file")
    parser.add_argument("quantized", type=Path, help="folder of an AQLM checkpoint of it")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--blocks", type=int, help="tune and quantize only so many; all others stay original")
    parser.add_argument("--target", choices=["original", "quantized"], default="original")
    parser.add_argument("--tokens", type=int, default=32 * 1024)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=TuneOptions.epochs, help="0 for no tuning")
    parser.add_argument("--learning-rate", type=float, default=TuneOptions.learning_rate)
    parser.add_argument("--held-out", type=float, default=TuneOptions.held_out)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
