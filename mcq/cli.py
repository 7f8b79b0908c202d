"""The command line: ``mcq fit | encode | decode | inspect``, and the commands of plug-ins.

A plug-in is a typer application under the entry-point group ``mcq.cli``. It is imported only when it is
called, so that one which is slow to import or broken does not touch the other commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import typer
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"mcq: the command line needs {error.name}; run: pip install 'multicodebook[cli]'")

import mcq
import mcq_ext
from mcq import io, report
from mcq.arrays import read_array, write_array
from mcq.errors import ConfigError, InputError, McqError
from mcq.metric import Metric
from mcq.quantizer import Quantizer

QUANTIZERS: dict[str, Any] = {
    "additive": mcq.AdditiveQuantizer,
    "residual": mcq.ResidualQuantizer,
    "product": mcq.ProductQuantizer,
    "pyramid": mcq.PyramidQuantizer.of_rate,
    "shell": mcq.ShellQuantizer.of_rate,
    "trellis": mcq.TrellisQuantizer,
    "companded": mcq.CompandedQuantizer,
}
#: What `mcq fit` takes for a kind of quantizer where nothing is said; what is not here is no option of it.
LEARNED = {"codebook_bits": 8, "rounds": 8}
WHOLE = LEARNED | {"num_codebooks": 2, "group_size": 8, "scale": "row"}
LATTICE = {"bits": 2.0, "group_size": 16, "scale": "row"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "additive": WHOLE,
    "residual": WHOLE,
    "product": LEARNED | {"num_codebooks": 1, "num_splits": 8, "rotation": "none"},
    "pyramid": LATTICE,
    "shell": LATTICE,
    "trellis": {"bits": 2.0, "scale": "row"},
    "companded": {"bits": 3.0, "group_size": 512},
}

app = typer.Typer(
    name="mcq",
    help="Compress matrices by multi-codebook quantization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def in_existing_folder(path: Path | None) -> Path | None:
    """Refuse an output that cannot be written before the work is done, not after it."""
    if path is not None and not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first")
    return path


Matrix = Annotated[str, typer.Argument(help="FILE.npy, FILE.safetensors or FILE.safetensors:TENSOR, of shape (n, d).")]
Output = Annotated[Path, typer.Option("-o", "--output", callback=in_existing_folder, help="File to write.")]
QuantizerFile = Annotated[Path, typer.Argument(help="Quantizer that `mcq fit` wrote.")]
GramFile = Annotated[str | None, typer.Option("--gram", help="X^T X of the inputs, shape (d, d); else plain error.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads to use; all cores by default. Results do not change.")
]


def main() -> None:
    """Run the command line; errors that a user can cause become one line and exit status 2."""
    # Libraries with thread pools of their own take turns here; none may keep the cores busy while another works.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (McqError, OSError, MemoryError) as error:
        print(f"mcq: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def fit(
    matrix: Matrix,
    output: Output,
    quantizer: Annotated[
        Literal["additive", "residual", "product", "pyramid", "shell", "trellis", "companded"],
        typer.Option(help="Kind; the last four have no codebooks."),
    ] = "additive",
    codebooks: Annotated[int | None, typer.Option(help="Codebooks, 1 to 64; default: 2, of product: 1.")] = None,
    codebook_bits: Annotated[
        int | None, typer.Option(help="With codebooks: bits of a code, 1 to 16; default: 8.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Most bits per entry, of kinds without codebooks; default: 2, of companded 3.")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Entries coded together, not of product, trellis; default: 8, of pyramid and shell 16; of companded "
            "rows, 512."
        ),
    ] = None,
    scale: Annotated[
        Literal["none", "row", "group"] | None,
        typer.Option(help="What has a scale of its own, not of product or companded; default: row."),
    ] = None,
    splits: Annotated[int | None, typer.Option(help="Slices of a row, of product only; default: 8.")] = None,
    rotation: Annotated[
        Literal["none", "random", "learned"] | None,
        typer.Option(help="Before rows are cut, of product only; default: none."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="With codebooks: alternations of codes and these; more lower the error; default: 8."),
    ] = None,
    gram: GramFile = None,
    codes: Annotated[
        Path | None,
        typer.Option(callback=in_existing_folder, help="Also write the codes of the matrix here."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
    threads: Threads = None,
) -> None:
    """Learn a quantizer from a matrix."""
    _use_threads(threads)
    given: dict[str, Any] = {
        "num_codebooks": codebooks,
        "codebook_bits": codebook_bits,
        "bits": bits,
        "group_size": group_size,
    }
    given |= {"scale": scale, "num_splits": splits, "rotation": rotation, "rounds": rounds}
    fitted = QUANTIZERS[quantizer](**_options(quantizer, given))
    x, metric = read_array(matrix), _metric(gram)
    with progress_bar("fit") as progress:
        encoded = fitted.fit_encode(x, metric=metric, seed=seed, progress=progress)
    fitted.save(output)
    if codes is not None:
        encoded.save(codes)
    print(report.summary(fitted, encoded, x, metric))


@app.command()
def encode(
    quantizer: QuantizerFile,
    matrix: Matrix,
    output: Output,
    gram: GramFile = None,
    threads: Threads = None,
) -> None:
    """Encode a matrix with learned codebooks."""
    _use_threads(threads)
    fitted, x, metric = Quantizer.load(quantizer), read_array(matrix), _metric(gram)
    codes = fitted.encode(x, metric=metric)
    codes.save(output)
    print(report.summary(fitted, codes, x, metric))


@app.command()
def decode(
    quantizer: QuantizerFile,
    codes: Annotated[Path, typer.Argument(help="Codes that `mcq encode` wrote.")],
    output: Output,
    threads: Threads = None,
) -> None:
    """Rebuild a matrix from its codes, float32 in a .npy file."""
    _use_threads(threads)
    fitted = Quantizer.load(quantizer)
    write_array(output, fitted.decode(fitted.codes_type.load(codes)))


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="Quantizer or codes.")]) -> None:
    """Print what a file holds."""
    kind, config, arrays = io.read(file)
    print(f"kind: {kind}")
    for key, value in config.items():
        print(f"{key}: {value}")
    for name, array in arrays.items():
        print(f"{name}: {array.dtype} {array.shape}, {array.nbytes} bytes")
    if kind in ("codes", "scalar codes", "banded codes"):
        codes = mcq.load(file)
        print(f"payload: {codes.bits().payload:.3f} bits per entry")
        print(f"with row padding and all that rows have beside codes: {codes.bits().all_in:.3f} bits per entry")
        if (usage := report.usage(codes)) is not None:
            print(f"\n{usage}")


def _options(quantizer: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of one kind of quantizer; refuse those of others."""
    said = {name: value for name, value in given.items() if value is not None}
    for name in said:
        if name not in DEFAULTS[quantizer]:
            flag = name.removeprefix("num_").replace("_", "-")
            raise ConfigError(f"--{flag} is no option of {quantizer} quantizers; leave it out")
    return DEFAULTS[quantizer] | said


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        mcq_ext.set_num_threads(threads)


def _metric(gram: str | None) -> Metric:
    return mcq.Identity() if gram is None else mcq.Gram(read_array(gram))


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, nothing elsewhere."""
    with tqdm(desc=label, disable=None, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _add_plugin(entry: EntryPoint) -> None:
    def call(context: typer.Context) -> None:
        try:
            plugin = entry.load()
        except ImportError as error:
            raise InputError(f"the command {entry.name!r} cannot be loaded: {error}") from error
        plugin(context.args, prog_name=context.command_path)

    # Everything after the name, --help too, is left for the plug-in to read.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
    title = f"Commands of {entry.module.partition('.')[0]}."
    app.command(entry.name, help=title, context_settings=settings, add_help_option=False)(call)


for _entry in entry_points(group="mcq.cli"):
    _add_plugin(_entry)
