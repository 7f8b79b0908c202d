"""The commands `mcq llm quantize`, `mcq llm eval`, `mcq llm report` and `mcq llm rotate`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcq.errors import ConfigError, InputError
from mcq.validate import in_range, one_of

if TYPE_CHECKING:
    from mcq_llm.overrides import Value
    from mcq_llm.setting import Setting

# torch and transformers take seconds to import; `mcq --help` must not wait for them.
app = typer.Typer(
    help="Quantize and evaluate language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads of each process; default: all cores, shared fairly.")]
Device = Annotated[str, typer.Option(help="Where the model computes: auto (a GPU if there is one), cpu, or cuda.")]


@app.command("quantize")
def quantize_command(
    model: Annotated[str, typer.Argument(help="Hugging Face id, folder, or .gguf file.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist or be empty.")] = None,
    codec: Annotated[str, typer.Option(help="Kind of codes (see docs).")] = "additive",
    bits: Annotated[
        float | None, typer.Option(help="Bits per weight (see docs for what is counted); default: 2.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the whole model, such as 60MB, instead of --bits.")] = None,
    allocate: Annotated[
        bool, typer.Option("--allocate", help="Choose the setting of each layer within --bits.")
    ] = False,
    sensitivity: Annotated[
        str | None, typer.Option(help="What errors count: see docs, or a JSON file; default: fisher.")
    ] = None,
    tie: Annotated[
        bool, typer.Option("--tie", help="One setting for layers with the same input, as q, k and v.")
    ] = False,
    bands: Annotated[
        int | None,
        typer.Option(
            help="Cut each layer into so many bands of equally important rows, with settings of their own; default: 1."
        ),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(help="How often settings are chosen, by what errors count with those chosen before; default: 1."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for what an allocation measures.")] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Rotate the rows of weights before they are coded.")] = False,
    codebooks: Annotated[int | None, typer.Option(help="Number of codebooks, instead of what --bits says.")] = None,
    codebook_bits: Annotated[int | None, typer.Option(help="With codebooks: bits per code, instead of 8.")] = None,
    codebook_dtype: Annotated[str | None, typer.Option(help="float16, or int8, which takes half.")] = None,
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
    target: Annotated[
        str, typer.Option(help="What layers reproduce: original, block or quantized (see docs).")
    ] = "original",
    correction: Annotated[
        float | None, typer.Option(help="How far to go towards the original outputs, 0 to 1; default: 0.5.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the calibration pass: auto, float32 or bfloat16.")] = "auto",
    device: Device = "auto",
    tune: Annotated[str, typer.Option(help="After each block: none, bias, or block (see docs).")] = "none",
    epochs: Annotated[int | None, typer.Option(help="With --tune block: passes over the calibration text.")] = None,
    lookahead: Annotated[
        int | None,
        typer.Option(help="With --tune block: how many further blocks an error is seen through; default: 0."),
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="aqlm, mcq or dense; default: aqlm for additive codes, else mcq.")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Write ordinary weights, like --format dense.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in OUT.partial.")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read weights block by block, for models larger than memory.")
    ] = False,
    spill: Annotated[Path | None, typer.Option(help="Keep activations in this folder instead of in memory.")] = None,
) -> None:
    """Quantize every linear layer in the blocks of a model."""
    _set_up(threads)
    from mcq_llm.codecs import CODECS
    from mcq_llm.config import Budget, Options
    from mcq_llm.memory import return_freed_memory
    from mcq_llm.overrides import Override
    from mcq_llm.prepare import described, prepare
    from mcq_llm.run import run
    from mcq_llm.text import read_text
    from mcq_llm.tune import TuneOptions
    from mcq_llm.world import is_first

    if dense and file_format not in (None, "dense"):
        raise ConfigError(f"--dense and --format {file_format} contradict each other; leave out one of them")
    if size is not None and bits is not None:
        raise ConfigError("--size and --bits are two ways to say the same; leave out one of them")
    tuning = {"epochs": epochs, "lookahead": lookahead}
    _require(tune == "block", "--tune block", tuning)
    _require(target != "quantized", "another --target", {"correction": correction})
    if stream:
        # Weights come and go block by block: small ones, too, would leave holes in the heap that never fill again.
        return_freed_memory(1 << 17)
    kind = CODECS[one_of(codec, CODECS, "--codec")]
    bits = in_range(2.0 if bits is None else bits, 0.0, None, "--bits")
    allocated = allocate or size is not None or not kind.reaches(bits)
    room: dict[str, float] = {"bits": bits} if size is None else {"size": Budget.parse_size(size)}
    shared = {"sensitivity": sensitivity, "tie": tie or None, "bands": bands, "passes": passes}
    _require(allocated, "an allocation: --allocate, a fraction of a bit, or --size", shared | {"cache": cache})
    details = {"codebooks": codebooks, "bits": codebook_bits, "group": group_size, "dtype": codebook_dtype}
    setting = _setting(kind() if allocated else kind.of_bits(bits), details | {"rotate": rotate or None}, allocated)
    options = Options(
        setting=setting,
        overrides=tuple(Override.parse(text) for text in override or []),
        tokens=tokens,
        window=window,
        batch=batch,
        seed=seed,
        budget=Budget(**room, **_given(shared)) if allocated else None,  # type: ignore[arg-type]
        format="dense"
        if dense
        else file_format or ("aqlm" if codec == "additive" and not rotate and not allocated else "mcq"),
        target=target,
        precision=precision,
        device=device,
        tune=tune,
        tuning=TuneOptions(**_given(tuning)),
        **_given({"correction": correction}),
    )
    if dry_run:
        prepared = prepare(model, read_text(calibration), options, stream=stream, cache=cache)
        typer.echo(described(prepared))
    elif out is None:
        raise ConfigError("give --out FOLDER to write to, or --dry-run to see the plan only")
    else:
        run(
            model,
            read_text(calibration),
            options,
            out,
            resume=resume,
            stream=stream,
            spill=spill,
            cache=cache,
            show=lambda prepared: typer.echo(described(prepared)) if is_first() and prepared.allocation else None,
        )
        if is_first():
            typer.echo(f"wrote {out}")


@app.command("eval")
def eval_command(
    model: Annotated[str, typer.Argument(help="Hugging Face id, folder (also a quantized one), or .gguf file.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file; default: Python's own documentation.")] = None,
    reference: Annotated[str | None, typer.Option(help="The original model: also report the divergence to it.")] = None,
    protocol: Annotated[str, typer.Option(help="What is scored; see the documentation.")] = "consecutive-windows-v1",
    windows: Annotated[int | None, typer.Option(help="Number of windows, instead of the protocol's.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens per window, instead of the protocol's.")] = None,
    noise_floor: Annotated[bool, typer.Option(help="Also compare the reference with itself in bfloat16.")] = True,
    activations: Annotated[
        str | None, typer.Option(help="Also code the inputs of layers: pyramid:16,23,3 or shell:16,76,3 (see docs).")
    ] = None,
    rotate_activations: Annotated[bool, typer.Option(help="Rotate these inputs before they are coded.")] = True,
    tasks: Annotated[str | None, typer.Option(help="Tasks of lm-eval, separated by commas.")] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Folder with further tasks of lm-eval.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples per task; default: all.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the results here, for `mcq llm report`.")] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Measure perplexity, divergence from the original, and tasks; print the protocol with the numbers."""
    _set_up(threads)
    from mcq_llm.activations import activation_quantizer, coded_activations
    from mcq_llm.device import own_device
    from mcq_llm.divergence import compare
    from mcq_llm.evaluate import evaluate
    from mcq_llm.load import load_dense
    from mcq_llm.protocols import choose
    from mcq_llm.results import Results
    from mcq_llm.tasks import find_tasks, run_tasks
    from mcq_llm.text import read_text

    # Refuse before a model is loaded what can be.
    choose(protocol, windows, window)
    names = find_tasks(tasks.split(","), task_folder) if tasks else []
    if json is not None and not json.parent.is_dir():
        raise InputError(f"the folder {json.parent} of --json must exist; make it, or name another file")
    quantizer = None if activations is None else activation_quantizer(activations, rotate_activations)
    content = read_text(text)
    place = own_device(device)
    loaded, tokenizer = load_dense(model)
    loaded.to(place)  # type: ignore[arg-type]
    comparison = None
    with nullcontext() if quantizer is None else coded_activations(loaded, quantizer) as tally:
        if reference is None:
            evaluation = evaluate(loaded, tokenizer, content, windows, window, protocol)
        else:
            original, other = load_dense(reference)
            original.to(place)  # type: ignore[arg-type]
            comparison = compare(loaded, tokenizer, original, other, content, windows, window, protocol, noise_floor)
            evaluation = comparison.model
        scores = run_tasks(loaded, tokenizer, names, limit, task_folder) if names else None
    rates = None if tally is None else tally.rates(model)
    results = Results(model, reference, evaluation, comparison, scores, rates)
    typer.echo(results)
    if json is not None:
        results.save(json)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder that `mcq llm quantize` wrote.")],
    evaluation: Annotated[Path | None, typer.Option(help="Results that `mcq llm eval --json` wrote.")] = None,
) -> None:
    """Write report.html, report.json and the model card of a quantized model anew, with evaluation results."""
    from mcq_llm.html_report import write_report

    for path in write_report(folder, evaluation):
        typer.echo(f"wrote {path}")


@app.command("rotate")
def rotate_command(
    model: Annotated[str, typer.Argument(help="Hugging Face id, folder, or .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    seed: Annotated[int, typer.Option(help="Same seed, same rotations.")] = 0,
    threads: Threads = None,
) -> None:
    """Write the same model with rotated weights, which suit codebooks that are not learned."""
    _set_up(threads)
    from mcq_llm.rotate import rotate_checkpoint

    rotate_checkpoint(model, out, seed)
    typer.echo(f"wrote {out}")


def _setting(standard: Setting, details: Mapping[str, Value | None], allocated: bool) -> Setting:
    """Return the standard setting with the details that are given."""
    from mcq_llm.codecs import AdditiveSetting
    from mcq_llm.overrides import changed

    chosen = {"codebooks": details["codebooks"], "codebook-bits": details["bits"]}
    _require(not allocated, "one setting for all layers, or an --override: an allocation chooses them", chosen)
    _require(isinstance(standard, AdditiveSetting), "codebooks, which these codes do not have", chosen)
    return changed(standard, _given(details))


def _given(options: Mapping[str, Value | None]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _require(met: bool, what: str, options: Mapping[str, object]) -> None:
    """Refuse options that are given and would do nothing."""
    names = [f"--{name}" for name, value in options.items() if value is not None]
    if names and not met:
        raise ConfigError(f"{' and '.join(names)} must go with {what}; add that, or leave out {names[0]}")


def _set_up(threads: int | None) -> None:
    from transformers.utils.logging import disable_progress_bar

    from mcq_llm.memory import return_freed_memory
    from mcq_llm.world import fair_threads, is_first

    logging.basicConfig(level=logging.WARNING if is_first() else logging.ERROR, format="%(message)s")
    if not is_first():
        disable_progress_bar()
    return_freed_memory()
    threads = threads or fair_threads()
    if threads is not None:
        import torch

        import mcq_ext

        mcq_ext.set_num_threads(threads)
        torch.set_num_threads(threads)


from mcq_llm import cli_tune  # noqa: E402, F401 (adds a command)
