import torch

from mcq_llm.bias import corrected_bias


def problem():
    torch.manual_seed(0)
    weight, inputs = torch.randn(5, 8), 1 + torch.randn(100, 8)
    return weight, weight + 0.1 * torch.randn(5, 8), torch.randn(5), inputs


def test_mean_output_is_restored():
    weight, decoded, bias, x = problem()
    corrected = corrected_bias(bias, weight, decoded, x.mean(0))
    torch.testing.assert_close((x @ decoded.T + corrected).mean(0), (x @ weight.T + bias).mean(0))


def test_drift_of_the_inputs_is_made_up_for():
    weight, decoded, bias, x = problem()
    drifted = x + 0.5
    corrected = corrected_bias(bias, weight, decoded, drifted.mean(0), x.mean(0))
    torch.testing.assert_close((drifted @ decoded.T + corrected).mean(0), (x @ weight.T + bias).mean(0))


def test_a_layer_without_bias_gets_none():
    weight, decoded, _, x = problem()
    assert corrected_bias(None, weight, decoded, x.mean(0)) is None
