"""Multi-codebook quantization of language models: load, calibrate, quantize, export, evaluate."""

from mcq_llm.codecs import AdditiveSetting, ResidualSetting
from mcq_llm.config import Options
from mcq_llm.evaluate import evaluate
from mcq_llm.load import load, load_dense
from mcq_llm.overrides import Override
from mcq_llm.run import run
from mcq_llm.setting import Setting

__all__ = [
    "AdditiveSetting",
    "Options",
    "Override",
    "ResidualSetting",
    "Setting",
    "evaluate",
    "load",
    "load_dense",
    "run",
]
