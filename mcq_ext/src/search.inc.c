/* Choosing entries: nearest entry, best pair of entries, and local search over the groups of a row.
 *
 * Cost of entry k for target t: quad_k - 2 t.c_k, the constant t^T H t dropped. Entries lie across the lanes
 * (transposed codebooks, padded), rows across a tile of MCQ_TILE, so that each load of a table line serves all rows of
 * the tile. Only minima are kept in the loops; the winner's index is found afterwards by scanning the one block that
 * holds it, which costs a few per cent and frees the loops of masks and index registers.
 * A pair costs (unary_b + pair) + unary_a in exactly this order. Rounding is monotone, hence adding unary_a after the
 * minimum over b gives the same value as adding it before, and the search is exact for the tables given.
 * Limit of the pair search: one add and one min per VL candidates, table lines from L2 shared by MCQ_TILE rows.
 */
#define R MCQ_TILE
#define ENTRY_BLOCK 64
#define PAIR_BLOCK 8
#define PAIR_TILES 8

/* cost[r] of VL entries from lane k on, for the rows of a tile; minus2x is -2 x, exact. */
INLINE void unary_lanes(const float *minus2x, size_t g, const float *entries_t, const float *quad, size_t K_pad,
                        size_t k, vf cost[R])
{
    vf first = vload(quad + k);
    for (int r = 0; r < R; r++) cost[r] = first;
    for (size_t c = 0; c < g; c++) {
        vf e = vload(entries_t + c * K_pad + k);
        for (int r = 0; r < R; r++) cost[r] += vset1(minus2x[r * g + c]) * e;
    }
}

static void unary_tile(const float *minus2x, size_t g, const float *entries_t, const float *quad, size_t K_pad,
                       float *unary, size_t stride)
{
    for (size_t k = 0; k < K_pad; k += VL) {
        vf cost[R];
        unary_lanes(minus2x, g, entries_t, quad, K_pad, k, cost);
        for (int r = 0; r < R; r++) vstore(unary + r * stride + k, cost[r]);
    }
}

/* The first entry from `start` on whose cost is `value`, the minimum; 0 if overflow left none below the padding. */
static size_t find_entry(const float *minus2x, size_t g, const float *entries_t, const float *quad, size_t K,
                         size_t K_pad, size_t start, float value)
{
    vf above = vset1(nextafterf(value, INFINITY));
    for (size_t k = start; k < K; k += VL) {
        vf cost = vload(quad + k);
        for (size_t c = 0; c < g; c++) cost += vset1(minus2x[c]) * vload(entries_t + c * K_pad + k);
        if (!vany_less(cost, above)) continue;
        for (size_t l = 0; l < VL && k + l < K; l++)
            if (cost[l] == value) return k + l;
    }
    return 0;
}

static void assign_tile(const float *minus2x, size_t g, const float *entries_t, const float *quad, size_t K,
                        size_t K_pad, uint16_t code[R], float value[R])
{
    size_t block[R] = {0};
    for (int r = 0; r < R; r++) value[r] = MCQ_PAD_COST;
    for (size_t start = 0; start < K_pad; start += ENTRY_BLOCK) {
        size_t stop = K_pad - start < ENTRY_BLOCK ? K_pad : start + ENTRY_BLOCK;
        vf best[R], cost[R];
        for (int r = 0; r < R; r++) best[r] = vset1(MCQ_PAD_COST);
        for (size_t k = start; k < stop; k += VL) {
            unary_lanes(minus2x, g, entries_t, quad, K_pad, k, cost);
            for (int r = 0; r < R; r++) best[r] = vmin(best[r], cost[r]);
        }
        for (int r = 0; r < R; r++)
            if (vany_less(best[r], vset1(value[r]))) {
                value[r] = vhmin(best[r]);
                block[r] = start;
            }
    }
    for (int r = 0; r < R; r++)
        code[r] = (uint16_t)find_entry(minus2x + r * g, g, entries_t, quad, K, K_pad, block[r], value[r]);
}

/* The first k with a_k + b_k equal to `value`, their minimum; 0 if overflow left none below the padding. */
static size_t find_sum(const float *a, const float *b, size_t K, float value)
{
    vf above = vset1(nextafterf(value, INFINITY));
    for (size_t k = 0; k < K; k += VL)
        if (vany_less(vload(a + k) + vload(b + k), above))
            for (size_t l = k; l < k + VL && l < K; l++)
                if (a[l] + b[l] == value) return l;
    return 0;
}

static float min_sum(const float *a, const float *b, size_t count)
{
    vf best = vset1(MCQ_PAD_COST);
    for (size_t k = 0; k < count; k += VL) best = vmin(best, vload(a + k) + vload(b + k));
    return vhmin(best);
}

/* Minima over b for PAIR_BLOCK rows of the pair table, two at a time, against one tile of rows. */
INLINE void pair_block(const float *unary_a, const float *unary_b, size_t stride, const float *pair, size_t rows,
                       size_t K_pad, vf best[R])
{
    for (int r = 0; r < R; r++) best[r] = vset1(MCQ_PAD_COST);
    for (size_t a = 0; a < rows; a += 2) {
        const float *p0 = pair + a * K_pad, *p1 = a + 1 < rows ? p0 + K_pad : p0;
        size_t a1 = a + 1 < rows ? a + 1 : a;
        vf m0[R], m1[R];
        for (int r = 0; r < R; r++) m0[r] = m1[r] = vset1(MCQ_PAD_COST);
        for (size_t b = 0; b < K_pad; b += VL) {
            vf v0 = vload(p0 + b), v1 = vload(p1 + b);
            for (int r = 0; r < R; r++) {
                vf u = vload(unary_b + r * stride + b);
                m0[r] = vmin(m0[r], u + v0);
                m1[r] = vmin(m1[r], u + v1);
            }
        }
        for (int r = 0; r < R; r++) {
            best[r] = vmin(best[r], m0[r] + vset1(unary_a[r * stride + a]));
            best[r] = vmin(best[r], m1[r] + vset1(unary_a[r * stride + a1]));
        }
    }
}

/* Best pair for up to PAIR_TILES tiles of rows: with large tables a line of the table serves all of them. */
static void pair_tiles(const float *unary_a, const float *unary_b, size_t stride, const float *pair, size_t K,
                       size_t K_pad, size_t tiles, uint16_t *code_a, uint16_t *code_b, float *value)
{
    size_t block[R * PAIR_TILES] = {0};
    for (size_t i = 0; i < tiles * R; i++) value[i] = MCQ_PAD_COST;
    for (size_t a = 0; a < K; a += PAIR_BLOCK) {
        size_t rows = K - a < PAIR_BLOCK ? K - a : PAIR_BLOCK;
        for (size_t t = 0; t < tiles; t++) {
            vf best[R];
            size_t row = t * R;
            pair_block(unary_a + row * stride + a, unary_b + row * stride, stride, pair + a * K_pad, rows, K_pad, best);
            for (int r = 0; r < R; r++)
                if (vany_less(best[r], vset1(value[row + r]))) {
                    value[row + r] = vhmin(best[r]);
                    block[row + r] = a;
                }
        }
    }
    for (size_t i = 0; i < tiles * R; i++) {
        const float *ua = unary_a + i * stride, *ub = unary_b + i * stride;
        size_t a = block[i], last = a + PAIR_BLOCK < K ? a + PAIR_BLOCK - 1 : K - 1;
        float m = min_sum(ub, pair + a * K_pad, K_pad);
        while (a < last && m + ua[a] != value[i]) m = min_sum(ub, pair + ++a * K_pad, K_pad);
        code_a[i] = (uint16_t)a;
        code_b[i] = (uint16_t)find_sum(ub, pair + a * K_pad, K, m);
    }
}

/* -2 x of a tile; missing rows repeat the last one and are not written back. */
static size_t load_tile(const float *x, size_t n, size_t g, float *minus2x)
{
    size_t rows = n < R ? n : R;
    for (size_t r = 0; r < R; r++)
        for (size_t c = 0; c < g; c++) minus2x[r * g + c] = -2.0f * x[(r < rows ? r : rows - 1) * g + c];
    return rows;
}

static void assign(const float *x_ng, const float *entries_t_gK, const float *quad_K, uint16_t *codes_n,
                   float *value_n, float *scratch, size_t n, size_t g, size_t K, size_t K_pad)
{
    for (size_t i = 0; i < n; i += R) {
        float value[R];
        uint16_t code[R];
        size_t rows = load_tile(x_ng + i * g, n - i, g, scratch);
        assign_tile(scratch, g, entries_t_gK, quad_K, K, K_pad, code, value);
        memcpy(codes_n + i, code, rows * sizeof *code);
        memcpy(value_n + i, value, rows * sizeof *value);
    }
}

static void unary_table(const float *x_ng, const float *entries_t_gK, const float *quad_K, float *unary_nK, size_t n,
                        size_t g, size_t K_pad)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < K_pad; k += VL) {
            vf cost = vload(quad_K + k);
            for (size_t c = 0; c < g; c++)
                cost += vset1(-2.0f * x_ng[i * g + c]) * vload(entries_t_gK + c * K_pad + k);
            vstore(unary_nK + i * K_pad + k, cost);
        }
}

static void pair_search(const float *unary_a_nK, const float *unary_b_nK, const float *pair_KK, uint16_t *codes_n2,
                        float *value_n, size_t n, size_t K, size_t K_pad)
{
    for (size_t i = 0, rows; i < n; i += rows) {
        /* the last rows, fewer than a tile, go one at a time as a tile that repeats one row (stride zero) */
        size_t left = (n - i) / R, tiles = left == 0 ? 1 : left < PAIR_TILES ? left : PAIR_TILES;
        uint16_t a[R * PAIR_TILES], b[R * PAIR_TILES];
        float value[R * PAIR_TILES];
        rows = left == 0 ? 1 : tiles * R;
        pair_tiles(unary_a_nK + i * K_pad, unary_b_nK + i * K_pad, left == 0 ? 0 : K_pad, pair_KK, K, K_pad, tiles, a, b,
                   value);
        for (size_t r = 0; r < rows; r++) {
            codes_n2[2 * (i + r)] = a[r];
            codes_n2[2 * (i + r) + 1] = b[r];
            value_n[i + r] = value[r];
        }
    }
}
