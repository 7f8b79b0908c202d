"""Codebooks for whole vectors, and the searches on shared tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mcq
from mcq import score_aware, vectors
from mcq.encoders.tables import TableSearch, plan, tables_fit
from mcq.problem import Problem
from mcq_ext import cpu

D = 24
RNG = np.random.default_rng(0)


def sample(n, seed=0):
    """Rows whose slices have clusters of their own, mixed a little, away from the origin."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((4, 8, D // 4)) * 3
    rows = np.concatenate([centre[rng.integers(8, size=n)] for centre in centres], axis=1)
    return (rows + rng.standard_normal((n, D)) + 5).astype(np.float32)


X, HELD_OUT = sample(3000), sample(800, seed=2)


def relative(quantizer, x):
    return mcq.Identity().relative_error(x - x.mean(0), quantizer.decode(quantizer.encode(x)) - x.mean(0))


def additive(**options):
    return mcq.AdditiveQuantizer(4, 5, group_size=None, **options)


def test_additive_codes_are_at_least_as_good_as_those_with_fewer_freedoms():
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((D, D)))[0].astype(np.float32)
    for learn, other, gain_on_product in ((X, HELD_OUT, 1.02), (X @ turn, HELD_OUT @ turn, 0.9)):
        joint = relative(additive().fit(learn), other)
        assert joint < 0.95 * relative(mcq.ResidualQuantizer(4, 5, group_size=None).fit(learn), other)
        assert joint < gain_on_product * relative(mcq.ProductQuantizer(4, 1, 5).fit(learn), other)


def test_an_offset_costs_nothing():
    assert relative(additive().fit(X + 100), HELD_OUT + 100) == pytest.approx(
        relative(additive().fit(X), HELD_OUT), rel=0.05
    )


def test_more_steps_never_cost_more():
    quantizers = [additive(search_steps=steps) for steps in (0, 1, 2, 5, 20)]
    fitted = quantizers[0].fit(X)
    for quantizer in quantizers:
        quantizer.arrays = fitted.arrays
    errors = [np.square(HELD_OUT - q.decode(q.encode(HELD_OUT))).sum(1) for q in quantizers]
    for fewer, more in zip(errors, errors[1:], strict=False):
        assert (more <= fewer * (1 + 1e-4) + 1e-3).all()
    assert errors[-1].mean() < errors[0].mean()


def test_codes_do_not_depend_on_the_batch(monkeypatch):
    quantizer = additive().fit(X)
    codes = quantizer.encode(HELD_OUT)
    assert quantizer.encode(HELD_OUT[100:333]) == codes[100:333]
    monkeypatch.setattr("mcq.encoders.tables.UNARY_BYTES", 1 << 14)
    assert quantizer.encode(HELD_OUT) == codes


@pytest.mark.parametrize("n", [1, 2, 9, 31])
def test_few_rows_are_coded_well(n):
    quantizer = additive()
    rebuilt = quantizer.decode(quantizer.fit_encode(X[:n]))
    assert mcq.Identity().relative_error(X[:n], rebuilt) < 0.01


@pytest.mark.parametrize("rows", [np.zeros((50, D)), np.full((50, D), 3.0), np.repeat(X[:3], 40, axis=0)], ids=str)
def test_rows_that_repeat(rows):
    quantizer = additive()
    np.testing.assert_allclose(quantizer.decode(quantizer.fit_encode(rows)), rows, rtol=0.02, atol=0.02)


def test_the_better_start_wins():
    problem = Problem.arrange(X, None, None)
    errors = {}
    for start in (vectors.product_start, vectors.residual_start):
        codebooks = vectors._tried(start, problem, 4, 32, np.random.default_rng(0))
        errors[start] = TableSearch(codebooks).loss(HELD_OUT / np.float32(problem.gain), 16, [])
    assert errors[vectors.product_start] != pytest.approx(errors[vectors.residual_start], rel=0.01)
    _, chosen, _ = vectors._best_start(problem, 4, 32, np.random.default_rng(0))
    assert TableSearch(chosen).loss(HELD_OUT / np.float32(problem.gain), 16, []) < 1.05 * min(errors.values())


def test_shrunk_codebooks_solve_their_problem(monkeypatch):
    monkeypatch.setattr(vectors, "SHRINKING_STEPS", 200)
    x = RNG.standard_normal((60, 3)).astype(np.float32)
    codes = RNG.integers(4, size=(60, 3)).astype(np.uint16)
    start = RNG.standard_normal((3, 4, 3)).astype(np.float32)
    found = vectors.shrunk(x, codes, start)
    ones = np.ones((60, 1), np.float32)
    residual = np.square(x - cpu.decode(np.ascontiguousarray(codes[:, None]), start, ones)).mean(0)
    penalty = vectors.SHRINKAGE * residual / start.var(1)
    chosen = np.concatenate([np.eye(4)[codes[:, m]] for m in range(3)], axis=1)
    for j in range(3):
        system = chosen.T @ chosen + np.diag(np.repeat(penalty[:, j], 4))
        expected = np.linalg.solve(system, chosen.T @ x[:, j])
        np.testing.assert_allclose(found[:, :, j].ravel(), expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 4), st.integers(0, 2**32))
def test_plans(num_codebooks, count, seed):
    steps = plan(num_codebooks, 16, count, np.random.default_rng(seed))
    assert len(steps) == count
    for i, step in enumerate(steps):
        assert (np.count_nonzero(step.shift) == min(2, num_codebooks)) == (i > 0) or i == 0
        assert (step.moves[:, 0] < step.moves[:, 1]).all()
        assert (
            len(np.unique(step.moves, axis=0))
            == len(step.moves)
            == min(2 * (num_codebooks - 1), num_codebooks * (num_codebooks - 1) // 2)
        )


def test_large_codebooks_are_chosen_one_at_a_time(monkeypatch):
    (step,) = plan(4, 1024, 1, np.random.default_rng(0))
    assert (step.moves[:, 0] == step.moves[:, 1]).all()
    assert set(step.moves[:, 0]) == {0, 1, 2, 3}
    monkeypatch.setattr("mcq.encoders.tables.MAX_PAIRED", 16)
    quantizer, errors = additive(rounds=2).fit(X), []
    for search_steps in (0, 1, 4):
        searching = additive(search_steps=search_steps, beam_width=1)
        searching.arrays = quantizer.arrays
        errors.append(relative(searching, HELD_OUT))
    assert errors[0] > errors[1] > errors[2]


def test_tables_that_are_too_large_are_not_built():
    assert tables_fit(4, 4096)
    assert tables_fit(8, 256)
    assert tables_fit(32, 256)
    assert not tables_fit(64, 256)
    assert not tables_fit(8, 4096)
    quantizer = mcq.AdditiveQuantizer(17, 4, group_size=None, rounds=1)
    assert quantizer.fit_encode(X[:100]).num_codebooks == 17


class TestRotation:
    MIXED = (
        RNG.standard_normal((2000, D)) * np.arange(1, D + 1) ** -1.0 @ np.linalg.qr(RNG.standard_normal((D, D)))[0]
    ).astype(np.float32)

    @pytest.mark.parametrize("rotation", ["random", "learned"])
    @pytest.mark.parametrize("num_splits", [1, 3, 5, 24, 30])
    def test_is_orthogonal_and_undone(self, rotation, num_splits):
        quantizer = mcq.ProductQuantizer(num_splits, 1, 4, rotation=rotation, rounds=1)
        codes = quantizer.fit_encode(self.MIXED[:300])
        np.testing.assert_allclose(quantizer.rotation @ quantizer.rotation.T, np.eye(D), atol=1e-4)
        assert mcq.Identity().relative_error(self.MIXED[:300], quantizer.decode(codes)) < 1

    @pytest.mark.parametrize("rotation", ["none", "random", "learned"])
    @pytest.mark.parametrize(
        "rows", [MIXED[:1], MIXED[:7], np.repeat(MIXED[:2], 9, axis=0), np.full((20, D), 2.5), np.zeros((20, D))]
    )
    def test_few_or_equal_rows_are_coded_well(self, rotation, rows):
        quantizer = mcq.ProductQuantizer(4, 1, 4, rotation=rotation, rounds=2)
        rebuilt = quantizer.decode(quantizer.fit_encode(rows))
        np.testing.assert_allclose(rebuilt, rows, atol=5e-3 * max(1, np.abs(rows).max()))

    def test_learned_rotation_pays(self):
        errors = {
            rotation: mcq.Identity().relative_error(self.MIXED, q.decode(q.encode(self.MIXED)))
            for rotation in ("none", "learned")
            for q in [mcq.ProductQuantizer(6, 1, 5, rotation=rotation, rounds=2).fit(self.MIXED)]
        }
        assert errors["learned"] < 0.9 * errors["none"]


class TestProductMetrics:
    WEIGHTS = np.exp(2 * np.random.default_rng(4).standard_normal(D))

    @pytest.mark.parametrize("num_codebooks", [1, 3])
    @pytest.mark.parametrize("num_splits", [4, 5])  # 5 slices of 5 entries, of which the last has a column of padding
    def test_weights_are_those_of_the_slices(self, num_codebooks, num_splits):
        metric, quantizer = mcq.Diagonal(self.WEIGHTS), mcq.ProductQuantizer(num_splits, num_codebooks, 3, rounds=3)
        weighted = metric.relative_error(X, quantizer.decode(quantizer.fit_encode(X, metric)))
        plain = metric.relative_error(X, quantizer.decode(quantizer.fit_encode(X)))
        assert weighted < 0.95 * plain

    def test_one_codebook_takes_the_nearest_entry_under_the_weights(self):
        quantizer = mcq.ProductQuantizer(5, 1, 3, rounds=1).fit(X[:200])
        codes = quantizer.encode(X[:60], mcq.Diagonal(self.WEIGHTS)).unpack()
        entries = quantizer.codebooks[:, 0].astype(np.float64) * quantizer.gain
        rows, weights = (np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 1)]) for a in (X[:60].astype(float), self.WEIGHTS))
        for s in range(5):
            part = slice(5 * s, 5 * s + 5)
            cost = (np.square(rows[:, None, part] - entries[s]) * weights[part]).sum(2)
            found = np.take_along_axis(cost, codes[:, s].astype(int), 1)[:, 0]
            np.testing.assert_allclose(found, cost.min(1), rtol=1e-4)

    def test_equal_weights_are_the_identity(self):
        quantizer = mcq.ProductQuantizer(4, 1, 4, rounds=2).fit(X)
        assert quantizer.encode(X, mcq.Diagonal(np.full(D, 4.0))) == quantizer.encode(X)

    def test_slices_may_be_without_weight(self):
        metric = mcq.Diagonal(np.r_[np.ones(6), np.zeros(D - 6)])
        quantizer = mcq.ProductQuantizer(4, 1, 4, rounds=2)
        assert metric.relative_error(X, quantizer.decode(quantizer.fit_encode(X, metric))) < 0.1

    @pytest.mark.parametrize(
        ("metric", "rotation", "message"),
        [
            (mcq.Gram(np.eye(D)), "none", "Gram couples them.*AdditiveQuantizer, which takes any"),
            (mcq.LowRank(np.ones(D), np.ones((D, 1))), "random", "LowRank couples them"),
            (mcq.Diagonal(np.ones(D)), "random", 'after a rotation, got rotation="random"'),
            (mcq.Diagonal(np.ones(D - 1)), "none", "weighs 23 columns"),
        ],
    )
    def test_what_couples_slices_is_refused(self, metric, rotation, message):
        quantizer = mcq.ProductQuantizer(4, 1, 4, rotation=rotation, rounds=1).fit(X[:100])
        for use in (quantizer.fit, quantizer.encode):
            with pytest.raises(mcq.InputError, match=message):
                use(X[:100], metric)


@pytest.mark.parametrize("use", ["fit", "encode"])
def test_product_quantizers_locate_values_that_are_not_finite(use):
    quantizer, bad = mcq.ProductQuantizer(4, 1, 4, rounds=1).fit(X[:200]), X[:200].copy()
    bad[150, 3] = np.inf
    with pytest.raises(mcq.InputError, match="inf at row 150 column 3"):
        getattr(quantizer, use)(bad)


def test_product_codes_of_other_options_are_refused():
    first, second = (mcq.ProductQuantizer(splits, 1, 4, rounds=1).fit(X[:200]) for splits in (4, 6))
    with pytest.raises(mcq.InputError, match="same options"):
        first.decode(second.encode(X[:5]))


class TestScoreAware:
    METRIC = mcq.ScoreAware(5.0)
    ROWS = (X - 5).astype(np.float32)

    def fitted(self, metric):
        return mcq.AdditiveQuantizer(4, 4, group_size=None, rounds=3).fit(self.ROWS, metric)

    def test_distortion_is_that_of_the_matrix_of_each_row(self):
        x, x_hat = self.ROWS[:20].astype(np.float64), self.ROWS[20:40].astype(np.float64)
        x[3] = 0
        total = 0.0
        for row, error in zip(x, x - x_hat, strict=True):
            u = row / np.linalg.norm(row) if row.any() else row
            total += error @ (np.eye(D) + 4 * np.outer(u, u)) @ error
        assert self.METRIC.distortion(x, x_hat) == pytest.approx(total, rel=1e-5)
        assert self.METRIC.relative_error(x, 0 * x) == 1
        assert mcq.ScoreAware(1).distortion(x, x_hat) == pytest.approx(mcq.Identity().distortion(x, x_hat))

    def test_a_fit_lowers_its_own_distortion(self):
        aware, plain = self.fitted(self.METRIC), self.fitted(None)
        for metric, better, worse in ((self.METRIC, aware, plain), (mcq.Identity(), plain, aware)):
            errors = [
                metric.distortion(HELD_OUT - 5, q.decode(q.encode(HELD_OUT - 5, metric))) for q in (better, worse)
            ]
            assert errors[0] < errors[1]

    def test_codes_are_better_than_those_without_it(self):
        quantizer = self.fitted(None)
        with_it, without = (
            self.METRIC.distortion(self.ROWS, quantizer.decode(quantizer.encode(self.ROWS, metric)))
            for metric in (self.METRIC, None)
        )
        assert with_it < without

    def test_equal_weights_are_the_identity(self):
        quantizer = mcq.AdditiveQuantizer(4, 4, group_size=None, search_steps=0)
        quantizer.arrays = self.fitted(None).arrays
        assert quantizer.encode(self.ROWS, mcq.ScoreAware(1.0)) == quantizer.encode(self.ROWS)

    def test_no_step_of_a_fit_raises_the_distortion(self):
        problem = Problem.arrange(self.ROWS[:500], None, None)
        rng = np.random.default_rng(0)
        codebooks = rng.standard_normal((4, 16, D)).astype(np.float32) / 2
        codes = rng.integers(16, size=(500, 4)).astype(np.uint16)

        def distortion():
            ones = np.ones((500, 1), np.float32)
            return self.METRIC.distortion(problem.x, cpu.decode(np.ascontiguousarray(codes[:, None]), codebooks, ones))

        values = [distortion()]
        for _ in range(4):
            codebooks, codes = score_aware.learn(problem, 5.0, codebooks, codes, 1, rng, lambda done, total: None)
            values.append(distortion())
        assert all(after <= before * (1 + 1e-5) for before, after in zip(values, values[1:], strict=False))
        assert values[-1] < 0.5 * values[0]

    def test_zero_rows_and_batches(self, monkeypatch):
        rows = self.ROWS.copy()
        rows[::7] = 0
        quantizer = self.fitted(self.METRIC)
        codes = quantizer.encode(rows, self.METRIC)
        assert quantizer.encode(rows[100:333], self.METRIC) == codes[100:333]
        monkeypatch.setattr("mcq.encoders.tables.UNARY_BYTES", 1 << 14)
        assert quantizer.encode(rows, self.METRIC) == codes

    @pytest.mark.parametrize(
        "quantizer",
        [
            mcq.AdditiveQuantizer(2, 4, group_size=None),
            mcq.AdditiveQuantizer(4, 4, group_size=8),
            mcq.AdditiveQuantizer(4, 4, group_size=None, scale="row"),
            mcq.ResidualQuantizer(4, 4, group_size=None),
            mcq.ProductQuantizer(4, 3, 4),
            mcq.PyramidQuantizer(),
            mcq.ScalarQuantizer(),
            mcq.CompandedQuantizer(),
            mcq.GridQuantizer(),
        ],
        ids=repr,
    )
    def test_everything_else_refuses_it(self, quantizer):
        with pytest.raises(mcq.InputError, match="needs AdditiveQuantizer with group_size=None"):
            quantizer.fit(self.ROWS[:64], self.METRIC)

    def test_eta(self):
        assert mcq.ScoreAware.at_threshold(0.2, 101).eta == pytest.approx(100 * 0.04 / 0.96)
        assert mcq.ScoreAware.at_threshold(0.0, 101).eta == 1
        for call in (lambda: mcq.ScoreAware(0.5), lambda: mcq.ScoreAware.at_threshold(1.0, 9)):
            with pytest.raises(mcq.ConfigError, match="must be a number"):
                call()
