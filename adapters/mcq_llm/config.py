"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcq.errors import ConfigError
from mcq.validate import in_range, one_of
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.formats import FORMATS
from mcq_llm.overrides import Override
from mcq_llm.precision import PRECISIONS
from mcq_llm.setting import Setting
from mcq_llm.tune import TuneOptions

TARGETS = ("quantized", "original")
TUNE = ("none", "bias", "block")


@dataclass(frozen=True)
class Options:
    """Everything that decides the result of a run.

    Attributes
    ----------
    setting : Setting
        Of every linear layer in the blocks that no override matches.
    overrides : tuple of Override
    tokens, window : int
        Calibration uses tokens // window sequences of `window` tokens each.
    batch : int
        Sequences that pass through a block together; bounds the memory, does not change the result.
    seed : int
    format : {"aqlm", "mcq", "dense"}
        What is written: an AQLM checkpoint, which stock loaders read; mcq's own format, for what that cannot express;
        or ordinary weights.
    target : {"quantized", "original"}
        What a layer is to reproduce on the inputs that the quantized layers before it produce: its own
        original output on these same inputs, or its output in the original model.
    correction : float
        With ``target="original"``: how far to go towards that target, 0 to 1.
    damping : float
        With ``target="original"``: added to the diagonal of the Gram, as a fraction of its mean.
    precision : {"auto", "float32", "bfloat16"}
        Of the calibration pass; "auto" is bfloat16 where the processor computes in it natively. Statistics are always
        float32 or wider.
    tune : {"none", "bias", "block"}
        What is done to a block whose layers are quantized: nothing; biases, where there are any, make up for the mean
        of the error; or codebooks, scales, norms and biases are tuned together.
    tuning : TuneOptions
        With ``tune="block"``.
    """

    setting: Setting = field(default_factory=AdditiveSetting)
    overrides: tuple[Override, ...] = ()
    tokens: int = 32 * 1024
    window: int = 1024
    batch: int = 2
    seed: int = 0
    format: str = "aqlm"
    target: str = "original"
    correction: float = 0.5
    damping: float = 0.01
    precision: str = "auto"
    tune: str = "none"
    tuning: TuneOptions = field(default_factory=TuneOptions)

    def __post_init__(self) -> None:
        in_range(self.window, 2, None, "window")
        in_range(self.batch, 1, None, "batch")
        in_range(self.seed, 0, None, "seed")
        in_range(self.correction, 0.0, 1.0, "correction")
        in_range(self.damping, 0.0, None, "damping")
        one_of(self.format, FORMATS, "format")
        one_of(self.target, TARGETS, "target")
        one_of(self.precision, PRECISIONS, "precision")
        one_of(self.tune, TUNE, "tune")
        if in_range(self.tokens, 1, None, "tokens") < self.window:
            raise ConfigError(
                f"tokens must be at least one window of {self.window}, got {self.tokens}; raise it or shrink the window"
            )
