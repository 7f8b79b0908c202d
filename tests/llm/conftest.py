"""Tiny random models of several architectures, with a byte tokenizer, built on the spot."""

import os

os.environ["NUMBA_NUM_THREADS"] = "1"  # aqlm's CPU kernel adds wrongly with more; read when numba is imported

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCABULARY = 256
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),  # biases, tied embeddings
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    ),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=2),
}


@pytest.fixture
def stop_at():
    """Let call number `count` of a function fail, while a patch lasts; return the arguments of all calls."""

    def patched(patch, owner, name, count, error=KeyboardInterrupt):
        calls, original = [], getattr(owner, name)

        def failing(*arguments):
            calls.append(arguments)
            if len(calls) == count:
                raise error
            return original(*arguments)

        patch.setattr(owner, name, failing)
        return calls

    return patched


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero by default, which would hide a lost one
                parameter.normal_()
    return model


@pytest.fixture
def make_model():
    return build


@pytest.fixture(scope="session")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer):
    """Checkpoint folders by architecture."""
    root = tmp_path_factory.mktemp("models")
    for kind in CONFIGS:
        build(kind).save_pretrained(root / kind)
        tokenizer.save_pretrained(root / kind)
    return {kind: root / kind for kind in CONFIGS}


@pytest.fixture(scope="session")
def text():
    generator = torch.Generator().manual_seed(0)
    return bytes(torch.randint(32, 127, (4000,), generator=generator).tolist()).decode()


@pytest.fixture(scope="session")
def windows():
    """Calibration tokens: 6 sequences of 32."""
    return torch.randint(VOCABULARY, (6, 32), generator=torch.Generator().manual_seed(1))
