import threading

import pytest
import torch
from torch import nn

from mcq.errors import InputError
from mcq_llm.stepping import step_through


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))


def calls_of(model, batches):
    return [lambda x=x: model(x) for x in batches]


def waiting_threads():
    return [thread for thread in threading.enumerate() if type(thread).__module__ == "mcq_llm.stepping"]


def test_pauses_before_each_layer_and_sees_changes_made_meanwhile(model):
    batches = [torch.randn(2, 3), torch.randn(6, 3)]
    layers = {"first": model[0], "second": model[2]}
    seen = []
    for name, values in step_through(calls_of(model, batches), layers):
        seen.append(name)
        if name:
            expected = batches if name == "first" else [model[:2](x) for x in batches]
            with torch.no_grad():
                layers[name].weight.mul_(2)
        else:
            expected = [model(x) for x in batches]
        for value, right in zip(values, expected, strict=True):
            torch.testing.assert_close(value, right)
    assert seen == ["first", "second", ""]


def test_nothing_is_left_behind_when_the_caller_stops_half_way(model):
    steps = step_through(calls_of(model, [torch.randn(2, 3)] * 3), {"second": model[2]})
    next(steps)
    steps.close()
    assert not waiting_threads()
    assert not model[2]._forward_pre_hooks


def test_an_error_in_a_pass_reaches_the_caller(model):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(step_through(calls_of(model, [torch.randn(2, 3), torch.randn(2, 9)]), {"second": model[2]}))
    assert not waiting_threads()


def test_layers_chosen_by_the_data_are_refused(model):
    calls = [lambda: model[0](torch.zeros(1, 3)), lambda: model[2](torch.zeros(1, 4))]
    with pytest.raises(InputError, match=r"depends on the data.*\['first', 'second'\]"):
        list(step_through(calls, {"first": model[0], "second": model[2]}))
