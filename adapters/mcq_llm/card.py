"""The model card: README.md of a quantized checkpoint, with the front matter that Hugging Face reads."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq.errors import FormatError
from mcq_llm.config import Options
from mcq_llm.rendering import environment
from mcq_llm.summary import LINES, Summary, summarize
from mcq_llm.text import tokenizer_hash

FACTS = "quantization.json"


@dataclass(frozen=True)
class Facts:
    """What was done to a model, as written to quantization.json.

    Attributes
    ----------
    name : str
        Of the checkpoint.
    base_model : str or None
        Hugging Face id of the original. None for one that came from a folder or file.
    format : str
        "aqlm", "mcq" or "dense".
    options : dict
        Of `mcq_llm.Options`, with the setting as text.
    tokenizer, calibration_text : str, str or None
        16 hexadecimal digits of the SHA-256 of vocabulary and calibration text.
    versions : dict of str to str
        Of the packages that did it.
    """

    name: str
    base_model: str | None
    format: str
    options: dict[str, Any]
    tokenizer: str
    calibration_text: str | None
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: Options,
        name: str,
        calibration_text: str | None = None,
    ) -> Facts:
        """Gather the facts of a run; `calibration_text` is its `mcq_llm.text.text_hash`."""
        return cls(
            name=name,
            base_model=_hub_id(model.config.name_or_path or ""),
            format=options.format,
            options={**asdict(options), "setting": _codes(options)},
            tokenizer=tokenizer_hash(tokenizer),
            calibration_text=calibration_text,
            versions={package: version(package) for package in ("multicodebook", "transformers", "torch")},
        )

    @property
    def written(self) -> str:
        """What the checkpoint holds, in words."""
        return {"aqlm": "AQLM codes", "mcq": "codes of multicodebook", "dense": "ordinary weights"}[self.format]

    def save(self, folder: Path) -> None:
        """Write quantization.json."""
        (folder / FACTS).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Facts | None:
        """Read quantization.json; None if there is none.

        Raises
        ------
        FormatError
            If it is something else.
        """
        path = folder / FACTS
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise FormatError(f"{path} must be what `mcq llm quantize` writes, but: {error}; remove it") from None


def _codes(options: Options) -> str:
    """Return what layers are stored as, in words."""
    setting, budget = options.setting, options.budget
    if budget is None:
        return str(setting)
    room = f"{budget.size:,} bytes in all" if budget.bits is None else f"{budget.bits:g} bits per weight"
    return f"{setting.codec}{' rotated' if setting.rotate else ''}, settings chosen within {room}"


def _hub_id(name: str) -> str | None:
    """Return `name` if it is an id on the hub; a path on somebody's disk does not belong on a card."""
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists() else None


def write_card(folder: Path, facts: Facts, evaluation: dict[str, Any] | None = None) -> Path:
    """Write README.md.

    Parameters
    ----------
    folder : Path
        Errors, bits and sizes are taken from its files, if they are there.
    facts : Facts
    evaluation : dict, optional
        Of `mcq_llm.results.read_results`.

    Returns
    -------
    Path
        Of the file.
    """
    summary = summarize(folder) if (folder / LINES).exists() else None
    data = ModelCardData(
        base_model=facts.base_model,
        base_model_relation="quantized" if facts.base_model else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_tags(facts, summary),
    )
    body = (
        environment()
        .get_template("card.md")
        .render(front_matter=data.to_yaml(), facts=facts, summary=summary, evaluation=evaluation)
    )
    path = folder / "README.md"
    path.write_text(body, encoding="utf-8")
    return path


def _tags(facts: Facts, summary: Summary | None) -> list[str]:
    bits = [f"{summary.total.bits_payload:.3g}-bit"] if summary else []
    return [
        *([facts.format] if facts.format != "dense" else []),
        "quantized",
        *(["additive-quantization"] if facts.format == "aqlm" else []),
        *bits,
    ]
