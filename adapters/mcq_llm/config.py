"""What a run is asked to do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from mcq.errors import ConfigError
from mcq.validate import in_range, one_of
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.device import DEVICES
from mcq_llm.formats import FORMATS
from mcq_llm.overrides import Override
from mcq_llm.precision import PRECISIONS
from mcq_llm.setting import Setting
from mcq_llm.tune import TuneOptions

TARGETS = ("quantized", "original", "block")
#: More would be a few rows each.
MAX_BANDS = 16
#: Bytes of a model.
MAX_SIZE = 1 << 60
#: What `mcq_llm.sensitivity` can measure.
PROVIDERS = ("activation", "noise", "fisher", "gradient", "measured", "attributed", "walked")
#: Sensitivities that share out the divergence of a model whose layers are all coded.
SHARED = ("attributed", "walked")
TUNE = ("none", "bias", "block")


@dataclass(frozen=True)
class Budget:
    """What all layers may take together, for `mcq_llm.allocate` to share out.

    Attributes
    ----------
    bits : float or None
        All-in bits per weight, over all linear layers of the blocks.
    size : int or None
        Bytes of all files with weights. Either of the two is given.
    sensitivity : str
        What the error of a layer counts, see `mcq_llm.sensitivity`.
    tie : bool
        Whether layers that receive the same inputs must have the same setting.
    bands : int
        In how many bands of equally important rows each layer is cut, see `mcq_llm.bands`.
    passes : int
        How often settings are chosen, each time but the first by what errors count in a model with those chosen last,
        see `mcq_llm.revision`. More than one are for the sensitivities "attributed" and "walked".
    """

    bits: float | None = None
    size: int | None = None
    sensitivity: str = "fisher"
    tie: bool = False
    bands: int = 1
    passes: int = 1

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.size is None):
            raise ConfigError("a budget is a number of bits per weight or a size in bytes; give one of both")
        if self.bits is not None:
            in_range(self.bits, 0.0, None, "bits per weight")
        if self.size is not None:
            in_range(self.size, 1, None, "size in bytes")
        in_range(self.bands, 1, MAX_BANDS, "bands")
        if in_range(self.passes, 1, None, "passes") > 1 and self.sensitivity not in SHARED:
            raise ConfigError(
                f"{self.passes} passes need a sensitivity that is measured in a model with all layers quantized, "
                f"{' or '.join(SHARED)}, got {self.sensitivity!r}"
            )
        if self.sensitivity not in PROVIDERS and not Path(self.sensitivity).is_file():
            raise ConfigError(
                f"the sensitivity must be one of {', '.join(PROVIDERS)}, or a JSON file, got {self.sensitivity!r}"
            )

    @staticmethod
    def parse_size(text: str) -> int:
        """Read a number of bytes.

        Examples
        --------
        >>> Budget.parse_size("60MB"), Budget.parse_size("1.5 GiB"), Budget.parse_size("1000")
        (60000000, 1610612736, 1000)
        """
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kMGT]?i?B)?", text.strip(), re.IGNORECASE)
        if match is None:
            raise ConfigError(f"a size must be a number of bytes, such as 60MB or 1.5GiB, got {text!r}")
        unit = (match[2] or "B").lower()
        base = 1024 if "i" in unit else 1000
        found = float(match[1]) * base ** "bkmgt".index(unit[0])
        if found > MAX_SIZE:
            raise ConfigError(f"a size must be at most {MAX_SIZE} bytes, got {text!r}")
        return int(found)


@dataclass(frozen=True)
class Options:
    """Everything that decides the result of a run.

    Attributes
    ----------
    setting : Setting
        Of every linear layer in the blocks that no override matches.
    overrides : tuple of Override
    budget : Budget or None
        If given, the codec of `setting` has another setting in each layer that no override matches.
    tokens, window : int
        Calibration uses tokens // window sequences of `window` tokens each.
    batch : int
        Sequences that pass through a block together; bounds the memory, does not change the result.
    seed : int
    format : {"aqlm", "mcq", "dense"}
        What is written: an AQLM checkpoint, which stock loaders read; mcq's own format, for what that cannot express;
        or ordinary weights.
    target : {"quantized", "original", "block"}
        What a layer is to reproduce on the inputs that the quantized layers before it produce: its own
        original output on these same inputs, or its output in the original model; with "block", the layer that closes a
        block is to reproduce the block's output there.
    correction : float
        Unless ``target="quantized"``: how far to go towards that target, 0 to 1.
    damping : float
        Unless ``target="quantized"``: added to the diagonal of the Gram, as a fraction of its mean.
    precision : {"auto", "float32", "bfloat16"}
        Of the calibration pass; "auto" is bfloat16 where the processor computes in it natively. Statistics are always
        float32 or wider.
    device : {"auto", "cpu", "cuda"}
        Where blocks compute and are tuned; the processor searches for codes. "auto" is "cuda" where there is a GPU.
    tune : {"none", "bias", "block"}
        What is done to a block whose layers are quantized: nothing; biases, where there are any, make up for the mean
        of the error; or codebooks, scales, norms and biases are tuned together.
    tuning : TuneOptions
        With ``tune="block"``.
    """

    setting: Setting = field(default_factory=AdditiveSetting)
    overrides: tuple[Override, ...] = ()
    budget: Budget | None = None
    tokens: int = 32 * 1024
    window: int = 1024
    batch: int = 2
    seed: int = 0
    format: str = "aqlm"
    target: str = "original"
    correction: float = 0.5
    damping: float = 0.01
    precision: str = "auto"
    device: str = "auto"
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
        one_of(self.device, DEVICES, "device")
        one_of(self.tune, TUNE, "tune")
        if self.budget is not None:
            self._require_allocatable(self.budget)
        if in_range(self.tokens, 1, None, "tokens") < self.window:
            raise ConfigError(
                f"tokens must be at least one window of {self.window}, got {self.tokens}; raise it or shrink the window"
            )

    def _require_allocatable(self, budget: Budget) -> None:
        """Refuse what a budget does not go together with."""
        if self.format == "aqlm":
            raise ConfigError(
                "AQLM checkpoints have one setting for all layers, a budget has many; give another format"
            )
        if self.format == "dense" and budget.size is not None:
            raise ConfigError(
                "a size is that of files with codes, ordinary weights take more; give bits, or leave out dense"
            )
        if budget.bands > 1 and not self.setting.in_bands:
            raise ConfigError(f"rows of {self.setting.codec} codes share what bands would each need; leave out bands")
