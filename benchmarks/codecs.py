"""A whole model with every codec at several sizes, uniform and allocated: perplexity and divergence against bits.

Each codec first gets the setting within a number of bits that is best on normal entries, then settings for each layer
within the size that this takes. What was measured is kept in a file, so that a run can be interrupted. The points of
the picture are kept beside it, so that a run can add codecs.
"""

import argparse
import csv
import json
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

import mcq
import mcq_llm
from mcq.io import replacing
from mcq_llm.blocks import find_blocks, get_weight
from mcq_llm.config import Budget
from mcq_llm.divergence import compare
from mcq_llm.memory import return_freed_memory
from mcq_llm.overrides import Override
from mcq_llm.plan import Layer, mean_bits, planned
from mcq_llm.prepare import prepare
from mcq_llm.run import write
from mcq_llm.setting import Setting

CODECS = {
    "additive": "codec:additive,dtype:int8",
    "residual": "codec:residual,dtype:int8",
    "trellis, rotated": "codec:trellis,rotate:1",
    "shell, rotated": "codec:shell,rotate:1",
    "shell": "codec:shell",
    "pyramid, rotated": "codec:pyramid,rotate:1",
    "pyramid": "codec:pyramid",
    "grid": "codec:grid",
    "companded": "codec:companded",
    "GPTQ": "codec:scalar",
    "GPTQ, rotated": "codec:scalar,rotate:1",
    "round to nearest": "codec:scalar,feedback:0",
}
BITS = (2.25, 2.5, 3.0, 3.25, 4.0)
COLOURS = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
#: Style and fill of the marks, with one setting for all layers and allocated.
STYLES = {False: ("--", "white"), True: ("-", None)}


@dataclass(frozen=True)
class Point:
    """One mark of the picture."""

    codec: str
    allocated: bool
    bits: float
    log_ratio: float
    divergence: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    codec: str
    settings: str
    payload: float
    all_in: float
    perplexity: float
    log_ratio: float
    divergence: float
    seconds: float

    @property
    def point(self) -> Point:
        """The mark of this line."""
        return Point(self.codec, self.settings == "allocated", self.all_in, self.log_ratio, self.divergence)

    def __str__(self) -> str:
        cost = f"{self.payload:7.3f}  {self.all_in:6.3f}  {self.perplexity:10.2f}"
        loss = f"{self.log_ratio:8.4f}  {self.divergence:8.4f}  {self.seconds:7.0f}"
        return f"{self.codec:18}  {self.settings:26}  {cost}  {loss}"


HEADER = f"{'codec':18}  {'settings':26}  payload  all-in  perplexity  ln ratio        KL  seconds"


class Bench:
    """Quantizes one model again and again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.calibration = options.calibration.read_text(encoding="utf-8")
        self.evaluation = options.evaluation.read_text(encoding="utf-8")
        self.original, self.tokenizer = mcq_llm.load(options.model)
        blocks = find_blocks(self.original)
        layers = [pair for index in range(len(blocks.modules)) for pair in blocks.layers(index).items()]
        self.shapes = {name: get_weight(layer).shape for name, layer in layers}

    def base(self, setting: Setting) -> mcq_llm.Options:
        """Return the options of a run with one setting."""
        return mcq_llm.Options(setting, tokens=self.options.tokens, window=self.options.window, format="mcq")

    def choose(self, setting: Setting, bits: float) -> tuple[Setting, float] | None:
        """Return the setting within `bits` that is best on normal entries, and the bits that it takes."""
        rng = np.random.default_rng(0)
        curve = setting.curve(rng.standard_normal((256, 512), np.float32), mcq.Gram(np.eye(512)))
        costs = {candidate: mean_bits(self.plan(candidate))[1] for candidate in curve}
        fitting = [candidate for candidate in curve if costs[candidate] <= bits]
        best = min(fitting, key=lambda candidate: curve[candidate], default=None)
        return None if best is None else (best, costs[best])

    def plan(self, setting: Setting) -> list[Layer]:
        """Return the plan of a run with one setting."""
        options = self.base(setting)
        return [planned(name, *shape, setting, options) for name, shape in self.shapes.items()]

    def budget(self, setting: Setting, bits: float) -> Budget:
        """Return what layers are to share."""
        bands = self.options.bands if setting.in_bands else 1
        return Budget(bits=bits, sensitivity=self.options.sensitivity, bands=bands, passes=self.options.passes)

    def measure(self, codec: str, setting: Setting, bits: float | None = None) -> Row:
        """Quantize with one setting, or with several within `bits`."""
        options = self.base(setting)
        if bits is not None:
            options = replace(options, budget=self.budget(setting, bits))
        prepared = prepare(self.options.model, self.calibration, options, cache=self.options.cache / str(setting))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            write(prepared, Path(folder), "model")
            seconds = time.perf_counter() - start
            lines = [json.loads(line) for line in (Path(folder) / "quantize.jsonl").read_text().splitlines()]
        weights = sum(line["rows"] * line["columns"] for line in lines)
        payload, all_in = (
            sum(line[name] * line["rows"] * line["columns"] for line in lines) / weights
            for name in ("bits_payload", "bits_all_in")
        )
        found = compare(
            prepared.model, self.tokenizer, self.original, self.tokenizer, self.evaluation, self.options.windows,
            self.options.window, noise_floor=False,
        )  # fmt: skip
        settings = str(setting) if bits is None else "allocated"
        perplexity, divergence = found.model.perplexity, found.divergence.mean
        return Row(codec, settings, payload, all_in, perplexity, found.log_ratio, divergence, seconds)


def merged(points: list[Point], path: Path) -> list[Point]:
    """Return the points of a file, new ones in place of those of the same bits, and write them there."""
    known = []
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            for codec, allocated, *numbers in list(csv.reader(file))[1:]:
                known.append(Point(codec, allocated == "True", *map(float, numbers)))
    found = {(point.codec, point.allocated, round(point.bits, 2)): point for point in [*known, *points]}
    kept = sorted(found.values(), key=lambda point: (list(CODECS).index(point.codec), point.allocated, point.bits))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Point))
        writer.writerows(
            (p.codec, p.allocated, f"{p.bits:.3f}", f"{p.log_ratio:.4f}", f"{p.divergence:.4f}") for p in kept
        )
    return kept


def draw(points: list[Point], path: Path) -> None:
    """Draw both measures against bits, one colour for each codec."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "mcq"})
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
    codecs = list(dict.fromkeys(point.codec for point in points))
    for panel, name, title in zip(
        panels,
        ("log_ratio", "divergence"),
        ("ln(perplexity / original)", "KL divergence from the original, nats"),
        strict=True,
    ):
        for codec, colour in zip(codecs, COLOURS, strict=False):
            for allocated, (style, fill) in STYLES.items():
                part = [point for point in points if (point.codec, point.allocated) == (codec, allocated)]
                marks = sorted((point.bits, getattr(point, name)) for point in part)
                if marks:
                    panel.plot(*zip(*marks, strict=True), style, marker="o", ms=4, mfc=fill or colour, color=colour)
        panel.set(xlabel="bits per weight, all-in", title=title, yscale="log")
        panel.title.set_fontsize(9)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.25)
    handles = [Line2D([], [], color=colour, label=codec) for codec, colour in zip(codecs, COLOURS, strict=False)]
    handles += [
        Line2D([], [], color="black", linestyle=style, marker="o", ms=4, mfc=fill or "black", label=label)
        for (style, fill), label in zip(STYLES.values(), ("one setting", "allocated"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="Hugging Face id, folder or .gguf file")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--codecs", nargs="*", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--bits", nargs="*", type=float, default=list(BITS))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=1024, help="tokens per sequence, of both texts")
    parser.add_argument("--windows", type=int, default=8, help="of the evaluation")
    parser.add_argument("--sensitivity", default="attributed")
    parser.add_argument("--bands", type=int, default=1, help="of rows, with settings of their own")
    parser.add_argument("--passes", type=int, default=1, help="how often settings are chosen")
    parser.add_argument("--results", type=Path, default=Path("codecs.jsonl"), help="file of what was measured")
    parser.add_argument(
        "--cache", type=Path, default=Path("codecs-measured"), help="folder of what allocations measure"
    )
    parser.add_argument("--plot", type=Path, default=Path("codecs.svg"), help="its points go to a .csv file beside")
    parser.add_argument("--allocate", choices=("also", "never"), default="also", help="settings of their own, too")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    return_freed_memory()
    if options.threads is not None:
        import torch

        import mcq_ext

        mcq_ext.set_num_threads(options.threads)
        torch.set_num_threads(options.threads)
    known = options.results.read_text().splitlines() if options.results.exists() else []
    done = {(line["codec"], line["bits"], line["allocate"]): Row(**line["row"]) for line in map(json.loads, known)}
    bench = Bench(options)
    print(HEADER, flush=True)
    for bits in options.bits:
        for codec in options.codecs:
            changed = Override.parse(f".={CODECS[codec]}").apply(mcq_llm.AdditiveSetting())
            assert changed is not None
            chosen = bench.choose(changed, bits)
            if chosen is None:
                continue  # not with so few bits
            for allocate in (False, True)[: 1 + (options.allocate == "also")]:
                if (codec, bits, allocate) not in done:
                    row = bench.measure(codec, changed, chosen[1]) if allocate else bench.measure(codec, chosen[0])
                    done[codec, bits, allocate] = row
                    with open(options.results, "a", encoding="utf-8") as file:
                        line = {"codec": codec, "bits": bits, "allocate": allocate, "row": asdict(row)}
                        file.write(json.dumps(line) + "\n")
                print(done[codec, bits, allocate], flush=True)
            draw(merged([row.point for row in done.values()], options.plot.with_suffix(".csv")), options.plot)


if __name__ == "__main__":
    main()
