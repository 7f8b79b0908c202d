"""A whole run: from the name of a model to a finished checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mcq_llm.card import Facts
from mcq_llm.checkpoint import Checkpoint, fingerprint
from mcq_llm.config import Options
from mcq_llm.export import finish
from mcq_llm.html_report import write_report
from mcq_llm.plan import plan_digest
from mcq_llm.prepare import prepare
from mcq_llm.prepared import Prepared
from mcq_llm.quantize import BlockReport, LayerReport, quantize
from mcq_llm.storage import MEASURED, resumable_folder, write_bytes
from mcq_llm.summary import LINES
from mcq_llm.world import joined

TUNING = "tuning.jsonl"


def run(
    source: str | Path,
    text: str,
    options: Options,
    out: Path,
    *,
    resume: bool = False,
    stream: bool = False,
    spill: Path | None = None,
    cache: Path | None = None,
    show: Callable[[Prepared], None] = lambda prepared: None,
) -> None:
    """Quantize a model and write it to the folder `out`, completely or not at all.

    Started by torchrun, the processes share the work, and the first one does all reading and writing of `out`.

    Parameters
    ----------
    source : str or Path
        See `load`.
    text : str
        To calibrate on.
    options : Options
    out : Path
        Must not exist or be empty. Until it is complete it is called ``OUT.partial``.
    resume : bool
        Whether to go on with ``OUT.partial``, if an earlier run was interrupted.
    stream, spill
        See `prepare`.
    cache : Path, optional
        Folder for the measurements that a budget is shared out by; without it they are in `out`.
    show : callable
        Called with what was prepared, before the work begins.

    Raises
    ------
    InputError, ConfigError
        Before any work, for whatever could fail later.
    """
    with joined() as world, resumable_folder(out, resume) if world.first else nullcontext(Path(out)) as folder:
        kept = cache or folder / MEASURED
        prepared = prepare(source, text, options, stream=stream, spill=spill, world=world, cache=kept)
        show(prepared)
        write(prepared, folder, name=Path(out).name)


def write(prepared: Prepared, folder: Path, name: str) -> None:
    """Quantize a prepared model in place; the first process writes a checkpoint called `name` into `folder`."""
    model, blocks, options, world = prepared.model, prepared.blocks, prepared.options, prepared.world
    identity = world.from_first(lambda: fingerprint(model, blocks, prepared.windows, options))
    identity |= {"plan": plan_digest(prepared.plan)}  # a file of sensitivities may have changed
    checkpoint = Checkpoint(folder, model, blocks, prepared.plan, options.format, identity)

    def take_up() -> bool:
        """Return whether an earlier run came to its end; else make its reports agree with its parts."""
        checkpoint.open()
        if not checkpoint.complete:
            _drop_unfinished(folder / LINES, lambda line: checkpoint.has_layer(line["layer"]))
            _drop_unfinished(folder / TUNING, lambda line: checkpoint.has_block(blocks.number(line["block"])))
        return checkpoint.complete

    def report(line: LayerReport | BlockReport) -> None:
        with open(folder / (LINES if isinstance(line, LayerReport) else TUNING), "a", encoding="utf-8") as file:
            file.write(line.to_json() + "\n")

    complete = world.from_first(take_up)
    if not complete:
        quantize(prepared, checkpoint, report)
    if not world.first:
        return
    if not complete:
        finish(checkpoint, model, prepared.tokenizer, prepared.plan, options.format)
        Facts.of(model, prepared.tokenizer, options, name, prepared.text).save(folder)
        write_report(folder)
    checkpoint.seal()


def _drop_unfinished(path: Path, finished: Callable[[dict[str, Any]], bool]) -> None:
    """Drop what a killed run reported but did not finish; it reports a layer first and writes it then."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if finished(json.loads(line)):
                kept.append(line)
        except ValueError:  # cut off
            continue
    if kept:
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
    else:
        path.unlink(missing_ok=True)
