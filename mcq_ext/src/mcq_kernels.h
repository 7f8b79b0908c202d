/* The table of kernels that every SIMD level fills, and the contract of each entry.
 *
 * All matrices are row-major and contiguous unless a stride is passed. Kernels check nothing, allocate nothing beyond
 * a fixed-size stack buffer or the scratch that the caller hands in, and never touch Python. Work is cut into rows by
 * the caller: a kernel sees only its own rows, so the result cannot depend on how many threads there are.
 *
 * Axes in names: n rows, d columns, g entries of a group, G groups, M codebooks, K entries of a codebook, W words.
 */
#ifndef MCQ_KERNELS_H
#define MCQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Entry tables are padded with this up to a multiple of 16 so that no kernel needs a remainder loop over entries. */
#define MCQ_PAD_COST 3.0e38f
/* Targets are kept within this, so that their squares fit in float. */
#define LARGEST_TARGET 1e15f
#define MAX_CODEBOOKS 64
/* Rows that one tile of the search kernels handles together. */
#define MCQ_TILE 8

/* One visit of every group of a block of columns, see sweep(). */
typedef struct {
    size_t num_groups;        /* groups in the block */
    size_t g, M, K, K_pad;
    size_t num_moves;
    int fresh;                /* start from nothing: a move sees only the codebooks that moves before it chose */
    const uint8_t *moves;     /* (num_moves, 2) codebooks that are chosen jointly; equal numbers mean a single choice */
    const float *h_ww;        /* (w, w) metric restricted to the block, w = num_groups * g */
    const float *codebooks;   /* (M, K, g) */
    const float *entries_t;   /* (M, g, K_pad) the same, transposed */
    const float *quad;        /* (num_groups, M, K_pad) c^T H_jj c, padded with MCQ_PAD_COST */
    const float *pair;        /* (M (M - 1) / 2, num_groups, K, K_pad) 2 c_a^T H_jj c_b for a < b at b (b - 1) / 2 + a, or NULL */
    size_t beam_width;        /* width of the beam that proposes codes before the moves; 0 for none, else needs pair */
    int starts;               /* propose codes without pair tables instead, see sweep_starts() */
} mcq_block;

/* The tables that all rows share where a row is one group, see tables.inc.c. */
typedef struct {
    size_t M, K, K_pad;
    size_t num_moves;
    const uint8_t *moves;     /* (num_moves, 2) as above, the lower codebook of a pair first */
    const float *pair;        /* (2, M (M - 1) / 2, K, K_pad) */
} mcq_tables;

/* The pyramid P(N, K) with a table of gains, see pyramid.inc.c. */
typedef struct {
    size_t N, num_gains;
    float pulses;             /* K */
    const float *gains;
    const float *weights_N;   /* of the squared error of each entry, positive */
    const float *spread_N;    /* 1 / weights */
} mcq_pyramid;

/* Magnitudes in descending order that a search tries on sorted entries, see shell.inc.c. */
typedef struct {
    size_t N, num_leaders;
    const float *leaders_KN;
    const float *factor_K;    /* of the product with each leader */
} mcq_leaders;

/* The integer vectors of one squared norm with a table of gains, see shell.inc.c. */
typedef struct {
    size_t N, num_gains, squared_norm;
    const float *gains;
    const float *weights_N;
} mcq_shell;

/* The integer vectors of one budget under a full matrix, see budget.inc.c. */
typedef struct {
    size_t N, budget;
    int squared;              /* the budget counts squares, not magnitudes */
    const float *factor_NN;   /* U, upper triangular with a positive diagonal */
} mcq_budget;

/* The bitshift trellis of L bits a state, see trellis.inc.c. */
typedef struct {
    size_t d, row_bytes;
    unsigned state_bits;      /* L */
    const uint32_t *offset_d; /* where the window of each entry begins, and after the last one the bits of a row */
    const float *value_S;     /* of every state */
    const float *weight_d;    /* of the squared error of each entry; not for decoding */
    size_t groups;            /* stride of what trellis_search notes for an entry: 2^(L - least bits of an entry) */
    size_t width;             /* of trellis_beam, as what follows */
    const float *feedback_dd; /* (d, stride), first and last entries exchanged: what an error adds to later targets */
    size_t stride;            /* a multiple of 16 */
} mcq_trellis;

/* How many vectors precede, see rank.inc.c. F(n, r, m) is table[n row_step + r budget_step + (m + 1) value_step]. */
typedef struct {
    size_t N;
    ptrdiff_t budget;
    int squared;              /* the budget counts squares, not magnitudes */
    ptrdiff_t row_step, budget_step, value_step;
    const uint64_t *table;
} mcq_lattice;

typedef struct {
    /* out_nk (+)= a_nd (alpha b_dk); each sum runs over d in order, so no width or tile size shows in the result. */
    void (*matmul)(const float *a_nd, size_t lda, const float *b_dk, size_t ldb, float *out_nk, size_t ldo,
                   size_t n, size_t d, size_t k, float alpha, int accumulate);

    /* codes_n = argmin_k quad_k - 2 x . c_k, value_n the minimum; lowest k wins a tie. Scratch: MCQ_TILE * g. */
    void (*assign)(const float *x_ng, const float *entries_t_gK, const float *quad_K, uint16_t *codes_n,
                   float *value_n, float *scratch, size_t n, size_t g, size_t K, size_t K_pad);

    /* unary_nK = quad_K - 2 x . c_k, in fixed order over g. */
    void (*unary_table)(const float *x_ng, const float *entries_t_gK, const float *quad_K,
                        float *unary_nK, size_t n, size_t g, size_t K_pad);

    /* codes_n2 = argmin over (a, b) of (unary_b + pair[a, b]) + unary_a, lowest a then lowest b on a tie. */
    void (*pair_search)(const float *unary_a_nK, const float *unary_b_nK, const float *pair_KK,
                        uint16_t *codes_n2, float *value_n, size_t n, size_t K, size_t K_pad);

    /* Local search: visits the groups of a block in order; error_nw and gradient_nw = (x - x^) H follow every change. */
    void (*sweep)(const mcq_block *block, float *error_nw, float *gradient_nw, uint16_t *codes, size_t codes_stride,
                  const float *scale, ptrdiff_t scale_row, ptrdiff_t scale_group, float *scratch, size_t n);

    /* One step of a beam over codebooks, see the body. */
    void (*beam_step)(const float *unary_nK, const float *pair_PK, const uint16_t *codes_nbm, const float *cost_nb,
                      int32_t *parent_nB, uint16_t *entry_nB, float *cost_nB,
                      size_t n, size_t b, size_t m, size_t B, size_t K, size_t K_pad);

    /* Codes from nothing by a beam, and exact moves that improve codes; cost_n what they then cost. */
    void (*table_beam)(const mcq_tables *tables, const float *unary_nMK, uint16_t *codes_nM, float *cost_n,
                       size_t width, size_t n);
    void (*table_moves)(const mcq_tables *tables, const float *unary_nMK, uint16_t *codes_nM, float *cost_n,
                        float *scratch, size_t n);
    void (*score_moves)(const mcq_tables *tables, const float *unary_nMK, const float *along_nMK, const float *length_n,
                        float extra, uint16_t *codes_nM, float *cost_n, float *scratch, size_t n);

    /* out_nd = scale * sum of entries, groups side by side. */
    void (*decode)(const uint16_t *codes_nGM, const float *codebooks_MKg, const float *scale, ptrdiff_t scale_row,
                   ptrdiff_t scale_group, float *out_nd, size_t n, size_t G, size_t M, size_t K, size_t g);

    /* sums_MKg[m, code] += scale * values, for codes in [first, last): disjoint ranges may run at once. */
    void (*scatter_add)(const uint16_t *codes_nGM, const float *values_nd, const float *scale, ptrdiff_t scale_row,
                        ptrdiff_t scale_group, double *sums_MKg, size_t n, size_t G, size_t M, size_t K, size_t g,
                        size_t first, size_t last);

    /* Little-endian bit strings, one per row: word i of width bits starts at bit i * bits. */
    void (*pack_bits)(const uint16_t *words_nW, uint8_t *packed, size_t n, size_t W, unsigned bits);
    void (*unpack_bits)(const uint8_t *packed, uint16_t *words_nW, size_t n, size_t W, unsigned bits);
    /* The same for words of up to 64 bits. */
    void (*pack_words)(const uint64_t *words_nW, uint8_t *packed, size_t n, size_t W, unsigned bits);
    void (*unpack_words)(const uint8_t *packed, uint64_t *words_nW, size_t n, size_t W, unsigned bits);

    /* Cholesky factorisation A = U^T U in double, in place on the upper triangle, see the bodies. */
    size_t (*cholesky_rows)(double *a_nn, size_t n, size_t first, size_t last);
    void (*cholesky_update)(double *a_nn, size_t n, size_t first, size_t last, size_t from, size_t to);
    void (*cholesky_solve)(const double *u_nn, double *b_nk, size_t n, size_t k);

    /* y_nN, gain_n = argmin over y of the pyramid and over gains s of sum w (x inverse - s y)^2; lowest gain on a tie. */
    void (*pyramid_search)(const mcq_pyramid *pyramid, const float *x_nN, const float *inverse_n, int16_t *y_nN,
                           uint8_t *gain_n, size_t n);

    /* y_nN = argmax over permuted and signed leaders of factor x.y, product_n = x.y. */
    void (*leader_search)(const mcq_leaders *leaders, const float *x_nN, int16_t *y_nN, float *product_n, size_t n);

    /* As pyramid_search, over a shell. Scratch: 16 (N + 2) (R + 1) floats on a cache line. */
    void (*shell_search)(const mcq_shell *shell, const float *x_nN, const float *inverse_n, int16_t *y_nN,
                         uint8_t *gain_n, float *scratch, size_t n);

    /* y_nN near x inverse under U U^T. Scratch: 16 (3 N + 3) (budget + 1) floats on a cache line. */
    void (*budget_search)(const mcq_budget *budget, const float *x_nN, const float *inverse_n, int16_t *y_nN,
                           float *scratch, size_t n);

    /* packed_nB = rows of codes whose values are near x inverse: the cheapest ones, and those of a beam under feedback.
     * Scratch: 2^(L + 1) floats on a cache line and d groups bytes; 276 width + d + 32 floats on one. */
    void (*trellis_search)(const mcq_trellis *trellis, const float *x_nd, const float *inverse_n, uint8_t *packed_nB,
                           float *scratch, uint8_t *member_dg, size_t n);
    void (*trellis_beam)(const mcq_trellis *trellis, const float *x_nd, const float *inverse_n, uint8_t *packed_nB,
                         float *scratch, size_t n);
    /* out_nd = scale times the value of every window. Scratch: row_bytes + 4. */
    void (*trellis_decode)(const mcq_trellis *trellis, const uint8_t *packed_nB, const float *scale_n, float *out_nd,
                           uint8_t *scratch, size_t n);

    void (*lattice_rank)(const mcq_lattice *lattice, const int16_t *y_nN, uint64_t *rank_n, size_t n);
    void (*lattice_unrank)(const mcq_lattice *lattice, const uint64_t *rank_n, int16_t *y_nN, size_t n);

    /* Randomised Hadamard transform of rows in S steps, or its inverse, see the body; signs are 1 and -1, out may be x. */
    void (*hadamard)(const float *x_nd, const float *signs_Sd, float *out_nd, size_t n, size_t d, size_t S, int inverse);
} mcq_kernels;

/* Levels from slowest to fastest; mcq_level_name(i) is NULL past the last one that this CPU runs. */
const char *mcq_level_name(int level);
const mcq_kernels *mcq_level_kernels(int level);

#endif
