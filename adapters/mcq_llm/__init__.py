"""Multi-codebook quantization of language models: load, calibrate, quantize, export, evaluate."""

from mcq_llm.codecs import (
    AdditiveSetting,
    CompandedSetting,
    GridSetting,
    LatticeSetting,
    PyramidSetting,
    ResidualSetting,
    ScalarSetting,
    ShellSetting,
    TrellisSetting,
)
from mcq_llm.config import Budget, Options
from mcq_llm.evaluate import evaluate
from mcq_llm.load import load, load_dense
from mcq_llm.overrides import Override
from mcq_llm.run import run
from mcq_llm.setting import Setting
from mcq_llm.tune import TuneOptions

__all__ = [
    "AdditiveSetting",
    "Budget",
    "CompandedSetting",
    "GridSetting",
    "LatticeSetting",
    "Options",
    "Override",
    "PyramidSetting",
    "ResidualSetting",
    "ScalarSetting",
    "Setting",
    "ShellSetting",
    "TrellisSetting",
    "TuneOptions",
    "evaluate",
    "load",
    "load_dense",
    "run",
]
