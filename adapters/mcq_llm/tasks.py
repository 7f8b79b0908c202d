"""Benchmarks of the Language Model Evaluation Harness (lm-eval) on a model that is already in memory.

The command of the harness would load the checkpoint itself, with the slow kernels for its codes; here it gets
the loaded model, whose layers are ordinary ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq.errors import ConfigError


@dataclass(frozen=True)
class Score:
    """One metric of one task, with the harness's standard error (None where it has none)."""

    task: str
    version: str
    shots: int
    metric: str
    value: float
    error: float | None


@dataclass(frozen=True)
class TaskScores:
    """Scores, and what a comparison needs: they moved between versions of the harness.

    Attributes
    ----------
    harness : str
        Version of lm-eval.
    limit : int or None
        Examples per task; None for all, and nothing else may be compared with published numbers.
    scores : tuple of Score
    """

    harness: str
    limit: int | None
    scores: tuple[Score, ...]

    def __str__(self) -> str:
        examples = "all examples" if self.limit is None else f"the first {self.limit} examples of each task"
        lines = [f"lm-eval {self.harness}, {examples}"]
        for s in self.scores:
            error = "" if s.error is None else f" +- {s.error:.4f}"
            lines.append(f"{s.task} (version {s.version}, {s.shots} shots)  {s.metric}  {s.value:.4f}{error}")
        return "\n".join(lines)


def find_tasks(tasks: Sequence[str], folder: Path | None = None) -> list[str]:
    """Return the names without blanks, if lm-eval is installed and knows all these tasks.

    Raises
    ------
    ConfigError
        If not.
    """
    try:
        import lm_eval
        import lm_eval.models.huggingface
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tasks need lm-eval, but {error.name} is not installed; run: pip install 'multicodebook[lm-eval]'"
        ) from None
    names = [task.strip() for task in tasks]
    unknown = sorted(set(names) - set(_manager(folder).all_tasks))
    if unknown:
        raise ConfigError(f"lm-eval {lm_eval.__version__} has no task {unknown[0]!r}; run: lm-eval ls tasks")
    return names


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int | None = None,
    folder: Path | None = None,
    batch: int = 1,
) -> TaskScores:
    """Run tasks of lm-eval, each with its own number of shots.

    Parameters
    ----------
    model : PreTrainedModel
        Of `mcq_llm.load_dense`.
    tokenizer : PreTrainedTokenizerBase
    tasks : sequence of str
        Names of tasks or groups, such as ``arc_easy``.
    limit : int, optional
        Use so many examples of each task only.
    folder : Path, optional
        With YAML files of further tasks.
    batch : int
        Requests run together.

    Raises
    ------
    ConfigError
        If lm-eval is not installed, knows no such task, or cannot work with the tokenizer.
    """
    names = find_tasks(tasks, folder)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ConfigError("lm-eval needs a tokenizer with a BOS or EOS token, but this one has neither; add one to it")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    found = lm_eval.simple_evaluate(model=harness, tasks=names, limit=limit, task_manager=_manager(folder))
    return TaskScores(lm_eval.__version__, limit, tuple(_scores(found)))


def _manager(folder: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder))


def _scores(found: dict[str, Any]) -> list[Score]:
    """Flatten the harness's results, whose keys look like ``acc,none`` and ``acc_stderr,none``."""
    scores = []
    for task, values in found["results"].items():
        version, shots = str(found["versions"].get(task, "?")), int(found["n-shot"].get(task) or 0)
        for key, value in values.items():
            metric, comma, variant = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{variant}")
            label = metric if variant == "none" else f"{metric} ({variant})"
            number = isinstance(error, float)
            scores.append(Score(task, version, shots, label, float(value), error if number else None))
    return scores
