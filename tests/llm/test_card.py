import dataclasses

import pytest
import yaml

import mcq_llm
from mcq.errors import FormatError
from mcq_llm.card import Facts, write_card
from mcq_llm.config import Budget
from mcq_llm.divergence import compare
from mcq_llm.results import Results, read_results
from mcq_llm.tasks import Score, TaskScores
from mcq_llm.text import tokenizer_hash


@pytest.fixture
def facts(make_model, tokenizer):
    def build(name_or_path="", **options):
        model = make_model("llama")
        model.config.name_or_path = name_or_path
        return Facts.of(model, tokenizer, mcq_llm.Options(**options), "tiny-2bit", "0123456789abcdef")

    return build


@pytest.fixture
def results(make_model, tokenizer, text, tmp_path):
    model = make_model("llama")
    found = compare(model, tokenizer, model, tokenizer, text, windows=2, window=8)
    tasks = TaskScores("0.4.13", 50, (Score("arc_easy", "1.0", 0, "acc", 0.625, 0.0123),))
    Results("tiny", "original", found.model, found, tasks).save(tmp_path / "eval.json")
    return read_results(tmp_path / "eval.json")


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_says_what_the_hub_asks_for(facts, tmp_path):
    found = front_matter(write_card(tmp_path, facts("owner/model-7B")).read_text())
    assert found["base_model"] == "owner/model-7B"
    assert found["base_model_relation"] == "quantized"
    assert found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "text-generation"
    assert "aqlm" in found["tags"]


@pytest.mark.parametrize("path", ["/home/somebody/models/llama", "models/llama/7b", "", "./llama"])
def test_a_path_on_a_disk_is_not_published(facts, tmp_path, path):
    built = facts(path)
    built.save(tmp_path)
    card = write_card(tmp_path, built).read_text()
    assert "base_model" not in front_matter(card)
    assert not path or path not in card + (tmp_path / "quantization.json").read_text()


def test_a_folder_that_looks_like_an_id_is_a_folder(facts, tmp_path, monkeypatch):
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert facts("owner/model").base_model is None


@pytest.mark.parametrize(
    ("budget", "codes"),
    [
        (Budget(bits=2.5), "shell rotated, settings chosen within 2.5 bits per weight"),
        (Budget(size=60_000_000), "shell rotated, settings chosen within 60,000,000 bytes in all"),
        (None, "shell 3 g16 rotated"),
    ],
)
def test_codes_are_those_of_the_layers(facts, tmp_path, budget, codes):
    card = write_card(tmp_path, facts(setting=mcq_llm.ShellSetting(3.0, rotate=True), budget=budget, format="mcq"))
    assert f"| codes | {codes} |" in card.read_text()


def test_how_to_load_codes_and_weights(facts, tmp_path):
    codes = write_card(tmp_path, facts()).read_text()
    assert 'from_pretrained("tiny-2bit", dtype=torch.float32)' in codes
    assert "`aqlm` and `accelerate`" in codes
    assert "NUMBA_NUM_THREADS=1" in codes
    weights = write_card(tmp_path, facts(format="dense")).read_text()
    assert 'from_pretrained("tiny-2bit", dtype=torch.float16)' in weights
    assert "aqlm" not in weights


def test_what_was_done_is_on_the_card(facts, tokenizer, tmp_path):
    overrides = tuple(map(mcq_llm.Override.parse, ("q_proj|k_proj=codebooks:3,group:16", "down_proj=dense")))
    card = write_card(tmp_path, facts(overrides=overrides, tokens=4096, window=512, seed=7)).read_text()
    for line in (
        "| codes | 2x8 g8 |",
        "| layers matching `q_proj\\|k_proj` | codebooks 3, group 16 |",
        "| layers matching `down_proj` | not quantized |",
        "| calibration | 4096 tokens in windows of 512 |",
        "| calibration text | SHA-256 0123456789abcdef… |",
        f"| tokenizer | SHA-256 {tokenizer_hash(tokenizer)}… |",
        "| seed | 7 |",
    ):
        assert line in card.splitlines()


def test_an_evaluation_comes_with_its_protocol(facts, results, tmp_path):
    card = write_card(tmp_path, facts(), results).read_text()
    evaluation = results["evaluation"]
    for words in (
        f"| perplexity | {evaluation['perplexity']:#.5g} | {evaluation['perplexity']:#.5g} |",
        "| ln(perplexity / original) | 0.00 ± 0.0 | 0 |",
        "| same first choice as the original | 100.0 % |",
        "Protocol consecutive-windows-v1: 2 windows of 8 tokens, 8 apart, scored all but the first, BOS",
        evaluation["tokenizer"],
        evaluation["text"],
        "| arc_easy (version 1.0) | 0 | acc | 0.6250 ± 0.0123 |",
        "**only the first 50 examples of each task**",
    ):
        assert words in card
    assert "has not been measured" in card


def test_without_one_the_card_says_so(facts, tmp_path):
    card = write_card(tmp_path, facts()).read_text()
    assert "None is recorded here" in card
    assert "How much has not been measured" in card


def test_tables_are_whole(facts, results, tmp_path):
    """Every row of a table has the columns of its head."""
    card = write_card(tmp_path, facts(), results).read_text()
    for block in card.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.replace("\\|", "").count("|") for row in rows}) <= 1, block


def test_facts_are_read_as_they_were_written(facts, tmp_path):
    assert Facts.load(tmp_path) is None
    built = facts("owner/model", overrides=(mcq_llm.Override.parse("q_proj=dense"),))
    built.save(tmp_path)
    loaded = Facts.load(tmp_path)
    assert write_card(tmp_path, loaded).read_text() == write_card(tmp_path, built).read_text()
    assert dataclasses.replace(loaded, options={}) == dataclasses.replace(built, options={})


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}'])
def test_damaged_facts_are_refused(tmp_path, content):
    (tmp_path / "quantization.json").write_text(content)
    with pytest.raises(FormatError, match=r"quantization.json must be what"):
        Facts.load(tmp_path)
