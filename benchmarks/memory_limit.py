"""A model several times larger than the memory that the process may have, quantized block by block from the disk."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

CODE = "import mcq.cli; mcq.cli.main()"


def main() -> None:
    """Build a random model, then quantize it under the limit: as a whole, which must fail, and from the disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=760, help="MB of private memory (RLIMIT_DATA)")
    parser.add_argument("--times", type=float, default=4.0, help="size of the model as a multiple of the limit")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where to put the model; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = Path(folder) / "model"
        size = write_model(model, options.width, options.limit * 1e6 * options.times)
        text = Path(folder) / "text.txt"
        text.write_bytes(bytes(torch.randint(32, 127, (20_000,)).tolist()))
        print(f"model       {size / 1e6:.0f} MB on the disk, limit {options.limit} MB of private memory", flush=True)
        for name, more in {"as a whole": [], "streamed": ["--stream", "--spill", folder]}.items():
            start = time.perf_counter()
            done = quantize(model, Path(folder) / name, text, options.limit, more)
            result = "finished" if done.returncode == 0 else done.stderr.decode().strip().splitlines()[-1]
            print(f"{name:10}  {time.perf_counter() - start:.0f} s: {result}", flush=True)


def write_model(folder: Path, width: int, size: float) -> int:
    """Write a random Llama of at least `size` bytes in float32, one block at a time; return its size."""
    folder.mkdir()
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=5 * width // 2, num_hidden_layers=1,
        num_attention_heads=width // 64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    state = AutoModelForCausalLM.from_config(config).state_dict()
    block = {name: tensor for name, tensor in state.items() if ".layers.0." in name}
    rest = {name: tensor.contiguous() for name, tensor in state.items() if name not in block}
    block_size = sum(tensor.nbytes for tensor in block.values())
    config.num_hidden_layers = count = -int(-size // block_size)
    save_file(rest, folder / "rest.safetensors", {"format": "pt"})
    weight_map = dict.fromkeys(rest, "rest.safetensors")
    for index in range(count):
        tensors = {
            n.replace(".0.", f".{index}."): torch.randn_like(t) / 32 if t.ndim > 1 else t for n, t in block.items()
        }
        save_file(tensors, folder / f"{index}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"{index}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    return count * block_size + sum(tensor.nbytes for tensor in rest.values())


def quantize(model: Path, out: Path, text: Path, limit: int, more: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run `mcq llm quantize` in a process of its own under the limit."""
    settings = "--codebooks 1 --codebook-bits 6 --tokens 4096 --window 512 --batch 1".split()
    command = [sys.executable, "-c", CODE, "llm", "quantize", str(model), "--out", str(out), "--calibration", str(text)]

    def restrict() -> None:
        # The stacks of threads count in full, used or not.
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
        resource.setrlimit(resource.RLIMIT_DATA, (limit * 1_000_000, limit * 1_000_000))

    # So do the buffers that every thread of a BLAS takes.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *settings, *more], check=False, capture_output=True, preexec_fn=restrict, env=env)


if __name__ == "__main__":
    main()
