"""The file that `mcq llm eval --json` writes, and reports and cards read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mcq.errors import FormatError, InputError
from mcq_llm.activations import Rates
from mcq_llm.divergence import Comparison
from mcq_llm.evaluate import Evaluation
from mcq_llm.tasks import TaskScores

FORMAT = 1


@dataclass(frozen=True)
class Results:
    """Everything that was measured of one model.

    Attributes
    ----------
    model : str
        As it was named on the command line.
    original : str or None
    evaluation : Evaluation
    comparison : Comparison or None
        With the original; its ``model`` is `evaluation`.
    tasks : TaskScores or None
    rates : Rates or None
        If activations were coded, too.
    """

    model: str
    original: str | None
    evaluation: Evaluation
    comparison: Comparison | None = None
    tasks: TaskScores | None = None
    rates: Rates | None = None

    def __str__(self) -> str:
        parts = [self.comparison or self.evaluation, self.rates, self.tasks]
        return "\n\n".join(str(part) for part in parts if part is not None)

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        Path(path).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """Read what `Results.save` wrote, as plain dictionaries.

    Raises
    ------
    InputError
        If there is no such file.
    FormatError
        If it is something else, or newer than this version.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; write it by: mcq llm eval MODEL --json {path}"
        ) from None
    except ValueError as error:
        raise FormatError(f"{path} must be what `mcq llm eval --json` writes, but is no JSON: {error}") from None
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise FormatError(
            f"{path} must be what `mcq llm eval --json` of this version writes (format {FORMAT}), got format "
            f"{version!r}; evaluate the model again"
        )
    return found
