"""Multi-codebook quantization of language models: load, calibrate, quantize, export, evaluate."""

from mcq_llm.config import Options
from mcq_llm.evaluate import evaluate
from mcq_llm.load import load, load_dense
from mcq_llm.run import run
from mcq_llm.setting import Override, Setting

__all__ = ["Options", "Override", "Setting", "evaluate", "load", "load_dense", "run"]
