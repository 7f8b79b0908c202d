"""A whole run of end-to-end tuning: from two checkpoints to a third."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mcq.errors import InputError
from mcq.validate import in_range
from mcq_llm.coded_model import CodedModel, load_coded
from mcq_llm.config import Options
from mcq_llm.device import own_device
from mcq_llm.distill import DistillOptions, DistillReport, distill
from mcq_llm.export import export
from mcq_llm.load import load_dense
from mcq_llm.precision import compute_type
from mcq_llm.storage import new_folder
from mcq_llm.teacher import Teacher, ask
from mcq_llm.text import spread_windows, tokenize, tokenizer_hash


def run(
    folder: Path,
    reference: str | Path,
    text: str,
    options: DistillOptions,
    out: Path,
    tokens: int | None = None,
    window: int = 512,
    top_k: int = 128,
    cache: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> DistillReport:
    """Tune a quantized model and write it to the folder `out`, completely or not at all.

    Parameters
    ----------
    folder : Path
        Of the quantized model.
    reference : str or Path
        The original; see `mcq_llm.load.load`.
    text : str
        To calibrate on. Sequences that are not trained on are taken from it, too.
    options : DistillOptions
    out : Path
    tokens : int, optional
        Of the text to use, spread over all of it; without it all.
    window : int
        Tokens per sequence.
    top_k, cache
        See `mcq_llm.teacher.ask`.
    seed : int
    device : {"auto", "cpu", "cuda"}
        "auto" is "cuda" where there is a GPU.

    Returns
    -------
    DistillReport
        Also written to ``tune.json``.
    """
    place: Any = own_device(device)
    with new_folder(out) as partial:
        model, tokenizer, stored = load_coded(folder)
        original, other = load_dense(reference)
        if tokenizer_hash(tokenizer) != tokenizer_hash(other):
            raise InputError(f"{folder} and {reference} must have the same vocabulary; give the original of {folder}")
        ids = tokenize(tokenizer, text)
        sequences = (len(ids) if tokens is None else tokens) // in_range(window, 2, None, "window")
        windows = spread_windows(ids, max(sequences, 1), window)
        teacher: Teacher = ask(original.to(place), windows, top_k, options.precision, cache, options.micro_batch)
        del original
        student = CodedModel(model.to(place), stored, compute_type(place, options.precision))
        report = distill(student, teacher, options, seed)
        stored = student.finish()
        setting = next(iter(stored.values())).setting
        calibrated = Options(setting, tokens=windows.numel(), window=window, seed=seed)  # for the card
        export(model.cpu(), tokenizer, stored, partial, calibrated, Path(out).name)
        (partial / "tune.json").write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    return report
