"""The commands `mcq llm quantize` and `mcq llm eval`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from mcq.errors import ConfigError

# torch and transformers take seconds to import; `mcq --help` must not wait for them.
app = typer.Typer(
    help="Quantize and evaluate language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with; default: all cores.")]


@app.command("quantize")
def quantize_command(
    model: Annotated[str, typer.Argument(help="Hugging Face id, folder, or .gguf file.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist or be empty.")] = None,
    bits: Annotated[int, typer.Option(help="Bits per weight: so many 8-bit codebooks over groups of 8.")] = 2,
    codebooks: Annotated[int | None, typer.Option(help="Number of codebooks, instead of what --bits says.")] = None,
    codebook_bits: Annotated[int | None, typer.Option(help="Bits per code, instead of 8.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Inputs per group, instead of 8.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="UTF-8 text file; default: Python's own documentation.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens.")] = 32 * 1024,
    window: Annotated[int, typer.Option(help="Tokens per calibration sequence.")] = 1024,
    batch: Annotated[int, typer.Option(help="Sequences run together; bounds the memory.")] = 2,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    threads: Threads = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=codebooks:3,bits:8,group:8,scale:row or PATTERN=dense; the last match wins."),
    ] = None,
    target: Annotated[str, typer.Option(help="What layers reproduce: original or quantized (see docs).")] = "original",
    correction: Annotated[float, typer.Option(help="How far to go towards the original outputs, 0 to 1.")] = 0.5,
    precision: Annotated[str, typer.Option(help="Of the calibration pass: float32 or bfloat16.")] = "float32",
    dense: Annotated[bool, typer.Option("--dense", help="Write ordinary weights instead of AQLM codes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Quantize every linear layer in the blocks of a model."""
    _set_up(threads)
    from mcq_llm.config import Options, Override, Setting
    from mcq_llm.plan import plan_table, predict_seconds
    from mcq_llm.run import prepare, run
    from mcq_llm.text import read_text

    standard = Setting.of_bits(bits)
    options = Options(
        setting=Setting(
            codebooks=standard.codebooks if codebooks is None else codebooks,
            bits=standard.bits if codebook_bits is None else codebook_bits,
            group=standard.group if group_size is None else group_size,
        ),
        overrides=tuple(Override.parse(text) for text in override or []),
        tokens=tokens,
        window=window,
        batch=batch,
        seed=seed,
        dense=dense,
        target=target,
        correction=correction,
        precision=precision,
    )
    if dry_run:
        plan = prepare(model, read_text(calibration), options).plan
        typer.echo(plan_table(plan, predict_seconds(plan)))
    elif out is None:
        raise ConfigError("give --out FOLDER to write to, or --dry-run to see the plan only")
    else:
        run(model, read_text(calibration), options, out)
        typer.echo(f"wrote {out}")


@app.command("eval")
def eval_command(
    model: Annotated[str, typer.Argument(help="Hugging Face id, folder (also a quantized one), or .gguf file.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file; default: Python's own documentation.")] = None,
    windows: Annotated[int, typer.Option(min=1, help="Number of windows.")] = 8,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 1024,
    threads: Threads = None,
) -> None:
    """Measure the perplexity of a model, and print the protocol with it."""
    _set_up(threads)
    from mcq_llm.evaluate import evaluate
    from mcq_llm.load import load_dense
    from mcq_llm.text import read_text

    loaded, tokenizer = load_dense(model)
    typer.echo(evaluate(loaded, tokenizer, read_text(text), windows, window))


def _set_up(threads: int | None) -> None:
    from mcq_llm.memory import return_freed_memory

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return_freed_memory()
    if threads is not None:
        import torch

        import mcq_ext

        mcq_ext.set_num_threads(threads)
        torch.set_num_threads(threads)
