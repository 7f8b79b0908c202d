"""A whole run: from the name of a model to a finished checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcq_llm.checkpoint import Checkpoint, fingerprint
from mcq_llm.config import Options
from mcq_llm.export import describe
from mcq_llm.html_report import write_report
from mcq_llm.prepare import Prepared, prepare
from mcq_llm.quantize import BlockReport, LayerReport, quantize
from mcq_llm.storage import resumable_folder, write_bytes

LAYERS, TUNING = "quantize.jsonl", "tuning.jsonl"


def run(
    source: str | Path,
    text: str,
    options: Options,
    out: Path,
    *,
    resume: bool = False,
    stream: bool = False,
    spill: Path | None = None,
) -> None:
    """Quantize a model and write it to the folder `out`, completely or not at all.

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

    Raises
    ------
    InputError, ConfigError
        Before any work, for whatever could fail later.
    """
    with resumable_folder(out, resume) as folder:
        write(prepare(source, text, options, stream=stream, spill=spill), folder, name=Path(out).name)


def write(prepared: Prepared, folder: Path, name: str) -> None:
    """Quantize a prepared model in place, and write a checkpoint called `name` into `folder`."""
    model, blocks, options = prepared.model, prepared.blocks, prepared.options
    checkpoint = Checkpoint(
        folder, model, blocks, prepared.plan, options.dense, fingerprint(model, blocks, prepared.windows, options)
    )
    if not checkpoint.complete:
        _drop_unfinished(folder / LAYERS, lambda line: checkpoint.has_layer(line["layer"]))
        _drop_unfinished(folder / TUNING, lambda line: checkpoint.has_block(blocks.number(line["block"])))

        def report(line: LayerReport | BlockReport) -> None:
            with open(folder / (LAYERS if isinstance(line, LayerReport) else TUNING), "a", encoding="utf-8") as file:
                file.write(line.to_json() + "\n")

        quantize(prepared, checkpoint, report)
        describe(prepared, checkpoint.write_shards(), folder, name)
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
