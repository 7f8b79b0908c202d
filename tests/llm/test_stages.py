import pytest
import torch
from torch import nn

from mcq_llm.stages import run_stage


class Branches(nn.Module):
    """Two layers on one input, a third on their product, and experts chosen by the sign of the first entry."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.plus, self.minus = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.c(self.a(x) * self.b(x))
        chosen, total = x[:, 0] > 0, x
        for expert, rows in ((self.plus, chosen), (self.minus, ~chosen)):
            if rows.any():
                total = total.index_add(0, rows.nonzero()[:, 0], expert(x[rows]))
        return total


@pytest.fixture
def model():
    return Branches().requires_grad_(False)


def walk(model, batches, names="a b c plus minus"):
    """Run all stages; return their names, and by layer the first receiver and the inputs of each batch."""
    unfinished = {name: model.get_submodule(name) for name in names.split()}
    stages, received = [], {}
    calls = [lambda x=x: model(x) for x in batches]
    while stage := run_stage(
        calls, unfinished, lambda batch, name, first, x: received.setdefault(name, {}).update({batch: (first, x)})
    ):
        stages.append(stage)
        for name in stage:
            unfinished.pop(name).weight.mul_(0.5)
    return stages, received


def test_stages_follow_from_what_depends_on_what(model):
    stages, received = walk(model, [torch.randn(50, 4), torch.randn(60, 4)])
    assert stages == [["a", "b"], ["c"], ["plus", "minus"]]
    assert {first for first, _ in received["b"].values()} == {"a"}
    assert {first for first, _ in received["minus"].values()} == {"minus"}


def test_inputs_come_from_the_finished_layers(model):
    batches = [torch.randn(5, 4), torch.randn(6, 4)]
    _, received = walk(model, batches, "a b c")  # halves their weights as it goes
    for batch, x in enumerate(batches):
        torch.testing.assert_close(received["c"][batch][1], model.a(x) * model.b(x))


def test_experts_that_only_later_batches_use_are_found(model):
    x = torch.randn(50, 4)
    chosen = model.c(model.a(x) * model.b(x))[:, 0] > 0
    stages, received = walk(model, [x[chosen], x[~chosen]], "plus minus")
    assert stages == [["plus", "minus"]]
    assert list(received["plus"]) == [0]
    assert list(received["minus"]) == [1]


def test_a_pass_ends_when_the_stage_has_its_inputs(model):
    computed = []
    model.c.register_forward_pre_hook(lambda *_: computed.append(1))
    run_stage([lambda: model(torch.randn(3, 4))] * 5, {"a": model.a, "b": model.b, "c": model.c}, lambda *_: None)
    assert len(computed) == 1  # in the first pass, which must see all there is


def test_nothing_is_left_behind(model):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_stage([lambda: model(torch.randn(2, 9))], {"a": model.a}, lambda *_: None)
    assert not model.a._forward_pre_hooks
    assert not model.a.weight.requires_grad


def test_layers_that_never_compute_end_the_walk(model):
    idle = nn.Linear(4, 4).requires_grad_(False)
    assert run_stage([lambda: model(torch.randn(2, 4))], {"idle": idle}, lambda *_: None) == []
