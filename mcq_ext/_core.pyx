"""Thin door to the C kernels: memoryviews in, GIL released, one call through the table of the chosen SIMD level.

Nothing is checked or allocated here; `mcq_ext.cpu` does both.
"""

from libc.stddef cimport ptrdiff_t, size_t
from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "mcq_kernels.h" nogil:
    ctypedef struct mcq_block:
        size_t num_groups, g, M, K, K_pad, num_moves
        int fresh
        size_t beam_width
        int starts
        const uint8_t *moves
        const float *h_ww
        const float *codebooks
        const float *entries_t
        const float *quad
        const float *pair

    ctypedef struct mcq_tables:
        size_t M, K, K_pad, num_moves
        const uint8_t *moves
        const float *pair

    ctypedef struct mcq_pyramid:
        size_t N, num_gains
        float pulses
        const float *gains
        const float *weights_N
        const float *spread_N

    ctypedef struct mcq_leaders:
        size_t N, num_leaders
        const float *leaders_KN
        const float *factor_K

    ctypedef struct mcq_shell:
        size_t N, num_gains, squared_norm
        const float *gains
        const float *weights_N

    ctypedef struct mcq_budget:
        size_t N, budget
        int squared
        const float *factor_NN

    ctypedef struct mcq_trellis:
        size_t d, row_bytes
        unsigned state_bits
        const uint32_t *offset_d
        const float *value_S
        const float *weight_d
        size_t groups, width
        const float *feedback_dd
        size_t stride

    ctypedef struct mcq_lattice:
        size_t N
        ptrdiff_t budget
        int squared
        ptrdiff_t row_step, budget_step, value_step
        const uint64_t *table

    ctypedef struct mcq_kernels:
        void (*matmul)(const float *, size_t, const float *, size_t, float *, size_t, size_t, size_t, size_t, float,
                       int) noexcept nogil
        void (*assign)(const float *, const float *, const float *, uint16_t *, float *, float *, size_t, size_t,
                       size_t, size_t) noexcept nogil
        void (*unary_table)(const float *, const float *, const float *, float *, size_t, size_t, size_t) noexcept nogil
        void (*pair_search)(const float *, const float *, const float *, uint16_t *, float *, size_t, size_t,
                            size_t) noexcept nogil
        void (*sweep)(const mcq_block *, float *, float *, uint16_t *, size_t, const float *, ptrdiff_t, ptrdiff_t,
                      float *, size_t) noexcept nogil
        void (*beam_step)(const float *, const float *, const uint16_t *, const float *, int32_t *, uint16_t *, float *,
                          size_t, size_t, size_t, size_t, size_t, size_t) noexcept nogil
        void (*table_beam)(const mcq_tables *, const float *, uint16_t *, float *, size_t, size_t) noexcept nogil
        void (*table_moves)(const mcq_tables *, const float *, uint16_t *, float *, float *, size_t) noexcept nogil
        void (*score_moves)(const mcq_tables *, const float *, const float *, const float *, float, uint16_t *, float *,
                            float *, size_t) noexcept nogil
        void (*decode)(const uint16_t *, const float *, const float *, ptrdiff_t, ptrdiff_t, float *, size_t, size_t,
                       size_t, size_t, size_t) noexcept nogil
        void (*scatter_add)(const uint16_t *, const float *, const float *, ptrdiff_t, ptrdiff_t, double *, size_t,
                            size_t, size_t, size_t, size_t, size_t, size_t) noexcept nogil
        void (*pack_bits)(const uint16_t *, uint8_t *, size_t, size_t, unsigned) noexcept nogil
        void (*unpack_bits)(const uint8_t *, uint16_t *, size_t, size_t, unsigned) noexcept nogil
        void (*pack_words)(const uint64_t *, uint8_t *, size_t, size_t, unsigned) noexcept nogil
        void (*unpack_words)(const uint8_t *, uint64_t *, size_t, size_t, unsigned) noexcept nogil
        size_t (*cholesky_rows)(double *, size_t, size_t, size_t) noexcept nogil
        void (*cholesky_update)(double *, size_t, size_t, size_t, size_t, size_t) noexcept nogil
        void (*cholesky_solve)(const double *, double *, size_t, size_t) noexcept nogil
        void (*pyramid_search)(const mcq_pyramid *, const float *, const float *, int16_t *, uint8_t *,
                               size_t) noexcept nogil
        void (*leader_search)(const mcq_leaders *, const float *, int16_t *, float *, size_t) noexcept nogil
        void (*shell_search)(const mcq_shell *, const float *, const float *, int16_t *, uint8_t *, float *,
                             size_t) noexcept nogil
        void (*budget_search)(const mcq_budget *, const float *, const float *, int16_t *, float *,
                              size_t) noexcept nogil
        void (*trellis_search)(const mcq_trellis *, const float *, const float *, uint8_t *, float *, uint8_t *,
                               size_t) noexcept nogil
        void (*trellis_beam)(const mcq_trellis *, const float *, const float *, uint8_t *, float *,
                             size_t) noexcept nogil
        void (*trellis_decode)(const mcq_trellis *, const uint8_t *, const float *, float *, uint8_t *,
                               size_t) noexcept nogil
        void (*lattice_rank)(const mcq_lattice *, const int16_t *, uint64_t *, size_t) noexcept nogil
        void (*lattice_unrank)(const mcq_lattice *, const uint64_t *, int16_t *, size_t) noexcept nogil
        void (*hadamard)(const float *, const float *, float *, size_t, size_t, size_t, int) noexcept nogil

    const char *mcq_level_name(int)
    const mcq_kernels *mcq_level_kernels(int)


cdef const mcq_kernels *kernels = mcq_level_kernels(0)
cdef int current = 0


def levels():
    """Names of the SIMD levels that this build has and this CPU runs, slowest first."""
    cdef int i = 0
    names = []
    while mcq_level_name(i) != NULL:
        names.append(mcq_level_name(i).decode())
        i += 1
    return names


def level():
    """Index of the level in use."""
    return current


def set_level(int index):
    """Switches every kernel to a level of `levels()`."""
    global kernels, current
    kernels = mcq_level_kernels(index)
    current = index


def matmul(const float[:, :] a, const float[:, :] b, float[:, :] out, float alpha, bint accumulate):
    with nogil:
        kernels.matmul(&a[0, 0], a.strides[0] // 4, &b[0, 0], b.strides[0] // 4, &out[0, 0], out.strides[0] // 4,
                       a.shape[0], a.shape[1], b.shape[1], alpha, accumulate)


def assign(const float[:, ::1] x, const float[:, ::1] entries_t, const float[::1] quad, size_t K, uint16_t[::1] codes,
           float[::1] value, float[::1] scratch):
    with nogil:
        kernels.assign(&x[0, 0], &entries_t[0, 0], &quad[0], &codes[0], &value[0], &scratch[0], x.shape[0], x.shape[1],
                       K, quad.shape[0])


def unary_table(const float[:, ::1] x, const float[:, ::1] entries_t, const float[::1] quad, float[:, ::1] unary):
    with nogil:
        kernels.unary_table(&x[0, 0], &entries_t[0, 0], &quad[0], &unary[0, 0], x.shape[0], x.shape[1], quad.shape[0])


def pair_search(const float[:, ::1] unary_a, const float[:, ::1] unary_b, const float[:, ::1] pair, uint16_t[:, ::1] codes,
                float[::1] value):
    with nogil:
        kernels.pair_search(&unary_a[0, 0], &unary_b[0, 0], &pair[0, 0], &codes[0, 0], &value[0], unary_a.shape[0],
                            pair.shape[0], pair.shape[1])


def sweep(float[:, ::1] error, float[:, ::1] gradient, uint16_t[:, :, :] codes, const float[:, :] scale,
          const float[:, ::1] h_ww, const float[:, :, ::1] codebooks, const float[:, :, ::1] entries_t,
          const float[:, :, ::1] quad, const float[:, :, :, ::1] pair, const uint8_t[:, ::1] moves,
          bint fresh, size_t beam_width, bint starts, float[::1] scratch):
    cdef mcq_block block
    block.num_groups = quad.shape[0]
    block.M = codebooks.shape[0]
    block.K = codebooks.shape[1]
    block.g = codebooks.shape[2]
    block.K_pad = quad.shape[2]
    block.num_moves = moves.shape[0]
    block.fresh = fresh
    block.beam_width = beam_width
    block.starts = starts
    block.moves = &moves[0, 0]
    block.h_ww = &h_ww[0, 0]
    block.codebooks = &codebooks[0, 0, 0]
    block.entries_t = &entries_t[0, 0, 0]
    block.quad = &quad[0, 0, 0]
    block.pair = &pair[0, 0, 0, 0] if pair is not None else NULL
    with nogil:
        kernels.sweep(&block, &error[0, 0], &gradient[0, 0], &codes[0, 0, 0], codes.strides[0] // 2, &scale[0, 0],
                      scale.strides[0] // 4, scale.strides[1] // 4, &scratch[0], error.shape[0])


def beam_step(const float[:, ::1] unary, const float[:, ::1] pair, const uint16_t[:, :, ::1] codes, const float[:, ::1] cost,
              int32_t[:, ::1] parent, uint16_t[:, ::1] entry, float[:, ::1] new_cost, size_t K):
    cdef const uint16_t *codes_pointer = NULL
    cdef const float *pair_pointer = NULL
    if codes.shape[2] > 0:
        codes_pointer = &codes[0, 0, 0]
        pair_pointer = &pair[0, 0]
    with nogil:
        kernels.beam_step(&unary[0, 0], pair_pointer, codes_pointer, &cost[0, 0], &parent[0, 0], &entry[0, 0],
                          &new_cost[0, 0], unary.shape[0], codes.shape[1], codes.shape[2], parent.shape[1],
                          K, unary.shape[1])


def table_beam(const float[:, :, ::1] unary, const float[:, :, :, ::1] pair, size_t width, uint16_t[:, ::1] codes,
               float[::1] cost):
    cdef mcq_tables tables
    tables.M = unary.shape[1]
    tables.K = pair.shape[2]
    tables.K_pad = unary.shape[2]
    tables.pair = &pair[0, 0, 0, 0]
    with nogil:
        kernels.table_beam(&tables, &unary[0, 0, 0], &codes[0, 0], &cost[0], width, unary.shape[0])


def table_moves(const float[:, :, ::1] unary, const float[:, :, :, ::1] pair, const uint8_t[:, ::1] moves,
                uint16_t[:, ::1] codes, float[::1] cost, float[::1] scratch):
    cdef mcq_tables tables
    tables.M = unary.shape[1]
    tables.K = pair.shape[2]
    tables.K_pad = unary.shape[2]
    tables.pair = &pair[0, 0, 0, 0]
    tables.num_moves = moves.shape[0]
    tables.moves = &moves[0, 0] if moves.shape[0] else NULL
    with nogil:
        kernels.table_moves(&tables, &unary[0, 0, 0], &codes[0, 0], &cost[0], &scratch[0], unary.shape[0])


def score_moves(const float[:, :, ::1] unary, const float[:, :, ::1] along, const float[::1] length, float extra,
                const float[:, :, :, ::1] pair, const uint8_t[:, ::1] moves, uint16_t[:, ::1] codes, float[::1] cost,
                float[::1] scratch):
    cdef mcq_tables tables
    tables.M = unary.shape[1]
    tables.K = pair.shape[2]
    tables.K_pad = unary.shape[2]
    tables.pair = &pair[0, 0, 0, 0]
    tables.num_moves = moves.shape[0]
    tables.moves = &moves[0, 0] if moves.shape[0] else NULL
    with nogil:
        kernels.score_moves(&tables, &unary[0, 0, 0], &along[0, 0, 0], &length[0], extra, &codes[0, 0], &cost[0],
                            &scratch[0], unary.shape[0])


def decode(const uint16_t[:, :, ::1] codes, const float[:, :, ::1] codebooks, const float[:, :] scale, float[:, ::1] out):
    with nogil:
        kernels.decode(&codes[0, 0, 0], &codebooks[0, 0, 0], &scale[0, 0], scale.strides[0] // 4, scale.strides[1] // 4,
                       &out[0, 0], codes.shape[0], codes.shape[1], codes.shape[2], codebooks.shape[1],
                       codebooks.shape[2])


def scatter_add(const uint16_t[:, :, ::1] codes, const float[:, ::1] values, const float[:, :] scale,
                double[:, :, ::1] sums, size_t first, size_t last):
    with nogil:
        kernels.scatter_add(&codes[0, 0, 0], &values[0, 0], &scale[0, 0], scale.strides[0] // 4, scale.strides[1] // 4,
                            &sums[0, 0, 0], codes.shape[0], codes.shape[1], codes.shape[2], sums.shape[1],
                            sums.shape[2], first, last)


def pack_bits(const uint16_t[:, ::1] words, unsigned bits, uint8_t[:, ::1] packed):
    with nogil:
        kernels.pack_bits(&words[0, 0], &packed[0, 0], words.shape[0], words.shape[1], bits)


def unpack_bits(const uint8_t[:, ::1] packed, unsigned bits, uint16_t[:, ::1] words):
    with nogil:
        kernels.unpack_bits(&packed[0, 0], &words[0, 0], words.shape[0], words.shape[1], bits)


def pack_words(const uint64_t[:, ::1] words, unsigned bits, uint8_t[:, ::1] packed):
    with nogil:
        kernels.pack_words(&words[0, 0], &packed[0, 0], words.shape[0], words.shape[1], bits)


def unpack_words(const uint8_t[:, ::1] packed, unsigned bits, uint64_t[:, ::1] words):
    with nogil:
        kernels.unpack_words(&packed[0, 0], &words[0, 0], words.shape[0], words.shape[1], bits)


def cholesky_rows(double[:, ::1] a, size_t first, size_t last):
    cdef size_t failed
    with nogil:
        failed = kernels.cholesky_rows(&a[0, 0], a.shape[0], first, last)
    return failed


def cholesky_update(double[:, ::1] a, size_t first, size_t last, size_t start, size_t stop):
    with nogil:
        kernels.cholesky_update(&a[0, 0], a.shape[0], first, last, start, stop)


def cholesky_solve(const double[:, ::1] u, double[:, ::1] b):
    with nogil:
        kernels.cholesky_solve(&u[0, 0], &b[0, 0], b.shape[0], b.shape[1])


def pyramid_search(const float[:, ::1] x, const float[::1] inverse, const float[::1] gains, const float[::1] weights,
                   const float[::1] spread, float pulses, int16_t[:, ::1] y, uint8_t[::1] gain):
    cdef mcq_pyramid pyramid
    pyramid.N = x.shape[1]
    pyramid.num_gains = gains.shape[0]
    pyramid.pulses = pulses
    pyramid.gains = &gains[0]
    pyramid.weights_N = &weights[0]
    pyramid.spread_N = &spread[0]
    with nogil:
        kernels.pyramid_search(&pyramid, &x[0, 0], &inverse[0], &y[0, 0], &gain[0], x.shape[0])


def leader_search(const float[:, ::1] x, const float[:, ::1] leaders, const float[::1] factor, int16_t[:, ::1] y,
                  float[::1] product):
    cdef mcq_leaders table
    table.N = x.shape[1]
    table.num_leaders = leaders.shape[0]
    table.leaders_KN = &leaders[0, 0]
    table.factor_K = &factor[0]
    with nogil:
        kernels.leader_search(&table, &x[0, 0], &y[0, 0], &product[0], x.shape[0])


def shell_search(const float[:, ::1] x, const float[::1] inverse, const float[::1] gains, const float[::1] weights,
                 size_t squared_norm, int16_t[:, ::1] y, uint8_t[::1] gain, float[::1] scratch):
    cdef mcq_shell shell
    shell.N = x.shape[1]
    shell.num_gains = gains.shape[0]
    shell.squared_norm = squared_norm
    shell.gains = &gains[0]
    shell.weights_N = &weights[0]
    with nogil:
        kernels.shell_search(&shell, &x[0, 0], &inverse[0], &y[0, 0], &gain[0], &scratch[0], x.shape[0])


def budget_search(const float[:, ::1] x, const float[::1] inverse, const float[:, ::1] factor, size_t budget,
                  bint squared, int16_t[:, ::1] y, float[::1] scratch):
    cdef mcq_budget budgets
    budgets.N = x.shape[1]
    budgets.budget = budget
    budgets.squared = squared
    budgets.factor_NN = &factor[0, 0]
    with nogil:
        kernels.budget_search(&budgets, &x[0, 0], &inverse[0], &y[0, 0], &scratch[0], x.shape[0])


cdef mcq_trellis trellis_of(const uint32_t[::1] offset, const float[::1] value, const uint8_t[:, ::1] packed):
    cdef mcq_trellis trellis
    trellis.d = offset.shape[0] - 1
    trellis.row_bytes = packed.shape[1]
    trellis.state_bits = 0
    while (1 << trellis.state_bits) < value.shape[0]:
        trellis.state_bits += 1
    trellis.offset_d = &offset[0]
    trellis.value_S = &value[0]
    trellis.weight_d = trellis.feedback_dd = NULL
    trellis.groups = trellis.width = trellis.stride = 0
    return trellis


def trellis_search(const float[:, ::1] x, const float[::1] inverse, const uint32_t[::1] offset, const float[::1] value,
                   const float[::1] weight, uint8_t[:, ::1] packed, float[::1] scratch, uint8_t[:, ::1] member):
    cdef mcq_trellis trellis = trellis_of(offset, value, packed)
    trellis.weight_d = &weight[0]
    trellis.groups = member.shape[1]
    with nogil:
        kernels.trellis_search(&trellis, &x[0, 0], &inverse[0], &packed[0, 0], &scratch[0], &member[0, 0], x.shape[0])


def trellis_beam(const float[:, ::1] x, const float[::1] inverse, const uint32_t[::1] offset, const float[::1] value,
                 const float[::1] weight, const float[:, ::1] feedback, size_t width, uint8_t[:, ::1] packed,
                 float[::1] scratch):
    cdef mcq_trellis trellis = trellis_of(offset, value, packed)
    trellis.weight_d = &weight[0]
    trellis.feedback_dd = &feedback[0, 0]
    trellis.stride = feedback.shape[1]
    trellis.width = width
    with nogil:
        kernels.trellis_beam(&trellis, &x[0, 0], &inverse[0], &packed[0, 0], &scratch[0], x.shape[0])


def trellis_decode(const uint8_t[:, ::1] packed, const uint32_t[::1] offset, const float[::1] value, const float[::1] scale,
                   float[:, ::1] out, uint8_t[::1] scratch):
    cdef mcq_trellis trellis = trellis_of(offset, value, packed)
    with nogil:
        kernels.trellis_decode(&trellis, &packed[0, 0], &scale[0], &out[0, 0], &scratch[0], out.shape[0])


cdef mcq_lattice lattice_of(const uint64_t[:, :, :] before, size_t N, ptrdiff_t budget, bint squared):
    cdef mcq_lattice lattice
    lattice.N = N
    lattice.budget = budget
    lattice.squared = squared
    lattice.row_step = before.strides[0] // 8
    lattice.budget_step = before.strides[1] // 8
    lattice.value_step = before.strides[2] // 8
    lattice.table = &before[0, 0, 0]
    return lattice


def lattice_rank(const int16_t[:, ::1] y, const uint64_t[:, :, :] before, ptrdiff_t budget, bint squared,
                 uint64_t[::1] rank):
    cdef mcq_lattice lattice = lattice_of(before, y.shape[1], budget, squared)
    with nogil:
        kernels.lattice_rank(&lattice, &y[0, 0], &rank[0], y.shape[0])


def lattice_unrank(const uint64_t[::1] rank, const uint64_t[:, :, :] before, ptrdiff_t budget, bint squared,
                   int16_t[:, ::1] y):
    cdef mcq_lattice lattice = lattice_of(before, y.shape[1], budget, squared)
    with nogil:
        kernels.lattice_unrank(&lattice, &rank[0], &y[0, 0], rank.shape[0])


def hadamard(const float[:, ::1] x, const float[:, ::1] signs, float[:, ::1] out, bint inverse):
    with nogil:
        kernels.hadamard(&x[0, 0], &signs[0, 0], &out[0, 0], x.shape[0], x.shape[1], signs.shape[0], inverse)
