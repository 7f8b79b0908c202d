"""The command `mcq llm tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcq_llm.cli import Device, Threads, _set_up, app


@app.command("tune")
def tune_command(
    folder: Annotated[Path, typer.Argument(help="A quantized model, written with `--format aqlm`.")],
    reference: Annotated[str, typer.Option(help="The original: Hugging Face id, folder, or .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    calibration: Annotated[
        Path | None, typer.Option(help="UTF-8 text file; default: Python's own documentation.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Calibration tokens; default: the whole text.")] = None,
    window: Annotated[int, typer.Option(help="Tokens per calibration sequence.")] = 512,
    epochs: Annotated[float, typer.Option(help="Passes over the calibration text.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Largest step relative to the size of a parameter.")] = 0.002,
    batch: Annotated[int, typer.Option(help="Sequences per step.")] = 1,
    micro_batch: Annotated[int, typer.Option(help="Sequences run together; bounds the memory.")] = 1,
    held_out: Annotated[int, typer.Option(help="Sequences not trained on, which choose the best state.")] = 16,
    top_k: Annotated[int, typer.Option(help="Tokens per position whose probability is compared one by one.")] = 128,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Tune embeddings and head, too.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, a third more time: recompute activations.")
    ] = False,
    precision: Annotated[str, typer.Option(help="Of matrix products: auto, float32 or bfloat16.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Folder to keep the original's predictions in.")] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    threads: Threads = None,
) -> None:
    """Tune a quantized model end to end towards the predictions of the original."""
    _set_up(threads)
    from mcq_llm.distill import DistillOptions
    from mcq_llm.distill_run import run
    from mcq_llm.text import read_text

    options = DistillOptions(
        epochs=epochs,
        learning_rate=learning_rate,
        batch=batch,
        micro_batch=micro_batch,
        held_out=held_out,
        embeddings=embeddings,
        checkpointing=checkpointing,
        precision=precision,
    )
    text = read_text(calibration)
    report = run(folder, reference, text, options, out, tokens, window, top_k, cache, seed, device)
    typer.echo(f"divergence from the original, held out: {report.before:.4f} before, {report.after:.4f} after")
    typer.echo(f"wrote {out}")
