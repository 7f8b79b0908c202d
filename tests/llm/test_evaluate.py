import copy
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from mcq.errors import ConfigError, InputError
from mcq_llm.evaluate import evaluate, perplexity
from mcq_llm.protocols import PROTOCOLS, choose, cut
from mcq_llm.text import spread_windows, text_hash, tokenize

BOS = 188  # the byte tokenizer's name for byte 0


@pytest.fixture
def bos_tokenizer(tokenizer):
    """Has a token for the beginning of a sequence, but does not put it there."""
    found = copy.deepcopy(tokenizer)
    found.bos_token = found.convert_ids_to_tokens(BOS)
    return found


@pytest.fixture
def putting_tokenizer(bos_tokenizer):
    """Puts it there."""
    token = bos_tokenizer.bos_token
    bos_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, BOS)]
    )
    return bos_tokenizer


def loss(model, ids, position):
    """Of the token at `position`, from a run of the window as far as it is needed."""
    with torch.inference_mode():
        scores = model(ids[None, :position]).logits[0, -1].log_softmax(-1)
    return -float(scores[ids[position]])


def test_every_position_but_the_first_of_a_window_is_scored(make_model, tokenizer, text):
    model = make_model("llama")
    result = evaluate(model, tokenizer, text, windows=3, window=20)
    ids = tokenize(tokenizer, text)
    losses = [loss(model, ids[start : start + 20], position) for start in (0, 20, 40) for position in range(1, 20)]
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert result.perplexity == pytest.approx(perplexity(model, ids[:60].reshape(3, 20)), rel=1e-12)
    assert result.scored == len(losses) == 57
    assert result.protocol == "consecutive-windows-v1"


def test_the_default_protocol_stays_what_it_was():
    default = choose()
    assert (default.name, default.window, default.windows) == ("consecutive-windows-v1", 1024, 8)
    assert (default.scored, default.bos, default.stride) == ("all but the first", "as tokenized", 1024)


@pytest.mark.parametrize(
    ("protocol", "starts", "first"),
    [
        ("consecutive-windows-v1", [0, 8, 16, 24, 32, 40, 48, 56], [1] * 8),
        ("full-text-v1", range(0, 72, 8), [1] * 9),
        ("second-half-v1", range(0, 72, 8), [5] * 9),
        ("strided-v1", range(0, 68, 4), [1] + [4] * 16),
    ],
)
def test_protocols_score_the_positions_that_they_name(make_model, tokenizer, text, protocol, starts, first):
    model = make_model("llama")
    ids = tokenize(tokenizer, text[:75])
    found = cut(choose(protocol, window=8), tokenizer, text[:75])
    torch.testing.assert_close(found.ids, torch.stack([ids[start : start + 8] for start in starts]))
    assert list(found.first) == list(first)
    losses = [
        loss(model, ids[start : start + 8], position)
        for start, begin in zip(starts, first, strict=True)
        for position in range(begin, 8)
    ]
    result = evaluate(model, tokenizer, text[:75], window=8, protocol=protocol)
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert (result.windows, result.scored, result.tokens) == (len(list(starts)), len(losses), 75)


def test_strided_windows_score_every_token_but_the_first_once(tokenizer, text):
    found = cut(choose("strided-v1", window=10), tokenizer, text[:50])
    scored = [5 * k + i for k, first in enumerate(found.first) for i in range(first, 10)]
    assert scored == list(range(1, 50))


def test_bos_before_each_window_leaves_no_token_unscored(bos_tokenizer, text):
    found = cut(choose("full-text-bos-v1", window=11), bos_tokenizer, text[:47])
    assert found.ids[:, 0].tolist() == [BOS] * 4
    assert torch.equal(found.ids[:, 1:].flatten(), tokenize(bos_tokenizer, text)[:40])
    assert found.scored == 40


def test_bos_before_each_window_needs_a_bos(tokenizer, text):
    with pytest.raises(ConfigError, match=r"full-text-bos-v1 puts BOS .* the tokenizer has no such token"):
        cut(choose("full-text-bos-v1", window=8), tokenizer, text)


def test_bos_takes_the_first_place_only_with_tokenizers_that_put_it(tokenizer, bos_tokenizer, text):
    rule = choose("second-half-v1", window=8)
    plain = cut(rule, tokenizer, text)
    assert torch.equal(cut(rule, bos_tokenizer, text).ids, plain.ids)


def test_bos_takes_the_first_place(putting_tokenizer, text):
    found = cut(choose("second-half-v1", window=8), putting_tokenizer, text)
    ids = tokenize(putting_tokenizer, text)
    assert ids[0] == BOS
    assert found.ids[:, 0].tolist() == [BOS] * (len(ids) // 8)
    assert torch.equal(found.ids[3, 1:], ids[25:32])


def test_documents_are_joined_by_a_blank_line(make_model, tokenizer, text):
    one, two = (evaluate(make_model("llama"), tokenizer, t, windows=2, window=8) for t in (f"{text}\n\nb", [text, "b"]))
    assert one == two
    assert two.text == text_hash(f"{text}\n\nb")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_names_everything_that_a_comparison_needs(make_model, putting_tokenizer, text, name):
    result = evaluate(make_model("llama"), putting_tokenizer, text, windows=1, window=8, protocol=name)
    printed = str(result)
    for word in ("perplexity", "window", "stride", "scored", "tokenizer", "text", "4001"):
        assert word in printed
    for value in (name, result.positions, result.bos, result.tokenizer, result.text):
        assert value in printed


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


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_empty_text_is_refused(make_model, bos_tokenizer, name):
    with pytest.raises(InputError, match="but the text has 0; give a longer text"):
        evaluate(make_model("llama"), bos_tokenizer, "", window=8, protocol=name)


def test_the_longest_text_that_is_too_short_for_overlapping_windows(tokenizer):
    rule = choose("strided-v1", windows=3, window=10)
    assert len(cut(rule, tokenizer, "x" * 20).ids) == 3
    with pytest.raises(InputError, match="3 windows of 10 tokens = 20 tokens, but the text has 19"):
        cut(rule, tokenizer, "x" * 19)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "wikitext"}, "consecutive-windows-v1"),
        ({"windows": 0}, "windows must be an integer of at least 1, got 0"),
        ({"window": 3}, "window must be an integer of at least 4, got 3"),
        ({"window": 129}, "must fit the model's context of 128 tokens, got 129"),
    ],
)
def test_wrong_choices_are_refused(make_model, tokenizer, text, arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(make_model("gpt2"), tokenizer, text, **arguments)


def test_a_model_that_computes_nan_is_refused(make_model, tokenizer, text):
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="the model must compute numbers, but computes NaN"):
        evaluate(model, tokenizer, text, windows=1, window=8)


def test_calibration_windows_are_spread_over_the_whole_text():
    windows = spread_windows(torch.arange(100), 4, 10)
    assert windows[:, 0].tolist() == [0, 30, 60, 90]
    assert windows[-1].tolist() == list(range(90, 100))
