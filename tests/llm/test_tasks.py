import importlib.util
import json

import pytest
from typer.testing import CliRunner

from mcq.errors import ConfigError
from mcq_llm.cli import app
from mcq_llm.load import load_dense
from mcq_llm.tasks import find_tasks, run_tasks

TASK = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 3.0}
"""


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """One task of three questions; nothing about it is fetched."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    examples = [{"question": "abc", "choices": ["d", "zz"], "answer": i % 2} for i in range(3)]
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    (tmp_path / "letters.yaml").write_text(TASK % (tmp_path / "letters.jsonl"))
    return tmp_path


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_harness_the_error_says_what_to_install():
    with pytest.raises(ConfigError, match=r"lm_eval is not installed; run: pip install 'multicodebook\[lm-eval\]'"):
        find_tasks(["arc_easy"])
    done = CliRunner().invoke(app, ["eval", "./missing", "--tasks", "arc_easy"])
    assert "pip install 'multicodebook[lm-eval]'" in str(done.exception)


@pytest.fixture
def loaded(folders):
    model, tokenizer = load_dense(folders["llama"])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    return model, tokenizer


def test_a_task_runs_on_the_loaded_model(loaded, task_folder):
    found = run_tasks(*loaded, ["letters"], folder=task_folder)
    (score,) = found.scores
    assert (score.task, score.metric, score.shots, score.version) == ("letters", "acc", 0, "3.0")
    # The question is the same each time, and so is the answer: it is right either once or twice.
    assert score.value in (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert score.error > 0
    assert "all examples" in str(found)


def test_a_limit_is_reported(loaded, task_folder):
    found = run_tasks(*loaded, ["letters"], limit=1, folder=task_folder)
    assert found.scores[0].value in (0, 1)
    assert "the first 1 examples" in str(found)


def test_a_tokenizer_without_special_tokens_is_refused(folders, task_folder):
    with pytest.raises(ConfigError, match="needs a tokenizer with a BOS or EOS token"):
        run_tasks(*load_dense(folders["llama"]), ["letters"], folder=task_folder)


def test_an_unknown_task_is_refused(task_folder):
    with pytest.raises(ConfigError, match="has no task 'nonsense'"):
        find_tasks(["letters", " nonsense "], task_folder)
