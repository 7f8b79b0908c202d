/* The codes of one group over many codebooks, on tables only: beam, and exact pair moves.
 *
 * Where every row is one group under one metric, all that a row contributes is its unary table; the pair tables are
 * shared. With M codebooks a move then costs 2 (M - 2) K additions to fold in the codebooks that stay, instead of the
 * 2 g K multiplications of a new unary table, and no vector is touched: for vectors of 100 and more entries the pair
 * search itself is what remains. A block of rows passes all moves together: its unary tables stay in L2 with one pair
 * table, which serves the whole block.
 */
#define MOVE_ROWS 64

/* pair[0]: rows by the code of the lower codebook, pair[1]: the same transposed; (first, second) at second (second - 1)
 * / 2 + first. */
INLINE const float *pair_row(const mcq_tables *t, size_t from, size_t code, size_t to)
{
    size_t low = from < to ? from : to, high = from < to ? to : from, count = t->M * (t->M - 1) / 2;
    size_t table = (from < to ? 0 : count) + high * (high - 1) / 2 + low;
    return t->pair + (table * t->K + code) * t->K_pad;
}

static float table_cost(const mcq_tables *t, const float *unary_MK, const uint16_t *codes)
{
    float cost = 0.0f;
    for (size_t m = 0; m < t->M; m++) {
        cost += unary_MK[m * t->K_pad + codes[m]];
        for (size_t o = 0; o < m; o++) cost += pair_row(t, o, codes[o], m)[codes[m]];
    }
    return cost;
}

/* Costs of the entries of codebook m, given those of all others but `first` and `second`. */
static void conditional(const mcq_tables *t, const float *unary_MK, const uint16_t *codes, size_t m, size_t first,
                        size_t second, float *out)
{
    const float *rows[MAX_CODEBOOKS];
    size_t count = 0;
    for (size_t o = 0; o < t->M; o++)
        if (o != first && o != second) rows[count++] = pair_row(t, o, codes[o], m);
    for (size_t k = 0; k < t->K_pad; k += VL) {
        vf cost = vload(unary_MK + m * t->K_pad + k);
        for (size_t o = 0; o < count; o++) cost += vload(rows[o] + k);
        vstore(out + k, cost);
    }
}

static uint16_t cheapest(const float *cost, size_t K, size_t K_pad)
{
    vf best = vset1(MCQ_PAD_COST);
    for (size_t k = 0; k < K_pad; k += VL) best = vmin(best, vload(cost + k));
    float value = vhmin(best);
    for (size_t k = 0; k < K; k++)
        if (cost[k] == value) return (uint16_t)k;
    return 0;
}

/* What the codes of all codebooks but m, of all if m is M, have along the row beyond its length. */
static float along_error(const mcq_tables *t, const float *along_MK, float length, const uint16_t *codes, size_t m)
{
    float rest = -length;
    for (size_t o = 0; o < t->M; o++)
        if (o != m) rest += along_MK[o * t->K_pad + codes[o]];
    return rest;
}

static void table_move(const mcq_tables *t, const float *unary_nMK, uint16_t *codes_nM, size_t first, size_t second,
                       size_t n, float *scratch)
{
    size_t row_size = t->M * t->K_pad, most = t->K > 512 ? PAIR_TILES : 1;
    float *a = scratch, *b = scratch + most * R * t->K_pad, value[R * PAIR_TILES];
    uint16_t code_a[R * PAIR_TILES], code_b[R * PAIR_TILES];
    for (size_t i = 0; i < n; i += most * R) {
        size_t rows = n - i < most * R ? n - i : most * R, tiles = (rows + R - 1) / R;
        for (size_t r = 0; r < tiles * R; r++) {
            size_t row = i + (r < rows ? r : rows - 1);
            const float *unary = unary_nMK + row * row_size;
            const uint16_t *codes = codes_nM + row * t->M;
            conditional(t, unary, codes, first, first, second, a + r * t->K_pad);
            if (first == second)
                code_a[r] = cheapest(a + r * t->K_pad, t->K, t->K_pad);
            else
                conditional(t, unary, codes, second, first, second, b + r * t->K_pad);
        }
        if (first != second)
            pair_tiles(a, b, t->K_pad, pair_row(t, first, 0, second), t->K, t->K_pad, tiles, code_a, code_b, value);
        for (size_t r = 0; r < rows; r++) {
            codes_nM[(i + r) * t->M + first] = code_a[r];
            if (first != second) codes_nM[(i + r) * t->M + second] = code_b[r];
        }
    }
}

static void table_moves(const mcq_tables *t, const float *unary_nMK, uint16_t *codes_nM, float *cost_n, float *scratch,
                        size_t n)
{
    for (size_t start = 0; start < n; start += MOVE_ROWS) {
        size_t rows = n - start < MOVE_ROWS ? n - start : MOVE_ROWS;
        const float *unary = unary_nMK + start * t->M * t->K_pad;
        uint16_t *codes = codes_nM + start * t->M;
        for (size_t move = 0; move < t->num_moves; move++)
            table_move(t, unary, codes, t->moves[2 * move], t->moves[2 * move + 1], rows, scratch);
        for (size_t r = 0; r < rows; r++)
            cost_n[start + r] = table_cost(t, unary + r * t->M * t->K_pad, codes + r * t->M);
    }
}

/* Moves of one codebook where the squared error along each row counts 1 + extra times. Entry k of a codebook adds
 * extra (p^2 + 2 p (s - length)) to what it costs otherwise: p its own part along the row, s that of all other codebooks,
 * length the row's. */
static void score_moves(const mcq_tables *t, const float *unary_nMK, const float *along_nMK, const float *length_n,
                        float extra, uint16_t *codes_nM, float *cost_n, float *scratch, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const float *unary = unary_nMK + i * t->M * t->K_pad, *along = along_nMK + i * t->M * t->K_pad;
        uint16_t *codes = codes_nM + i * t->M;
        for (size_t move = 0; move < t->num_moves; move++) {
            size_t m = t->moves[2 * move];
            float rest = along_error(t, along, length_n[i], codes, m);
            const float *own = along + m * t->K_pad;
            conditional(t, unary, codes, m, m, m, scratch);
            for (size_t k = 0; k < t->K_pad; k += VL) {
                vf p = vload(own + k);
                vstore(scratch + k, vload(scratch + k) + vset1(extra) * (p * (p + vset1(2.0f * rest))));
            }
            codes[m] = cheapest(scratch, t->K, t->K_pad);
        }
        float rest = along_error(t, along, length_n[i], codes, t->M);
        cost_n[i] = table_cost(t, unary, codes) + extra * (rest * rest);
    }
}

static void table_beam(const mcq_tables *t, const float *unary_nMK, uint16_t *codes_nM, float *cost_n, size_t width,
                       size_t n)
{
    for (size_t i = 0; i < n; i++)
        cost_n[i] = beam_row(unary_nMK + i * t->M * t->K_pad, t->pair, t->K * t->K_pad, width, t->M, t->K, t->K_pad,
                             codes_nM + i * t->M);
}
