import math

import pytest
import torch

from mcq.errors import InputError
from mcq_llm.evaluate import PROTOCOL, evaluate
from mcq_llm.text import spread_windows, tokenize


def test_every_position_but_the_first_of_a_window_is_scored(make_model, tokenizer, text):
    model = make_model("llama")
    result = evaluate(model, tokenizer, text, windows=3, window=20)
    losses = []
    for start in (0, 20, 40):
        ids = tokenize(tokenizer, text)[start : start + 20]
        with torch.inference_mode():
            scores = model(ids[None]).logits[0].log_softmax(-1)
        losses += [-float(scores[i, ids[i + 1]]) for i in range(19)]
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert result.scored == len(losses) == 57
    assert result.protocol == PROTOCOL


def test_names_everything_that_a_comparison_needs(make_model, tokenizer, text):
    printed = str(evaluate(make_model("llama"), tokenizer, text, windows=1, window=8))
    for word in ("perplexity", "protocol", "windows", "window", "scored", "tokenizer", "text"):
        assert word in printed


def test_hashes_follow_the_text(make_model, tokenizer, text):
    model = make_model("llama")
    a, b = (evaluate(model, tokenizer, t, windows=1, window=8) for t in (text, text + "."))
    assert a.tokenizer == b.tokenizer
    assert a.text != b.text


def test_a_short_text_is_refused_with_both_numbers(make_model, tokenizer):
    message = "needs 8 windows of 16 tokens = 128 tokens, but the text has 100"
    with pytest.raises(InputError, match=f"evaluation {message}"):
        evaluate(make_model("llama"), tokenizer, "x" * 100, windows=8, window=16)
    with pytest.raises(InputError, match=f"calibration {message}"):
        spread_windows(tokenize(tokenizer, "x" * 100), 8, 16)


def test_calibration_windows_are_spread_over_the_whole_text():
    windows = spread_windows(torch.arange(100), 4, 10)
    assert windows[:, 0].tolist() == [0, 30, 60, 90]
    assert windows[-1].tolist() == list(range(90, 100))
