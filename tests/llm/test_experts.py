"""Mixtures of experts, fused into one parameter or in a list of modules."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import mcq_llm
from mcq_llm import borrow
from mcq_llm.baseline import round_to_nearest
from mcq_llm.blocks import find_blocks, fused_experts, get_weight, set_weight
from mcq_llm.calibrate import Stream, calibrated_stages
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.load import load
from mcq_llm.plan import make_plan, plan_table
from mcq_llm.prepared import Prepared
from mcq_llm.run import run, write

SIZES = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "num_experts_per_tok": 2,
}  # fmt: skip
FOUR = {"num_experts": 4, "moe_intermediate_size": 32}
DEEPSEEK = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
NEMOTRON = {
    "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "moe_shared_expert_intermediate_size": 32, "layers_block_type": ["moe", "attention"], "mamba_num_heads": 4,
    "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8, "head_dim": 16,
}  # fmt: skip
CONFIGS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": FOUR | {"head_dim": 16},
    "qwen2_moe": FOUR | {"shared_expert_intermediate_size": 48},
    "olmoe": {"num_experts": 4},
    "deepseek_v3": DEEPSEEK,  # a dense first block
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},  # biases; transposed; gate and up interleaved
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},  # transposed
    "nemotron_h": NEMOTRON,  # no gate
}
OPTIONS = mcq_llm.Options(mcq_llm.AdditiveSetting(1, 4, 4, "row"), tokens=192, window=32, format="dense")


def build(kind, **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(SIZES | CONFIGS[kind] | changes))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")) or parameter.ndim == 3:
                parameter.normal_(std=0.3)
            if "router" in name or name.endswith("gate.weight"):
                parameter.normal_()
    return model


def quantized(model, tokenizer, windows, folder, **options):
    """Quantize `model` in place and write it; return the report lines by layer."""
    options, blocks = (
        mcq_llm.Options(**{"setting": OPTIONS.setting, "format": "dense", "window": 32} | options),
        find_blocks(model),
    )
    folder.mkdir(exist_ok=True)
    write(Prepared(model, tokenizer, blocks, make_plan(blocks, options), windows, options), folder, name="tiny")
    lines = [json.loads(line) for line in (folder / "quantize.jsonl").read_text().splitlines()]
    return {line["layer"]: line for line in lines}


def starve(model, block, expert):
    """Make sure that a Mixtral router never chooses `expert`: two of the first four always have a positive score."""
    with torch.no_grad():
        router = model.model.layers[block].mlp.gate.weight
        router[:4] = router[0] * torch.tensor([1, 1.5, -1, -1.5])[:, None]
        router[expert] = 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_taken_apart_a_model_computes_the_same_and_is_whole_again_afterwards(windows, kind):
    model, untouched = build(kind), build(kind)
    blocks = find_blocks(model)
    with torch.inference_mode():
        expected = untouched(windows).logits
        for index in range(2):
            with blocks.loaded(index) as block:
                assert not fused_experts(block)
                torch.testing.assert_close(model(windows).logits, expected, atol=1e-5, rtol=0)
                assert block.state_dict().keys() == untouched.get_submodule(blocks.name)[index].state_dict().keys()
        assert torch.equal(model(windows).logits, expected)
    assert list(model.state_dict()) == list(untouched.state_dict())


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_written_into_a_layer_is_written_into_the_parameter(kind):
    model = build(kind)
    blocks = find_blocks(model)
    fused = dict(model.named_parameters())
    for index in range(2):
        with blocks.loaded(index):
            for layer in blocks.layers(index).values():
                set_weight(layer, torch.zeros_like(get_weight(layer)))
    left = [name for name, tensor in fused.items() if tensor.ndim == 3 and tensor.any() and "conv" not in name]
    assert left == []


@pytest.mark.parametrize("kind", CONFIGS)
def test_stock_transformers_loads_exactly_what_was_quantized(tokenizer, windows, tmp_path, kind):
    model = build(kind)
    lines = quantized(model, tokenizer, windows, tmp_path)
    assert any(".experts.3.down_proj" in name for name in lines)
    loaded, _ = load(tmp_path)
    found = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name
    with torch.inference_mode():
        assert torch.equal(loaded(windows).logits, model(windows).logits)


def logit_error(model, original, windows):
    with torch.inference_mode():
        return (model(windows).logits - original(windows).logits).square().mean().item()


def test_a_mixture_comes_closer_to_the_original_than_by_rounding_to_nearest(tokenizer, windows, tmp_path):
    original, model, rounded = build("qwen3_moe"), build("qwen3_moe"), build("qwen3_moe")
    lines = quantized(model, tokenizer, windows, tmp_path, setting=mcq_llm.AdditiveSetting(2, 4, 4, "row"))
    blocks = find_blocks(rounded)
    for index in range(2):
        with blocks.loaded(index):
            for layer in blocks.layers(index).values():
                set_weight(layer, round_to_nearest(get_weight(layer), 2))
    assert logit_error(model, original, windows) < 0.7 * logit_error(rounded, original, windows)
    assert all(line["error_after"] < line["error_before"] for line in lines.values())


def test_every_expert_is_quantized_and_those_that_few_tokens_reach_borrow_some(tokenizer, windows, tmp_path):
    model = build("mixtral", num_local_experts=12)
    starve(model, 0, 5)
    lines = quantized(model, tokenizer, windows, tmp_path)
    assert len(lines) == 2 * (4 + 12 * 3)
    first = {name: line for name, line in lines.items() if ".0.mlp.experts." in name}
    starved = first["model.layers.0.mlp.experts.5.up_proj"]
    assert (starved["tokens"], starved["borrowed"]) == (0, 192)  # all there are; 4 * 96 would be enough
    for line in first.values():
        assert line["tokens"] + line["borrowed"] == 192
        assert 0 < line["error_after"] < 1
    assert lines["model.layers.0.self_attn.q_proj"]["tokens"] == 192
    assert lines["model.layers.0.self_attn.q_proj"]["borrowed"] == 0


def mixture_of(model, windows, batch=2):
    blocks = find_blocks(model)
    stream = Stream(model, blocks, windows, batch, torch.float32)
    return blocks, stream


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_borrowed_tokens_change_no_output_and_do_not_depend_on_the_batch(monkeypatch, windows, batch):
    monkeypatch.setattr(borrow, "ENOUGH", 1)
    model = build("mixtral", num_local_experts=12)
    starve(model, 0, 5)
    blocks, stream = mixture_of(model, windows, batch)
    with blocks.loaded(0) as block, torch.no_grad():
        calls = stream.calls(0, block)
        expected = [call() for call in calls]
        seen = []
        block.mlp.experts.get_submodule("5").up_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with borrow.borrowing(block, calls, 32):
            for call, output in zip(calls, expected, strict=True):
                torch.testing.assert_close(call(), output, atol=1e-4, rtol=0)
        assert torch.cat(seen).shape == (96, 64)  # every other of 192 tokens
        for call in calls:
            call()
        assert torch.cat(seen).shape == (96, 64)  # no more afterwards


def test_the_gram_of_three_tokens_is_that_of_weighted_borrowed_ones_beside_them(monkeypatch, windows):
    monkeypatch.setattr(borrow, "ENOUGH", 1)
    blocks, _ = mixture_of(build("mixtral", num_local_experts=12), windows)
    hidden, weights = torch.randn(192, 64), torch.rand(192, 2)
    index = torch.tensor([[1, 2]]).repeat(192, 1)
    index[[7, 90, 133], 0] = 0  # the only tokens of expert 0
    with blocks.loaded(0) as block, torch.no_grad():
        mixture = block.mlp.experts
        expert = mixture.get_submodule("0")
        layers = {name: getattr(expert, name) for name in ("gate_proj", "up_proj", "down_proj")}
        calls = [
            lambda part=part: mixture(*(t[part] for t in (hidden, index, weights)))
            for part in torch.arange(192).split(64)
        ]
        with borrow.borrowing(block, calls, 32):
            found = {
                name: statistics
                for stage in calibrated_stages(calls, layers, None)
                for name, statistics in stage.items()
            }
        own = torch.zeros(192, dtype=torch.bool)
        own[[7, 90, 133]] = True
        borrowed = (torch.arange(192) % 32 % 2 == 1) & ~own
        inner = mixture.act_fn(expert.gate_proj(hidden)) * expert.up_proj(hidden)
        for x, name in ((hidden, "gate_proj"), (inner, "down_proj")):
            expected = x[own].T @ x[own] + x[borrowed].T @ x[borrowed] / 8
            expected /= own.sum() + borrowed.sum() / 8
            torch.testing.assert_close(torch.from_numpy(found[name].gram).float(), expected, atol=1e-5, rtol=1e-5)
            assert (found[name].tokens, found[name].borrowed) == (3, borrowed.sum())


def test_who_borrows_what():
    assert borrow._positions(3, tokens=20, width=64, window=10).all()  # fewer than enough: all there are
    assert borrow._positions(20, tokens=20, width=64, window=10) is None
    assert borrow._positions(256, tokens=999, width=64, window=10) is None
    assert borrow._positions(255, tokens=10**6, width=64, window=10).sum() == 1  # never none at all


def test_statistics_are_gathered_in_parts_that_fit(tokenizer, windows, tmp_path, monkeypatch):
    whole = quantized(build("olmoe"), tokenizer, windows, tmp_path / "whole")
    monkeypatch.setattr(borrow, "GRAMS", 2 * 12 * (64**2 + 96**2))  # two experts
    parts = quantized(build("olmoe"), tokenizer, windows, tmp_path / "parts")
    assert [name for name in parts if ".1.mlp.experts" in name] != [name for name in whole if ".1.mlp.experts" in name]
    for name in (path.name for path in (tmp_path / "whole").glob("*.safetensors")):
        # Only the fingerprint says when each was done.
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize("options", [{"tune": "block", "tokens": 192}, {"precision": "bfloat16"}, {"tune": "bias"}])
def test_all_ways_of_a_run_end_with_what_is_loaded(tokenizer, windows, tmp_path, options):
    model = build("gpt_oss")
    quantized(model, tokenizer, windows, tmp_path, **options)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path)[0](windows).logits, model(windows).logits)


def test_overrides_and_the_plan_know_every_matrix(windows):
    blocks = find_blocks(build("qwen3_moe"))
    options = mcq_llm.Options(format="dense", overrides=(mcq_llm.Override.parse(r"experts\.\d+\.up_proj=dense"),))
    table = plan_table(make_plan(blocks, options), {}).splitlines()
    assert len([line for line in table if "experts" in line]) == 2 * 4 * 3
    assert len([line for line in table if "dense" in line]) == 2 * 4


def test_experts_that_cannot_be_taken_apart_stay_dense_and_are_in_the_plan(windows, caplog):
    config = transformers.Llama4TextConfig(**SIZES, intermediate_size_mlp=96, num_local_experts=4, head_dim=16)
    model = AutoModelForCausalLM.from_config(config).float()
    plan = make_plan(find_blocks(model), mcq_llm.Options(format="dense"))
    line = next(line for line in plan_table(plan, {}).splitlines() if "0.feed_forward.experts.gate_up_proj" in line)
    assert line.split()[1:] == ["256x192", "dense", "16.000", "16.000", "0.098", "0.0000", "0.0"]
    assert "experts.down_proj of shape (4, 96, 64) stays dense" in caplog.text


class ListedExperts(nn.Module):
    """A Mixtral block as it was before experts were fused; the last expert is never chosen."""

    def __init__(self, original):
        super().__init__()
        self.gate = nn.Linear(64, 5, bias=False)
        self.experts = nn.ModuleList(type(original)(original.config) for _ in range(5))

    def forward(self, hidden):
        flat = hidden.reshape(-1, 64)
        weights, chosen = self.gate(flat)[:, :4].softmax(-1).topk(2)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, rank = (chosen == number).nonzero(as_tuple=True)
            if len(token):
                total = total.index_add(0, token, expert(flat[token]) * weights[token, rank, None])
        return total.view_as(hidden)


@pytest.fixture
def listed(make_model):
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp = ListedExperts(layer.mlp)
    return model.float().eval()


@pytest.mark.parametrize("dense", [True, False])
def test_lists_of_experts_are_quantized_for_both_kinds_of_checkpoint(listed, tokenizer, windows, tmp_path, dense):
    lines = quantized(
        listed,
        tokenizer,
        windows,
        tmp_path,
        format="dense" if dense else "aqlm",
        setting=mcq_llm.AdditiveSetting(1, 4, 8, "row"),
    )
    assert len(lines) == 2 * (4 + 1 + 5 * 3)
    assert lines["model.layers.0.mlp.experts.4.gate_proj"]["tokens"] == 0
    assert 0 < lines["model.layers.0.mlp.experts.0.gate_proj"]["tokens"] < 192
    tensors = {}
    for path in tmp_path.glob("*.safetensors"):
        tensors |= load_file(path)
    end = "weight" if dense else "codes"
    assert f"model.layers.1.mlp.experts.4.down_proj.{end}" in tensors


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("moe") / "qwen3_moe"
    build("qwen3_moe").save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("count", [9, 20])
def test_a_run_stopped_between_experts_ends_with_the_same_bytes(folder, text, tmp_path, monkeypatch, count):
    run(folder, text, OPTIONS, tmp_path / "whole")
    original, calls = Checkpoint.save_layer, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == count:
            raise Stop
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_layer", failing)
        with pytest.raises(Stop):
            run(folder, text, OPTIONS, tmp_path / "tiny")
    run(folder, text, OPTIONS, tmp_path / "tiny", resume=True)
    assert shards(tmp_path / "tiny") == shards(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["deepseek_v3", "gpt_oss", "qwen2_moe"])
def test_a_mixture_is_streamed_from_the_disk(tokenizer, text, tmp_path, kind):
    build(kind).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    run(tmp_path / kind, text, OPTIONS, tmp_path / "whole")
    run(tmp_path / kind, text, OPTIONS, tmp_path / "streamed", stream=True)
    assert shards(tmp_path / "streamed") == shards(tmp_path / "whole")


def test_gate_and_up_are_paired_with_what_the_original_gives_the_same_tokens(windows):
    model, original = build("qwen3_moe"), build("qwen3_moe")
    blocks, stream = mixture_of(model, windows)
    reference = stream.copy()
    with blocks.loaded(0) as block, torch.no_grad():
        layers = blocks.layers(0)
        recorded = reference.record(0, block, layers)
        with borrow.borrowing(block, stream.calls(0, block), 32):
            for stage in calibrated_stages(stream.calls(0, block), layers, recorded):
                if "model.layers.0.mlp.experts.0.gate_proj" in stage:
                    break
                for name in stage:
                    layers[name].weight.mul_(0.9)  # so that inputs drift
        found = torch.from_numpy(stage["model.layers.0.mlp.experts.0.gate_proj"].cross).float()
        received = []
        for whole in (original.model.layers[0], block):
            hook = whole.mlp.experts.register_forward_pre_hook(lambda _, args: received.append(args))
            for call in stream.calls(0, whole):
                call()
            hook.remove()
    middle = len(received) // 2
    before, after = torch.cat([x for x, _, _ in received[:middle]]), torch.cat([x for x, _, _ in received[middle:]])
    own = torch.cat([index for _, index, _ in received[middle:]]).eq(0).any(-1)
    weights = torch.where(own, 1.0, 1 / 8)[:, None]  # too few tokens, so all others are borrowed
    expected = before.T @ (weights * after) / weights.sum()
    assert (found - expected).norm() < 4e-3 * expected.norm()  # the original is kept in bfloat16
    assert (found - after.T @ (weights * after) / weights.sum()).norm() > 0.05 * expected.norm()
