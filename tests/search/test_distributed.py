import doctest
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dask.array")

import dask
import dask.array as da

import mcq
import mcq_search.distributed
import mcq_search.readers
from mcq.errors import ConfigError, InputError, NotFittedError
from mcq_search.distributed import NormalEquations, encode, fit
from mcq_search.readers import NpyVectors, open_vectors

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
N, D = 1500, 10
MAKERS = {
    "additive": lambda: mcq.AdditiveQuantizer(3, 4, group_size=None, rounds=2),
    "additive in groups": lambda: mcq.AdditiveQuantizer(2, 4, group_size=4, rounds=2),
    "residual": lambda: mcq.ResidualQuantizer(3, 4, group_size=None, rounds=2),
    "product": lambda: mcq.ProductQuantizer(num_splits=3, codebook_bits=4, rounds=2),
    "rotated product of sums": lambda: mcq.ProductQuantizer(3, 2, 4, rotation="random", rounds=2),
    "additive in 8 bits": lambda: mcq.AdditiveQuantizer(2, 4, None, rounds=2, codebook_dtype="int8"),
    "product of residuals": lambda: mcq.ProductQuantizer(2, 2, 4, method="residual", rounds=2),
}
OPTIONS = {"passes": 2, "sample_rows": 300, "block_rows": 256, "seed": 3}


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return np.tanh(rng.standard_normal((N, D)) @ rng.standard_normal((D, D))).astype(np.float32) * 3


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def assert_same(a, b):
    assert a.arrays.keys() == b.arrays.keys()
    for name in a.arrays:
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name])


def relative_error(quantizer, x):
    return mcq.Identity().relative_error(x, quantizer.decode(quantizer.encode(x)))


def test_partitions_change_nothing(make, x):
    expected = fit(make(), da.from_array(x, chunks=(256, D)), **OPTIONS)
    for chunks in [(N, D), (100, 3), ((1, 255, 700, 544), D)]:
        found = fit(make(), da.from_array(x, chunks=chunks), **OPTIONS)
        assert_same(found, expected)
        codes = encode(found, da.from_array(x, chunks=chunks))
        assert codes.shape[0] == N
        assert codes.dtype == np.uint8
        np.testing.assert_array_equal(codes.compute(), expected.encode(x).unpack().reshape(N, -1))


def test_neither_do_threads_nor_the_order_of_tasks(x):
    results = []
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler, num_workers=4):
            results.append(fit(MAKERS["additive"](), da.from_array(x, chunks=64), **OPTIONS | {"block_rows": 64}))
    assert_same(*results)


def test_each_pass_lowers_the_error(make, x):
    errors = [relative_error(fit(make(), x, **OPTIONS | {"passes": passes}), x) for passes in (0, 2, 5)]
    assert errors[0] > errors[1] > errors[2]


def test_no_pass_is_a_fit_to_a_sample_drawn_by_row_number(make, x):
    rows = np.sort(np.random.default_rng(3).choice(N, 300, replace=False))
    assert_same(fit(make(), x, **OPTIONS | {"passes": 0}), make().fit(x[rows], seed=3))


def test_a_pass_solves_the_least_squares_problem_of_all_rows(x):
    start = fit(MAKERS["additive"](), x, **OPTIONS | {"passes": 0})
    after = fit(MAKERS["additive"](), x, **OPTIONS | {"passes": 1})
    codes = start.encode(x).unpack()[:, 0]
    one_hot = np.concatenate([np.eye(16)[codes[:, m]] for m in range(3)], axis=1)
    best = one_hot @ np.linalg.lstsq(one_hot, x.astype(np.float64), rcond=None)[0]
    decoded = after.decode(start.encode(x))
    assert np.abs(decoded - best).max() < 0.005 * np.abs(x).max()
    assert np.square(x - decoded).sum() < 1.0001 * np.square(x - best).sum()


def test_a_residual_pass_takes_means_of_what_is_left(x):
    start = fit(MAKERS["residual"](), x, **OPTIONS | {"passes": 0})
    after = fit(MAKERS["residual"](), x, **OPTIONS | {"passes": 1})
    codes, left = start.encode(x).unpack()[:, 0], x.astype(np.float64)
    for m in range(3):
        uses = np.eye(16)[codes[:, m]]
        means = uses.T @ left / np.maximum(uses.sum(0), 1)[:, None]
        found = after.codebooks[m] * after.gain
        np.testing.assert_allclose(found[uses.any(0)], means[uses.any(0)], atol=0.01)
        left -= means[codes[:, m]]


def test_sums_over_parts_are_sums_over_all(x):
    codes = np.random.default_rng(1).integers(0, 4, (N, 1, 2)).astype(np.uint16)
    whole, left, right = (NormalEquations(2, 4, D) for _ in range(3))
    whole.add(codes, x)
    left.add(codes[:700], x[:700])
    right.add(codes[700:], x[700:])
    left.merge(right)
    np.testing.assert_array_equal(left.normal, whole.normal)
    np.testing.assert_allclose(left.right, whole.right, rtol=1e-12)


def test_unused_entries_stay(x):
    equations, old = NormalEquations(2, 4, D), np.random.default_rng(2).standard_normal((2, 4, D)).astype(np.float32)
    equations.add(np.zeros((N, 1, 2), np.uint16), x)
    for solved in (equations.solve(old), equations.solve_in_turn(old)):
        np.testing.assert_allclose(solved[:, 1:], old[:, 1:], rtol=1e-6)
        np.testing.assert_allclose(solved[:, 0].sum(0), x.mean(0, dtype=np.float64), atol=1e-3)


def test_files_go_by_blocks_of_rows(x, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", x)
    vectors = open_vectors(tmp_path / "x.npy")
    widest, original = [], NpyVectors._read
    monkeypatch.setattr(NpyVectors, "_read", lambda self, a, b: widest.append(b - a) or original(self, a, b))
    quantizer = fit(MAKERS["additive"](), vectors, **OPTIONS)
    assert max(widest) == 256
    assert_same(quantizer, fit(MAKERS["additive"](), x, **OPTIONS))
    codes = encode(quantizer, vectors, block_rows=100)
    assert codes.chunks[0] == (100,) * 15
    np.testing.assert_array_equal(codes.compute(), quantizer.encode(x).unpack().reshape(N, 3))


def test_wide_codes(x):
    quantizer = mcq.AdditiveQuantizer(1, 9, group_size=None, rounds=1).fit(x)
    codes = encode(quantizer, da.from_array(x, chunks=500)).compute()
    assert codes.dtype == np.uint16
    packed = mcq.Codes.pack(codes[:, None], codebook_bits=9, d=D)
    assert packed == quantizer.encode(x)


def test_progress_and_log(x, caplog):
    calls = []
    with caplog.at_level("INFO", "mcq"):
        fit(MAKERS["additive"](), x, **OPTIONS, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["pass 1", "pass 2"]


def test_a_bad_value_is_located_and_leaves_the_quantizer_as_it_was(x):
    bad = x.copy()
    rows = np.sort(np.random.default_rng(3).choice(N, 300, replace=False))
    where = next(row for row in range(600, N) if row not in rows)
    bad[where, 4] = np.nan
    quantizer = MAKERS["additive"]()
    with pytest.raises(
        InputError, match=f"rows from 512 on: x must be finite, but has nan at row {where - 512} column"
    ):
        fit(quantizer, bad, **OPTIONS)
    assert not quantizer.arrays
    with pytest.raises(InputError, match="in the sample of 300 rows: x must be finite"):
        fit(quantizer, np.full_like(x, np.inf), **OPTIONS)


def test_codes_are_those_of_the_quantizer_when_they_were_asked_for(x):
    quantizer = MAKERS["additive"]().fit(x[:200])
    expected = quantizer.encode(x).unpack().reshape(N, 3)
    codes = encode(quantizer, x)
    quantizer.fit(x[200:])
    np.testing.assert_array_equal(codes.compute(), expected)


def test_errors(x):
    plain = mcq.AdditiveQuantizer(2, 4, group_size=None)
    with pytest.raises(ConfigError, match="scale='row'"):
        fit(mcq.AdditiveQuantizer(2, 4, scale="row"), x)
    with pytest.raises(ConfigError, match="scale='row'"):
        encode(mcq.AdditiveQuantizer(2, 4, scale="row").fit(x), x)
    with pytest.raises(ConfigError, match="at most 4096 entries together.*got 8192"):
        fit(mcq.AdditiveQuantizer(2, 12, group_size=None), x)
    with pytest.raises(ConfigError, match="passes must be"):
        fit(plain, x, passes=-1)
    with pytest.raises(ConfigError, match="block_rows must be"):
        encode(plain, x, block_rows=0)
    with pytest.raises(NotFittedError):
        encode(plain, x)
    array = da.from_array(x, chunks=500)
    with pytest.raises(InputError, match=r"compute_chunk_sizes"):
        fit(plain, array[array[:, 0] > 0])
    with pytest.raises(InputError, match=r"must be a matrix"):
        fit(plain, array[0])
    with pytest.raises(InputError, match=r"must be a matrix"):
        fit(plain, x[:0])


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_half_way(x, tmp_path):
    distributed = pytest.importorskip("distributed")
    armed = tmp_path / "armed"

    def die_once(block):
        try:
            armed.unlink()
        except FileNotFoundError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)

    def arm(done, total):
        if done == 2:
            armed.touch()

    fragile = da.from_array(x, chunks=(200, D)).map_blocks(die_once, meta=np.empty((0, 0), np.float32))
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        before = set(client.run(os.getpid).values())
        found = fit(MAKERS["additive"](), fragile, **OPTIONS, progress=arm)
        client.wait_for_workers(2, timeout=60)
        after = set(client.run(os.getpid).values())
        codes = encode(found, fragile).compute()
    assert not armed.exists()
    assert len(before & after) == 1
    assert_same(found, fit(MAKERS["additive"](), x, **OPTIONS))
    np.testing.assert_array_equal(codes, found.encode(x).unpack().reshape(N, 3))


def test_the_page_and_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, scope)
    codes = np.load(tmp_path / "codes.npy")
    np.testing.assert_array_equal(codes, mcq.load("base.mcq").encode(scope["base"]).unpack()[:, 0])
    assert doctest.testmod(mcq_search.distributed).failed == 0
    assert doctest.testmod(mcq_search.readers).failed == 0


@pytest.mark.parametrize(
    "quantizer",
    [mcq.RelaxedQuantizer(2, 4, extents=(1, 0.5)), mcq.OutlierQuantizer(mcq.AdditiveQuantizer(2, 4, None))],
    ids=lambda quantizer: quantizer.kind,
)
def test_other_kinds_are_refused(quantizer, x):
    with pytest.raises(mcq.ConfigError, match="additive, residual and product quantizers, got"):
        fit(quantizer, x, **OPTIONS)
    with pytest.raises(mcq.ConfigError, match="additive, residual and product quantizers, got"):
        encode(quantizer.fit(x), x)
