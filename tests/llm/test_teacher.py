import numpy as np
import pytest
import torch

from mcq.errors import ConfigError
from mcq_llm import halves
from mcq_llm.halves import hidden_states, logits
from mcq_llm.precision import compute_type
from mcq_llm.teacher import ask, divergence


@pytest.fixture
def pair(make_model, windows):
    """A model, and the logits of another one."""
    model, student = make_model("llama"), make_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * parameter.std() * torch.randn_like(parameter) if parameter.ndim == 2 else 0
        model.lm_head.weight *= 20  # as sharp as real predictions are
        return model, student(windows).logits.flatten(0, 1)


def full_divergence(model, windows, scores):
    with torch.no_grad():
        expected = model(windows).logits.flatten(0, 1).log_softmax(1)
    return (expected.exp() * (expected - scores.log_softmax(1))).sum(1)


def found_divergence(model, windows, scores, top_k):
    teacher = ask(model, windows, top_k, precision="float32")
    return divergence(scores, *teacher.targets(list(range(len(windows)))))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_both_halves_together_are_the_model(make_model, windows, kind):
    model = make_model(kind)
    with torch.no_grad():
        hidden = hidden_states(model, windows)
        torch.testing.assert_close(logits(model, hidden.flatten(0, 1)), model(windows).logits.flatten(0, 1))
        torch.testing.assert_close(hidden_states(model, windows), hidden)


def test_the_divergence_over_the_whole_vocabulary_is_the_full_one(pair, windows):
    model, scores = pair
    torch.testing.assert_close(
        found_divergence(model, windows, scores, 256), full_divergence(model, windows, scores), rtol=2e-3, atol=1e-4
    )


def test_fewer_tokens_give_a_lower_bound_that_rises_with_them(pair, windows):
    model, scores = pair
    by_k = torch.stack([found_divergence(model, windows, scores, k) for k in (1, 4, 16, 64, 256)])
    assert (by_k.diff(dim=0) > -2e-3).all()
    assert by_k.min() > -1e-4
    assert by_k[0].mean() < 0.8 * by_k[-1].mean()


def test_no_divergence_from_itself(pair, windows):
    model, _ = pair
    with torch.no_grad():
        scores = model(windows).logits.flatten(0, 1)
    assert found_divergence(model, windows, scores, 8).abs().max() < 1e-4


def test_gradients_are_finite_when_nothing_remains(windows):
    scores = torch.zeros(3, 5)
    scores[:, 0] = 100
    scores.requires_grad_()
    logprobs = scores.detach().log_softmax(1)
    rest = torch.full((3, 1), -torch.inf)
    divergence(scores, torch.arange(5).expand(3, 5), torch.cat([logprobs, rest], 1)).sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_slices_do_not_change_the_records(make_model, windows, monkeypatch):
    model = make_model("llama")
    whole = ask(model, windows, 8, precision="float32", batch=1)
    monkeypatch.setattr(halves, "LOGITS", 256 * 5)
    sliced = ask(model, windows, 8, precision="float32", batch=4)
    # Near ties may come in another order.
    np.testing.assert_allclose(whole.records["logprob"], sliced.records["logprob"], atol=1e-2)
    np.testing.assert_allclose(whole.records["rest"], sliced.records["rest"], atol=1e-3)


def test_records_on_disk_are_those_in_memory_and_are_used_again(make_model, windows, tmp_path, monkeypatch):
    model = make_model("llama")
    held = ask(model, windows, 8)
    written = ask(model, windows, 8, cache=tmp_path)
    np.testing.assert_array_equal(held.records, written.records)
    monkeypatch.setattr(model, "forward", None)  # not called again
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(ask(model, windows, 8, cache=tmp_path).records, held.records)


def test_another_model_or_text_has_other_records(make_model, windows, tmp_path):
    model = make_model("llama")
    ask(model, windows, 8, cache=tmp_path)
    ask(model, windows[:2], 8, cache=tmp_path)
    ask(model, windows, 4, cache=tmp_path)
    with torch.no_grad():
        model.lm_head.weight += 1
    ask(model, windows, 8, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_precision_by_name(make_model):
    cpu = torch.device("cpu")
    assert compute_type(cpu, "float32") == torch.float32
    assert compute_type(cpu, "bfloat16") == torch.bfloat16
    assert compute_type(cpu, "auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(ConfigError):
        compute_type(cpu, "half")
