"""The commands `mcq search build`, `mcq search query` and `mcq search bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import faiss
import numpy as np
import typer

import mcq_ext
from mcq.arrays import read_array, write_array
from mcq.cli import in_existing_folder, progress_bar
from mcq.errors import ConfigError
from mcq.io import replacing
from mcq.validate import one_of
from mcq_search import layout
from mcq_search.bench import bench, check_plot, standard_codes, table
from mcq_search.bench import plot as draw
from mcq_search.factory import build_index
from mcq_search.index import Index
from mcq_search.readers import Vectors, open_vectors

app = typer.Typer(
    help="Build, query and measure indexes of vectors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


FILES = "FILE.npy, .fvecs, .bvecs, .fbin, .u8bin, .i8bin, .hdf5 or .parquet; FILE.hdf5:NAME picks a data set or column."
Metric = Annotated[str, typer.Option(help="l2 (squared distance) or ip (inner product).")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same codes.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; all cores by default.")]
Nprobe = Annotated[int | None, typer.Option(help="Inverted lists to visit; default: 16.")]


@app.command()
def build(
    vectors: Annotated[str, typer.Argument(help=FILES)],
    output: Annotated[Path, typer.Option("-o", "--output", callback=in_existing_folder, help="Index to write.")],
    factory: Annotated[str, typer.Option(help="What to build, such as IVF1024,AQ8x8,Refine(SQ8).")] = "AQ8x8",
    metric: Metric = "l2",
    ids: Annotated[Path | None, typer.Option(help="Integers in a .npy file; default: row numbers.")] = None,
    learn: Annotated[str | None, typer.Option(help="Vectors to learn from; default: those of the index.")] = None,
    training_rows: Annotated[int | None, typer.Option(min=1, help="Rows to learn from; default: 65536.")] = None,
    faiss_file: Annotated[
        Path | None, typer.Option("--faiss", callback=in_existing_folder, help="Also write the index for FAISS here.")
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Learn an index from vectors and put them in it."""
    _use_threads(threads)
    with progress_bar("encode") as progress:
        index = build_index(
            _open(vectors),
            factory,
            _metric(metric),
            seed,
            ids=None if ids is None else read_array(str(ids)),
            learn=None if learn is None else _open(learn),
            training_rows=training_rows,
            progress=progress,
        )
    index.save(output)
    typer.echo(f"wrote {output}: {len(index)} vectors of {index.d} columns, {index.bytes_per_vector} bytes each")
    if faiss_file is not None:
        with replacing(faiss_file) as temporary:
            faiss.write_index(index.to_faiss(), str(temporary))
        typer.echo(f"wrote {faiss_file}")


@app.command()
def query(
    index: Annotated[Path, typer.Argument(help="Index that `mcq search build` wrote.")],
    queries: Annotated[str, typer.Argument(help=FILES)],
    k: Annotated[int, typer.Option("-k", min=1, help="Results per query.")] = 10,
    nprobe: Nprobe = None,
    rerank: Annotated[int | None, typer.Option(help="Candidates to look at again; default: 4 k.")] = None,
    ids: Annotated[Path | None, typer.Option(callback=in_existing_folder, help="Write ids to this .npy file.")] = None,
    distances: Annotated[
        Path | None, typer.Option(callback=in_existing_folder, help="Write distances to this .npy file.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Find the nearest vectors of each query; print them if they are not written to files."""
    _use_threads(threads)
    found_distances, found_ids = Index.load(index).search(np.asarray(_open(queries)), k, nprobe=nprobe, rerank=rerank)
    if ids is not None:
        write_array(ids, found_ids)
    if distances is not None:
        write_array(distances, found_distances)
    if ids is None and distances is None:
        typer.echo("query  rank                  id      distance")
        for row, (own_ids, own) in enumerate(zip(found_ids, found_distances, strict=True)):
            for rank, (number, distance) in enumerate(zip(own_ids, own, strict=True), start=1):
                typer.echo(f"{row:>5}  {rank:>4}  {number:>18}  {distance:>12.6g}")


@app.command("bench")
def bench_command(
    vectors: Annotated[str, typer.Argument(help=FILES)],
    queries: Annotated[str, typer.Argument(help=FILES)],
    size: Annotated[list[int] | None, typer.Option("--bytes", help="Bytes per vector; may be repeated.")] = None,
    code: Annotated[list[str] | None, typer.Option(help="Code of mcq instead; may be repeated.")] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="FAISS factory string instead; may be repeated.")] = None,
    metric: Metric = "l2",
    nprobe: Nprobe = None,
    learn: Annotated[str | None, typer.Option(help="Vectors to learn codes from; default: the base.")] = None,
    plot: Annotated[Path | None, typer.Option(callback=in_existing_folder, help="Also draw to this .svg file.")] = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Measure recall, bytes and speed beside PQ, OPQ, RQ and LSQ of FAISS, trained on the same vectors.

    R@1, R@10 and R@100 are 1-recall: the share of queries whose true nearest neighbour is among the first 1, 10, 100.
    """
    _use_threads(threads)
    if size and (code or baseline):
        raise ConfigError("give --bytes, or --code and --baseline, not both")
    checked = _metric(metric)
    codes, baselines = list(code or []), list(baseline or [])
    if not codes and not baselines:
        for count in size or [8]:
            ours, theirs = standard_codes(count, checked)
            codes += ours
            baselines += theirs
    if plot is not None:
        check_plot(plot)
    base, asked = np.asarray(_open(vectors)), np.asarray(_open(queries))
    training = base if learn is None else np.asarray(_open(learn))
    with progress_bar("bench") as progress:
        results = bench(
            base, asked, codes, baselines, checked, learn=training, nprobe=nprobe, seed=seed, progress=progress
        )
    typer.echo(table(results))
    typer.echo("R@r: share of queries whose true nearest neighbour is among the first r results (1-recall@r)")
    if plot is not None:
        draw(results, plot)
        typer.echo(f"wrote {plot}")


def _open(source: str) -> Vectors:
    path, _, name = source.partition(":")
    return open_vectors(path, name or None)


def _metric(name: str) -> Any:
    return one_of(name, get_args(layout.Metric), "--metric")


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        mcq_ext.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
