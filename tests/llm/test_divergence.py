import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from typer.testing import CliRunner

import mcq_llm
from mcq.errors import FormatError, InputError
from mcq_llm.cli import app
from mcq_llm.divergence import KL, compare, compare_tokens, in_bfloat16, mean_and_error
from mcq_llm.protocols import choose, cut
from mcq_llm.results import read_results
from mcq_llm.text import tokenizer_hash


@pytest.fixture
def pair(make_model):
    """A model and one that is a little off."""
    original = make_model("qwen2")
    model = copy.deepcopy(original)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight += 0.05 * torch.randn(64, 128)
    return model, original


class Fixed(nn.Module):
    """Gives the same logits at every position."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, ids, use_cache):
        return SimpleNamespace(logits=self.logits.expand(1, ids.shape[1], -1))


def log(*probabilities):
    return [math.log(p) if p else -math.inf for p in probabilities]


def measured(p, q, windows):
    return compare_tokens(Fixed(log(*p)), {"other": Fixed(log(*q))}, windows)[0]


@pytest.fixture
def zeros(tokenizer):
    """Two windows of four tokens, all of them number 0."""
    return cut(choose(windows=2, window=4), tokenizer, tokenizer.decode([0]) * 8)


def test_the_divergence_of_known_distributions(zeros):
    found = measured([0.5, 0.25, 0.25], [0.25, 0.5, 0.25], zeros)
    assert found.shape == (6, 4)
    kl = 0.5 * math.log(2) - 0.25 * math.log(2)
    expected = torch.tensor([kl, 0.0, math.log(4), math.log(2)], dtype=torch.float64).expand(6, 4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_token_that_the_original_excludes_adds_nothing(zeros):
    found = measured([0.5, 0.5, 0.0], [0.25, 0.25, 0.5], zeros)
    torch.testing.assert_close(found[:, KL], torch.full((6,), math.log(2), dtype=torch.float64))
    assert (measured([0.5, 0.5, 0.0], [0.5, 0.5, 0.0], zeros)[:, KL] == 0).all()


def test_a_token_that_only_the_other_excludes_is_infinitely_far(zeros):
    assert (measured([0.5, 0.5], [1.0, 0.0], zeros)[:, KL] == math.inf).all()


def test_all_numbers_follow_from_the_logits(pair, tokenizer, text):
    model, original = pair
    found = compare(model, tokenizer, original, tokenizer, text, windows=5, window=16)
    ids = cut(choose(windows=5, window=16), tokenizer, text).ids
    with torch.inference_mode():
        p, q = (m(ids).logits[:, :-1].double().log_softmax(-1) for m in (original, model))
    kl = (p.exp() * (p - q)).sum(-1).flatten().numpy()
    assert found.divergence.mean == pytest.approx(kl.mean(), rel=1e-4)
    for name, level in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("maximum", 1)):
        assert getattr(found.divergence, name) == pytest.approx(np.quantile(kl, level), rel=1e-4)
    assert found.divergence.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert 0 < found.divergence.top1 < 1
    assert found.log_ratio == pytest.approx(math.log(found.model.perplexity / found.original.perplexity), abs=1e-9)
    alone = mcq_llm.evaluate(model, tokenizer, text, windows=5, window=16)
    assert found.model.perplexity == pytest.approx(alone.perplexity, rel=1e-6)


def test_equal_models_do_not_differ(make_model, tokenizer, text):
    model = make_model("llama")
    found = compare(model, tokenizer, model, tokenizer, text, windows=2, window=16, noise_floor=False)
    assert (found.divergence.maximum, found.divergence.top1) == (0, 1)
    assert (found.log_ratio, found.log_ratio_error) == (0, 0)
    assert found.noise is None


def test_slices_change_nothing(pair, tokenizer, text, monkeypatch):
    model, original = pair
    windows = cut(choose(windows=2, window=16), tokenizer, text)
    whole = compare_tokens(original, {"model": model}, windows)[0]
    monkeypatch.setattr("mcq_llm.divergence.SLICE", 700)  # two rows of 256 logits
    torch.testing.assert_close(compare_tokens(original, {"model": model}, windows)[0], whole, rtol=1e-12, atol=0)


def test_the_noise_floor_is_that_of_bfloat16(make_model, tokenizer, text):
    original = make_model("llama")
    before = copy.deepcopy(original.state_dict())
    found = compare(original, tokenizer, original, tokenizer, text, windows=2, window=32)
    assert 0 < found.noise.median < found.noise.p99 <= found.noise.maximum < 0.01
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
    rounded = in_bfloat16(original)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in rounded.buffers()} == {torch.float32}


def test_tied_weights_stay_tied_in_bfloat16(make_model):
    rounded = in_bfloat16(make_model("qwen2"))
    assert rounded.lm_head.weight is rounded.model.embed_tokens.weight


def test_rounding_of_the_measurement_is_far_below_the_noise_floor(make_model, tokenizer, text):
    original = make_model("llama")
    windows = cut(choose(windows=2, window=32), tokenizer, text)
    others = {"double": copy.deepcopy(original).double(), "half": in_bfloat16(original)}
    precise, rounded = compare_tokens(original, others, windows)
    assert precise[:, KL].abs().mean() < 1e-6 * rounded[:, KL].mean()


def test_the_standard_error_is_that_of_independent_windows(tokenizer):
    windows = cut(choose("strided-v1", windows=3, window=8), tokenizer, "x" * 16)  # 7 + 4 + 4 scored
    values = torch.arange(15, dtype=torch.float64) ** 1.5
    sums = [float((part - values.mean()).sum()) for part in (values[:7], values[7:11], values[11:])]
    mean, error = mean_and_error(values, windows)
    assert mean == pytest.approx(float(values.mean()))
    assert error == pytest.approx(math.sqrt(3 / 2 * sum(s * s for s in sums)) / 15)


def test_the_standard_error_covers_the_truth(tokenizer):
    """Windows with a mean of their own: an error that took tokens as independent would be three times too small."""
    windows = cut(choose(windows=40, window=11), tokenizer, "x" * 440)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(300, 40, 1, generator=generator) + torch.randn(300, 40, 10, generator=generator)
    results = [mean_and_error(draw.flatten().double(), windows) for draw in draws]
    within = sum(abs(mean) < 1.96 * error for mean, error in results) / 300
    assert 0.9 < within < 0.98


def test_one_window_tells_no_error(pair, tokenizer, text):
    model, original = pair
    found = compare(model, tokenizer, original, tokenizer, text, windows=1, window=16, noise_floor=False)
    assert found.log_ratio_error is found.divergence.error is None
    assert "unknown" in str(found)


def test_different_vocabularies_of_tokenizers_are_refused(pair, tokenizer, text):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    with pytest.raises(InputError) as refused:
        compare(pair[0], tokenizer, pair[1], other, text, windows=1, window=8)
    for name in (tokenizer_hash(tokenizer), tokenizer_hash(other), "same tokenizer"):
        assert name in str(refused.value)


def test_tokenizers_that_cut_differently_with_one_vocabulary_are_refused(pair, tokenizer):
    other = copy.deepcopy(tokenizer)
    first = other.convert_ids_to_tokens(0)
    other.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    with pytest.raises(InputError, match="they make 32 and 33 tokens"):
        compare(pair[0], tokenizer, pair[1], other, "x" * 32, windows=1, window=8)


def test_models_over_different_vocabularies_are_refused(zeros):
    with pytest.raises(InputError, match="other scores 3 tokens and the original 2"):
        measured([0.5, 0.5], [0.5, 0.25, 0.25], zeros)


@pytest.mark.parametrize(("broken", "name"), [(0, "the model"), (1, "the original")])
def test_nan_is_refused_by_the_name_of_the_model(pair, tokenizer, text, broken, name):
    with torch.no_grad():
        pair[broken].model.norm.weight[0] = torch.nan
    with pytest.raises(InputError, match=f"^{name} must compute numbers, but computes NaN"):
        compare(pair[0], tokenizer, pair[1], tokenizer, text, windows=1, window=8)


def test_on_the_command_line(folders, pair, tokenizer, text, tmp_path):
    model, _ = pair
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(text)
    arguments = ["eval", tmp_path / "model", "--reference", folders["qwen2"], "--text", tmp_path / "text.txt"]
    arguments += ["--protocol", "second-half-v1", "--windows", 3, "--window", 32, "--json", tmp_path / "out.json"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    found = read_results(tmp_path / "out.json")
    assert found["evaluation"] == found["comparison"]["model"]
    assert found["comparison"]["divergence"]["mean"] > found["comparison"]["noise"]["mean"] > 0
    for word in ("second-half-v1", "noise floor", "ln ratio", str(found["evaluation"]["perplexity"])):
        assert word in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "none"], "protocol must be"),
        (["--json", "nowhere/out.json"], "the folder nowhere of --json must exist"),
    ],
)
def test_the_command_refuses_before_it_loads_a_model(arguments, message):
    done = CliRunner().invoke(app, ["eval", "./missing", *arguments])
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is no JSON"), ("[]", "format None"), ('{"format": 2}', "format 2")]
)
def test_foreign_results_are_refused(tmp_path, content, message):
    path = tmp_path / "out.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=message):
        read_results(path)
    with pytest.raises(InputError, match="No such file"):
        read_results(tmp_path / "missing.json")
