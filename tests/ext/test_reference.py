"""Kernels against their specification: the same bits for any size, at every SIMD level and thread count."""

import inspect

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcq_ext import cpu, reference

# One row, around a tile of 8 and a span of 64, and enough for 5 threads.
ROWS = st.sampled_from([1, 2, 7, 8, 9, 16, 17, 33, 63, 64, 65, 71])
# Around the lane counts and the padding, and past the blocks of the searches.
ENTRIES = st.sampled_from([1, 2, 3, 4, 15, 16, 17, 64, 100, 256, 300])
COLUMNS = st.sampled_from([1, 2, 3, 7, 8, 16, 33])


def public_functions(module):
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


def test_modules_have_the_same_functions():
    assert set(public_functions(cpu)) == set(public_functions(reference))


@pytest.mark.parametrize("name", public_functions(reference))
def test_signatures_agree(name):
    assert inspect.signature(getattr(cpu, name)) == inspect.signature(getattr(reference, name))


@st.composite
def generators(draw):
    """A function that makes arrays of random numbers, or of small integers, which tie."""
    rng, ties = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.booleans())

    def make(*shape):
        values = rng.integers(-3, 4, shape) if ties else rng.standard_normal(shape)
        return values.astype(np.float32)

    make.rng = rng
    return make


def random_codes(make, num_entries, *shape):
    return make.rng.integers(num_entries, size=shape).astype(np.uint16)


def random_scale(make, kind, n, groups):
    """Scales (n, groups), some of them zero; for rows and none a broadcast view, as quantizers pass it."""
    shape = {"none": (1, 1), "row": (n, 1), "group": (n, groups)}[kind]
    scale = np.exp(make(*shape))
    scale[make.rng.random(shape) < 0.1] = 0
    return np.broadcast_to(scale, (n, groups))


SCALES = st.sampled_from(["none", "row", "group"])


@given(generators(), ROWS, st.sampled_from([1, 2, 8, 31, 255, 256, 257, 600]), COLUMNS, st.booleans())
@example(lambda *shape: np.ones(shape, np.float32), 41, 513, 70, True)
def test_matmul(assert_same, make, n, d, k, accumulate):
    wide, b, start = make(n, d + 5), make(d, k + 3)[:, 2:-1], make(n, k)
    a = wide[:, 3 : d + 3]

    def compute(kernels):
        out = start.copy()
        assert kernels.matmul(a, b, out=out, alpha=-0.7, accumulate=accumulate) is out
        return out, kernels.matmul(a, b)

    assert_same(compute)


@given(generators(), ROWS, ENTRIES, COLUMNS)
def test_assign_and_unary_table(assert_same, make, n, k, g):
    x, codebook, quad = make(n, g), make(k, g), make(k)
    codes, value = assert_same(lambda kernels: kernels.assign(x, codebook, quad))
    table = assert_same(lambda kernels: kernels.unary_table(x, codebook, quad))
    np.testing.assert_array_equal(codes, table.argmin(1))
    np.testing.assert_array_equal(value, table.min(1))


@pytest.mark.parametrize("k", [1024, 1 << 16])
def test_assign_to_many_entries(assert_same, k):
    rng = np.random.default_rng(0)
    x, codebook = (rng.standard_normal((n, 4)).astype(np.float32) for n in (41, k))
    quad = np.einsum("kg,kg->k", codebook, codebook)
    codes, _ = assert_same(lambda kernels: kernels.assign(x, codebook, quad))
    assert codes.max() > k // 2


@pytest.mark.parametrize("g", [256, 257, 5000])
def test_assign_of_long_rows(assert_same, g):
    rng = np.random.default_rng(0)
    x, codebook = (rng.standard_normal((n, g)).astype(np.float32) for n in (19, 16))
    quad = np.einsum("kg,kg->k", codebook, codebook)
    assert_same(lambda kernels: kernels.assign(x, codebook, quad))


@given(generators(), st.integers(1, 40), ENTRIES, COLUMNS)
def test_pair_table(assert_same, make, k_a, k_b, g):
    a, b, h = make(k_a, g), make(k_b, g), make(g, g)
    assert_same(lambda kernels: kernels.pair_table(a, b, h))


@given(generators(), ROWS, ENTRIES)
def test_pair_search(assert_same, make, n, k):
    unary_a, unary_b, pair = make(n, k), make(n, k), make(k, k)
    assert_same(lambda kernels: kernels.pair_search(unary_a, unary_b, pair))


TABLE_MOVES = [(0, 1), (1, 2), (0, 0), (0, 2), (2, 2), (1, 3), (3, 4)]


@given(generators(), st.sampled_from([1, 7, 8, 33, 65, 130]), ENTRIES, st.integers(1, 5), st.sampled_from([1, 3, 16]))
def test_searches_on_shared_tables(assert_same, make, n, k, num_codebooks, width):
    x, codebooks = make(n, 5), make(num_codebooks, k, 5)
    weights, pair = assert_same(lambda kernels: kernels.shared_tables(codebooks))
    unary = cpu.matmul(np.c_[x, np.ones(n, np.float32)], weights).reshape(n, num_codebooks, -1)
    proposed, cost = assert_same(lambda kernels: kernels.table_beam(unary, pair, width))
    _, half = assert_same(lambda kernels: kernels.shared_tables(codebooks, transposed=False))
    np.testing.assert_array_equal(half, pair[:1])
    if num_codebooks > 1:
        assert_same(lambda kernels: kernels.table_beam(unary, half, width))
        np.testing.assert_array_equal(cpu.table_beam(unary, half, width)[0], proposed)
    moves = np.array([move for move in TABLE_MOVES if max(move) < num_codebooks], np.uint8)
    start = random_codes(make, k, n, num_codebooks)

    def improve(kernels):
        codes = start.copy()
        return codes, kernels.table_moves(unary, pair, moves, codes), kernels.table_moves(unary, pair, moves[:0], codes)

    codes, moved, same = assert_same(improve)
    np.testing.assert_array_equal(moved, same)
    for chosen, value in ((proposed, cost), (codes, moved)):
        error = x - cpu.decode(np.ascontiguousarray(chosen[:, None]), codebooks, np.ones((n, 1), np.float32))
        np.testing.assert_allclose(value, (error**2).sum(1) - (x**2).sum(1), rtol=1e-4, atol=1e-3)
    before = cpu.table_moves(unary, pair, moves[:0], start.copy())
    assert (moved <= before + 1e-4 * np.abs(before) + 1e-4).all()


@given(generators(), st.sampled_from([1, 7, 8, 33]), ENTRIES, st.integers(1, 5), st.sampled_from([0.0, 0.5, 9.6]))
def test_moves_that_weigh_the_error_along_each_row(assert_same, make, n, k, num_codebooks, extra):
    x, codebooks = make(n, 5), make(num_codebooks, k, 5)
    weights, pair = cpu.shared_tables(codebooks)
    unary = cpu.matmul(np.c_[x, np.ones(n, np.float32)], weights).reshape(n, num_codebooks, -1)
    length = np.sqrt((x**2).sum(1))
    u = np.divide(x, length[:, None], out=np.zeros_like(x), where=length[:, None] > 0)
    along = np.zeros_like(unary)
    along[:, :, :k] = np.einsum("nd,mkd->nmk", u, codebooks)
    moves = np.array([(m, m) for m in (0, 2, 1, 4, 3, 0) if m < num_codebooks], np.uint8)
    start = random_codes(make, k, n, num_codebooks)

    def improve(kernels):
        codes = start.copy()
        return codes, kernels.score_moves(unary, along, length, extra, pair, moves, codes)

    codes, moved = assert_same(improve)
    before = cpu.score_moves(unary, along, length, extra, pair, moves[:0], start.copy())
    ones = np.ones((n, 1), np.float32)
    for chosen, cost in ((start, before), (codes, moved)):
        error = x - cpu.decode(np.ascontiguousarray(chosen[:, None]), codebooks, ones)
        wanted = (error**2).sum(1) - (x**2).sum(1) + extra * (error * u).sum(1) ** 2
        np.testing.assert_allclose(cost, wanted, rtol=1e-4, atol=2e-3)
    assert (moved <= before + 1e-4 * np.abs(before) + 1e-3).all()


def test_moves_in_large_shared_tables(assert_same):
    rng = np.random.default_rng(0)
    x, codebooks = (rng.standard_normal(shape).astype(np.float32) for shape in ((70, 3), (3, 600, 3)))
    weights, pair = cpu.shared_tables(codebooks)
    unary = cpu.matmul(np.c_[x, np.ones(70, np.float32)], weights).reshape(70, 3, -1)

    def improve(kernels):
        codes = np.zeros((70, 3), np.uint16)
        return codes, kernels.table_moves(unary, pair, np.array([(0, 1), (1, 2)], np.uint8), codes)

    assert_same(improve)


@pytest.mark.parametrize("k", [512, 1024])
def test_pair_search_in_large_tables(assert_same, k):
    rng = np.random.default_rng(0)
    unary_a, unary_b, pair = (rng.standard_normal((n, k)).astype(np.float32) for n in (9, 9, k))
    assert_same(lambda kernels: kernels.pair_search(unary_a, unary_b, pair))


def test_pair_search_when_rounding_hides_a_difference(assert_same):
    """The code b is the best for a before unary_a is added, which makes all sums equal."""
    unary_a, pair = np.full((3, 16), 1e8, np.float32), np.zeros((16, 16), np.float32)
    unary_b = np.tile(np.arange(16, 0, -1, dtype=np.float32), (3, 1))
    codes, _ = assert_same(lambda kernels: kernels.pair_search(unary_a, unary_b, pair))
    assert codes.tolist() == [[0, 15]] * 3


@given(generators(), ROWS, ENTRIES, st.integers(1, 6), st.integers(0, 3), st.sampled_from([1, 2, 5, 16, 256]))
def test_beam_step(assert_same, make, n, k, b, m, width):
    unary, pair, codes, cost = make(n, k), make(m * k, k), random_codes(make, k, n, b, m), make(n, b)
    cost[make.rng.random(cost.shape) < 0.2] = reference.PAD_COST
    _, _, new_cost = assert_same(lambda kernels: kernels.beam_step(unary, pair, codes, cost, width))
    assert (np.diff(new_cost, axis=1) >= 0).all()


MOVES = {
    1: [[(0, 0)]],
    2: [[(0, 1)], [(0, 0), (1, 1)]],
    3: [[(0, 1), (2, 2), (0, 2), (1, 2)], [(1, 1), (0, 2)], [(2, 2), (0, 0), (1, 1)]],
}


PROPOSALS = st.sampled_from([(0, False), (1, False), (4, False), (0, True)])


@st.composite
def sweeps(draw):
    """The arguments of a sweep, as a function that makes them anew, since a sweep changes them."""
    make = draw(generators())
    n, groups, g = draw(ROWS), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 8]))
    k = draw(st.sampled_from([1, 2, 3, 16, 17, 32]))
    num_codebooks = draw(st.integers(1, 3))
    moves = np.array(draw(st.sampled_from(MOVES[num_codebooks])), np.uint8)
    beam_width, starts = draw(PROPOSALS) if num_codebooks > 1 else (0, False)
    fresh = draw(st.booleans())
    codebooks, h = make(num_codebooks, k, g), make(groups * g, groups * g)
    scale = random_scale(make, draw(SCALES), n, groups)
    error, gradient = make(n, groups * g), make(n, groups * g)
    codes = random_codes(make, k, n, groups + 2, num_codebooks)

    def arguments():
        more_codes = codes.copy()
        view = more_codes[:, 1:-1]
        return error.copy(), gradient.copy(), view, scale, codebooks, h, moves, fresh, beam_width, starts

    return arguments


@settings(max_examples=100)
@given(sweeps())
def test_sweep(assert_same, arguments):
    def compute(kernels):
        error, gradient, codes, scale, codebooks, h, moves, fresh, *proposals = arguments()
        for again in range(3):  # later proposals meet good codes, which they should not replace
            kernels.sweep(error, gradient, codes, scale, codebooks, h, moves, fresh and not again, *proposals)
        return error, gradient, codes.base

    _, _, codes = assert_same(compute)
    before = arguments()[2].base
    np.testing.assert_array_equal(codes[:, [0, -1]], before[:, [0, -1]])


@pytest.mark.parametrize("beam_width", [0, 16])
def test_sweep_over_large_tables(assert_same, beam_width):
    """From 1024 entries on a line of the table serves 64 rows."""
    rng = np.random.default_rng(0)
    n, groups, g, k = 70, 2, 4, 1024
    codebooks, h = rng.standard_normal((2, k, g)).astype(np.float32), np.eye(groups * g, dtype=np.float32)
    x = rng.standard_normal((n, groups * g)).astype(np.float32)
    scale, moves = np.ones((n, groups), np.float32), np.array([(0, 1)], np.uint8)

    def compute(kernels):
        codes = np.zeros((n, groups, 2), np.uint16)
        error = x - reference.decode(codes, codebooks, scale)
        gradient = error.copy()
        kernels.sweep(error, gradient, codes, scale, codebooks, h, moves, True, beam_width)
        return error, gradient, codes

    assert_same(compute)


@given(generators(), ROWS, st.integers(1, 4), st.integers(1, 3), ENTRIES, COLUMNS, SCALES)
def test_decode_and_scatter_add(assert_same, make, n, groups, num_codebooks, k, g, kind):
    codes, scale = random_codes(make, k, n, groups, num_codebooks), random_scale(make, kind, n, groups)
    codebooks, values = make(num_codebooks, k, g), make(n, groups * g)
    decoded = assert_same(lambda kernels: kernels.decode(codes, codebooks, scale))
    sums = assert_same(lambda kernels: kernels.scatter_add(codes, values, scale, k))
    # One is the adjoint of the other.
    inner, outer = np.vdot(decoded, values.astype(np.float64)), np.vdot(codebooks, sums)
    bound = np.vdot(abs(decoded), abs(values)) + abs(codebooks.astype(np.float64) * sums).sum()
    assert abs(inner - outer) <= 1e-5 * bound


@given(st.integers(1, 64), st.integers(0, 40), st.integers(0, 20), st.integers(0, 2**32))
def test_pack_and_unpack(assert_same, bits, n, count, seed):
    words = np.random.default_rng(seed).integers((1 << bits) - 1, size=(n, count), dtype=np.uint64, endpoint=True)
    words = words.astype(np.uint16 if bits <= 16 else np.uint64)
    packed = assert_same(lambda kernels: kernels.pack_bits(words, bits))
    assert packed.shape == (n, -(-count * bits // 8))
    unpacked = assert_same(lambda kernels: kernels.unpack_bits(packed, bits, count))
    np.testing.assert_array_equal(unpacked, words)


@pytest.mark.parametrize("bits", range(1, 65))
def test_pack_and_unpack_every_width(assert_same, bits):
    words = np.tile(np.array([0, (1 << bits) - 1, 1], np.uint16 if bits <= 16 else np.uint64), (17, 11))
    packed = assert_same(lambda kernels: kernels.pack_bits(words, bits))
    unpacked = assert_same(lambda kernels: kernels.unpack_bits(packed, bits, words.shape[1]))
    np.testing.assert_array_equal(unpacked, words)


NO_ROWS = {
    "matmul": lambda kernels: kernels.matmul(np.empty((0, 3), np.float32), np.ones((3, 4), np.float32)),
    "assign": lambda kernels: kernels.assign(
        np.empty((0, 3), np.float32), np.ones((4, 3), np.float32), np.ones(4, np.float32)
    ),
    "pair_search": lambda kernels: kernels.pair_search(*np.empty((2, 0, 4), np.float32), np.ones((4, 4), np.float32)),
    "decode": lambda kernels: kernels.decode(
        np.empty((0, 2, 1), np.uint16), np.ones((1, 4, 3), np.float32), np.empty((0, 2), np.float32)
    ),
}


@pytest.mark.parametrize("compute", NO_ROWS.values(), ids=NO_ROWS)
def test_no_rows(assert_same, compute):
    assert_same(compute)
