"""The commands of `mcq search`."""

import faiss
import numpy as np
import pytest
from typer.testing import CliRunner

import mcq.cli
from mcq.errors import ConfigError, InputError, McqError
from mcq_search import Index, build_index
from mcq_search.bench import Result, _series, bench, plot, standard_codes, table
from mcq_search.cli import app
from mcq_search.faiss_fill import code_size


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def files(x, queries, tmp_path):
    np.save(tmp_path / "base.npy", x)
    np.save(tmp_path / "queries.npy", queries)
    return tmp_path / "base.npy", tmp_path / "queries.npy"


def test_build_then_query(files, x, queries, tmp_path):
    base, query_file = files
    ids = np.arange(len(x))[::-1] * 2
    np.save(tmp_path / "numbers.npy", ids)
    options = ["--factory", "IVF5,RQ3x5,Refine", "--ids", tmp_path / "numbers.npy", "--metric", "ip", "--seed", 3]
    out = done("build", base, "-o", tmp_path / "i.mcq", *options, "--faiss", tmp_path / "i.faiss", "--threads", 1)
    assert "700 vectors of 18 columns, 74 bytes each" in out
    wanted = build_index(x, "IVF5,RQ3x5,Refine", "ip", 3, ids=ids).search(queries, 4, nprobe=2, rerank=9)
    search = ["query", tmp_path / "i.mcq", query_file, "-k", 4, "--nprobe", 2, "--rerank", 9]
    done(*search, "--ids", tmp_path / "ids.npy", "--distances", tmp_path / "distances.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), wanted[1])
    np.testing.assert_array_equal(np.load(tmp_path / "distances.npy"), wanted[0])
    lines = done(*search).splitlines()
    assert len(lines) == 1 + 4 * len(queries)
    assert lines[1].split()[:3] == ["0", "1", str(wanted[1][0, 0])]
    assert faiss.read_index(str(tmp_path / "i.faiss")).ntotal == len(x)


def test_other_formats_are_read(x, tmp_path):
    records = np.empty((len(x), 1 + x.shape[1]), np.float32)
    records[:, 0] = np.array([x.shape[1]], np.int32).view(np.float32)
    records[:, 1:] = x
    records.tofile(tmp_path / "base.fvecs")
    done("build", tmp_path / "base.fvecs", "-o", tmp_path / "i.mcq", "--factory", "RQ2x4")
    assert Index.load(tmp_path / "i.mcq").codes == build_index(x, "RQ2x4").codes


def test_bench_prints_a_table_and_draws(files, tmp_path):
    picture = tmp_path / "picture.svg"
    out = done("bench", *files, "--code", "RQ2x4", "--code", "IVF4,RQ2x4", "--baseline", "PQ4x4", "--plot", picture)
    lines = out.splitlines()
    assert lines[0].split() == ["code", "maker", "bytes", "R@1", "R@10", "R@100", "queries/s", "build", "s"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["RQ2x4", "mcq", "2"],
        ["IVF4,RQ2x4", "mcq", "2"],
        ["PQ4x4", "FAISS", "2"],
    ]
    assert "1-recall" in out
    svg = picture.read_text()
    assert "mcq IVF4,RQ2x4" in svg
    assert "queries per second" in svg


def test_codes_that_differ_in_their_sizes_share_a_line():
    sizes = {"AQ3x8": 4, "AQ7x8": 8, "IVF4,AQ3x8": 4, "IVF8,AQ3x8": 4}
    results = [Result(code, "mcq", size, (0.5, 0.7, 1.0), 9.0, 1.0) for code, size in sizes.items()]
    results.append(Result("OPQ4,PQ4x8", "FAISS", 4, (0.4, 0.6, 1.0), 9.0, 1.0))
    found = {name: [result.code for result in group] for name, group in _series(results).items()}
    assert found == {
        "mcq AQ": ["AQ3x8", "AQ7x8"],
        "mcq IVF4,AQ3x8": ["IVF4,AQ3x8"],
        "mcq IVF8,AQ3x8": ["IVF8,AQ3x8"],
        "FAISS OPQ4,PQ4x8": ["OPQ4,PQ4x8"],
    }


def test_codes_are_learned_from_other_vectors_if_there_are_any(x, queries, files, tmp_path):
    other = x[::2] * 3
    assert (
        build_index(x, "RQ2x4", learn=other).quantizer.codebooks.tolist()
        == build_index(other, "RQ2x4").quantizer.codebooks.tolist()
    )
    poor, good = (bench(x, queries, ["RQ3x5"], ["PQ4x4"], learn=learn) for learn in (other[:40] * 9, None))
    assert all(bad.recall[1] < well.recall[1] for bad, well in zip(poor, good, strict=True))
    np.save(tmp_path / "learn.npy", other)
    done("build", files[0], "-o", tmp_path / "i.mcq", "--factory", "RQ2x4", "--learn", tmp_path / "learn.npy")
    assert Index.load(tmp_path / "i.mcq").codes == build_index(x, "RQ2x4", learn=other).codes
    for call in (lambda: build_index(x, "RQ2x4", learn=x[:, :5]), lambda: bench(x, queries, learn=x[:, :5])):
        with pytest.raises(InputError, match="learn must have the 18 columns"):
            call()


def test_recall_is_that_of_the_true_nearest(x, queries):
    (result,) = bench(x, queries, ["RQ3x5,Refine"])
    assert result.recall == (1.0, 1.0, 1.0)
    assert result.size == 3 + x.shape[1] * 4
    (poor,) = bench(x, queries, baselines=["PQ1x1"])
    assert poor.recall[0] < poor.recall[1] < poor.recall[2] < 1


def test_baselines_take_widths_that_faiss_refuses(x, queries):
    (result,) = bench(x, queries, baselines=["PQ4x4"])
    assert result.size == 2
    (inverted,) = bench(x, queries, baselines=["IVF4,PQ4x4"], nprobe=4)
    assert inverted.recall[2] > 0.8


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_standard_codes_take_what_they_promise(x, metric):
    ours, theirs = standard_codes(2, metric)
    assert [build_index(x, code, metric).bytes_per_vector for code in ours] == [2, 2]
    assert [code_size(faiss.index_factory(16, code)) for code in theirs] == [2, 2, 2, 2]


def test_a_table_has_a_line_for_each_result():
    results = [Result("AQ7x8", "mcq", 8, (0.5, 0.75, 1.0), 12.0, 3.0)] * 2
    assert len(table(results).splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--code", "AQ8"], "a factory string must be"),
        (["--baseline", "nonsense"], "FAISS cannot build 'nonsense'"),
        (["--bytes", "8", "--code", "RQ2x4"], "not both"),
        (["--bytes", "99"], "bytes per vector must be an integer from 2 to 64"),
        (["--metric", "cosine"], "--metric must be one of"),
        (["--code", "RQ2x4", "--plot", "picture.png"], "ends in .svg"),
    ],
)
def test_bench_refuses_before_it_works(files, arguments, message):
    result = run("bench", *files, *arguments)
    assert isinstance(result.exception, McqError)
    assert message in str(result.exception)


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("mcq_search.bench.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'multicodebook\[plot\]'"):
        plot([], tmp_path / "picture.svg")


def test_output_folders_are_checked_first(files, tmp_path):
    missing = tmp_path / "nowhere" / "i.mcq"
    for arguments in (["build", files[0], "-o", missing], ["query", missing, files[1], "--ids", missing]):
        result = run(*arguments)
        assert isinstance(result.exception, InputError)
        assert "make it first" in str(result.exception)


def test_the_mcq_command_prints_an_error_in_one_line(monkeypatch, capsys, files, tmp_path):
    out = str(tmp_path / "i.mcq")
    monkeypatch.setattr("sys.argv", ["mcq", "search", "build", str(files[0]), "-o", out, "--factory", "HNSW"])
    with pytest.raises(SystemExit) as stop:
        mcq.cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("mcq: a factory string must be")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".mcq"] == []
