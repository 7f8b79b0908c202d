"""The report of a quantized folder: report.html, one file that needs nothing else, and report.json, its numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mcq.errors import ConfigError
from mcq_llm.card import Facts, write_card
from mcq_llm.rendering import environment
from mcq_llm.results import read_results
from mcq_llm.summary import Summary, summarize

FORMAT = 1


def write_report(folder: Path, evaluation: Path | None = None) -> list[Path]:
    """Write report.json, README.md and report.html into the folder of a quantized model.

    Parameters
    ----------
    folder : Path
        With quantize.jsonl; safetensors files and quantization.json are used if they are there. README.md is
        written only where quantization.json tells what was done.
    evaluation : Path, optional
        File of `mcq llm eval --json`.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InputError, FormatError
        If a file is missing or damaged.
    ConfigError
        If matplotlib is not installed; the other files are written all the same.
    """
    folder = Path(folder)
    summary = summarize(folder)
    results = None if evaluation is None else read_results(evaluation)
    facts = Facts.load(folder)
    if facts is not None:  # the folder of a run at work has another name than that of its result
        summary = replace(summary, name=facts.name)
    data = folder / "report.json"
    data.write_text(json.dumps(_numbers(summary, facts, results), indent=2) + "\n", encoding="utf-8")
    written = [data] if facts is None else [data, write_card(folder, facts, results)]
    page = folder / "report.html"
    page.write_text(_page(summary, facts, results), encoding="utf-8")
    return [*written, page]


def _numbers(summary: Summary, facts: Facts | None, results: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        **asdict(summary),
        "quantization": None if facts is None else asdict(facts),
        "evaluation": results,
    }


def _page(summary: Summary, facts: Facts | None, results: dict[str, Any] | None) -> str:
    try:
        from mcq_llm.plots import error_panels
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"report.html needs {error.name}, which is not installed; run: pip install 'multicodebook[report]', "
            f"then: mcq llm report FOLDER"
        ) from None
    template = environment().get_template("report.html")
    return template.render(
        summary=summary,
        facts=facts,
        evaluation=results,
        panels=error_panels(summary),
        labels=_labels(list(summary.kinds)),
        largest=max(line.error_after for line in summary.lines),
        settings=sorted({line.setting for line in summary.lines}),
        peak=max(line.peak_megabytes for line in summary.lines),
    )


def _labels(kinds: list[str]) -> dict[str, str]:
    """Return the last part of each name where that is enough to tell the kinds apart."""
    last = [kind.rpartition(".")[2] for kind in kinds]
    return {kind: end if last.count(end) == 1 else kind for kind, end in zip(kinds, last, strict=True)}
