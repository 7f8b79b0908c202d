/* Local-search sweep: every group of a block of columns gets its best codes given all others.
 *
 * Rows are independent, so a tile of rows passes all groups of the block while its errors and gradients stay in cache;
 * the pair tables of the block stream past it. The gradient (x - x^) H is kept exact inside the block by a rank-g
 * update after each group, and refreshed for the next block by one matrix product outside (lazy batches as in GPTQ:
 * the cost stays 2 n d^2 but the traffic falls by the block width).
 * Cost of a choice, divided by the squared scale: quad - 2 c.t with t = gradient / scale + H_jj (sum of old entries);
 * codebooks that a move leaves alone are folded into t, so single moves need no pair table at all.
 */
typedef struct {
    float *target, *minus2x, *old, *others; /* (rows, g) x 3, (g) */
    float *unary;                           /* (2, rows, K_pad) for a pair, (MCQ_TILE, M, K_pad) for a beam */
} sweep_scratch;

#define ALL UINT64_MAX

INLINE const float *entry(const mcq_block *b, size_t m, size_t code) { return b->codebooks + (m * b->K + code) * b->g; }

INLINE const float *pair_table(const mcq_block *b, size_t first, size_t second, size_t j)
{
    return b->pair + ((second * (second - 1) / 2 + first) * b->num_groups + j) * b->K * b->K_pad;
}

/* out += H_jj v */
INLINE void add_metric_product(const mcq_block *b, size_t j, const float *v, float *out, float sign)
{
    size_t w = b->num_groups * b->g;
    const float *h = b->h_ww + j * b->g * w + j * b->g;
    for (size_t i = 0; i < b->g; i++, h += w) {
        float s = sign * v[i];
        for (size_t c = 0; c < b->g; c++) out[c] += s * h[c];
    }
}

/* Sum of the entries of the codebooks in the bit set. */
static void sum_entries(const mcq_block *b, const uint16_t *codes, uint64_t of, float *sum)
{
    memset(sum, 0, b->g * sizeof *sum);
    for (size_t m = 0; m < b->M; m++) {
        if (!(of >> m & 1)) continue;
        const float *e = entry(b, m, codes[m]);
        for (size_t c = 0; c < b->g; c++) sum[c] += e[c];
    }
}

static void sweep_move(const mcq_block *b, size_t j, size_t move, uint64_t known, uint16_t *codes[], size_t rows,
                       sweep_scratch *s)
{
    size_t g = b->g, K_pad = b->K_pad, first = b->moves[2 * move], second = b->moves[2 * move + 1];
    size_t tiles = (rows + R - 1) / R, padded = tiles * R;
    uint64_t fixed = known & ~((uint64_t)1 << first | (uint64_t)1 << second);
    for (size_t r = 0; r < padded; r++) {
        float *x = s->minus2x + r * g;
        size_t row = r < rows ? r : rows - 1;
        memcpy(x, s->target + row * g, g * sizeof *x);
        if (fixed) {
            sum_entries(b, codes[row], fixed, s->others);
            add_metric_product(b, j, s->others, x, -1.0f);
        }
        for (size_t c = 0; c < g; c++) x[c] *= -2.0f;
    }
    const float *quad = b->quad + j * b->M * K_pad;
    if (first == second) {
        for (size_t t = 0; t < tiles; t++) {
            uint16_t code[R];
            float value[R];
            assign_tile(s->minus2x + t * R * g, g, b->entries_t + first * g * K_pad, quad + first * K_pad, b->K, K_pad,
                        code, value);
            for (size_t r = 0; r < R && t * R + r < rows; r++) codes[t * R + r][first] = code[r];
        }
        return;
    }
    float *unary_a = s->unary, *unary_b = s->unary + padded * K_pad, value[R * PAIR_TILES];
    uint16_t code_a[R * PAIR_TILES], code_b[R * PAIR_TILES];
    for (size_t t = 0; t < tiles; t++) {
        const float *x = s->minus2x + t * R * g;
        unary_tile(x, g, b->entries_t + first * g * K_pad, quad + first * K_pad, K_pad, unary_a + t * R * K_pad, K_pad);
        unary_tile(x, g, b->entries_t + second * g * K_pad, quad + second * K_pad, K_pad, unary_b + t * R * K_pad, K_pad);
    }
    const float *pair = pair_table(b, first, second, j);
    pair_tiles(unary_a, unary_b, K_pad, pair, b->K, K_pad, tiles, code_a, code_b, value);
    for (size_t r = 0; r < rows; r++) {
        codes[r][first] = code_a[r];
        codes[r][second] = code_b[r];
    }
}

/* Replaces the codes of a row by those of a beam, unless they are known and no worse. */
static void sweep_beam(const mcq_block *b, size_t j, uint16_t *codes[], size_t rows, sweep_scratch *s)
{
    size_t g = b->g, K_pad = b->K_pad, step = b->num_groups * b->K * K_pad;
    for (size_t i = 0; i < rows; i += R) {
        size_t count = rows - i < R ? rows - i : R;
        for (size_t r = 0; r < R; r++)
            for (size_t c = 0; c < g; c++) s->minus2x[r * g + c] = -2.0f * s->target[(i + (r < count ? r : 0)) * g + c];
        for (size_t m = 0; m < b->M; m++)
            unary_tile(s->minus2x, g, b->entries_t + m * g * K_pad, b->quad + (j * b->M + m) * K_pad, K_pad,
                       s->unary + m * K_pad, b->M * K_pad);
        for (size_t r = 0; r < count; r++) {
            const float *unary = s->unary + r * b->M * K_pad;
            uint16_t proposed[MAX_CODEBOOKS], *own = codes[i + r];
            float cost = beam_row(unary, pair_table(b, 0, 1, j), step, b->beam_width, b->M, b->K, K_pad, proposed);
            float now = 0.0f;
            for (size_t m = 0; m < b->M; m++) {
                now += unary[m * K_pad + own[m]];
                for (size_t o = 0; o < m; o++) now += pair_table(b, o, m, j)[own[o] * K_pad + own[m]];
            }
            if (b->fresh || cost < now) memcpy(own, proposed, b->M * sizeof *own);
        }
    }
}

/* The same without pair tables, for codebooks too large to have them: the R best entries of the first codebook each go
 * on greedily, one codebook after another, all R in one tile. */
static void sweep_starts(const mcq_block *b, size_t j, uint16_t *codes[], size_t rows, sweep_scratch *s)
{
    size_t g = b->g, K_pad = b->K_pad;
    const float *quad = b->quad + j * b->M * K_pad;
    for (size_t i = 0; i < rows; i++) {
        uint16_t proposed[R][MAX_CODEBOOKS], own[MAX_CODEBOOKS], code[R];
        float cost[R] = {0}, value[R], now = 0.0f;
        best_entries(s->target + i * g, g, b->entries_t, quad, b->K, K_pad, code, cost);
        for (size_t r = 0; r < R; r++) proposed[r][0] = code[r];
        for (size_t m = 1; m < b->M; m++) {
            for (size_t r = 0; r < R; r++) {
                float *x = s->minus2x + r * g;
                memcpy(x, s->target + i * g, g * sizeof *x);
                sum_entries(b, proposed[r], ((uint64_t)1 << m) - 1, s->others);
                add_metric_product(b, j, s->others, x, -1.0f);
                for (size_t c = 0; c < g; c++) x[c] *= -2.0f;
            }
            assign_tile(s->minus2x, g, b->entries_t + m * g * K_pad, quad + m * K_pad, b->K, K_pad, code, value);
            for (size_t r = 0; r < R; r++) {
                proposed[r][m] = code[r];
                cost[r] += value[r];
            }
        }
        size_t best = 0;
        for (size_t r = 1; r < R; r++)
            if (cost[r] < cost[best]) best = r;
        memcpy(own, codes[i], b->M * sizeof *own);
        for (size_t m = 0; m < b->M && !b->fresh; m++) {
            const float *e = entry(b, m, own[m]);
            memcpy(s->minus2x, s->target + i * g, g * sizeof(float));
            sum_entries(b, own, ((uint64_t)1 << m) - 1, s->others);
            add_metric_product(b, j, s->others, s->minus2x, -1.0f);
            now += quad[m * K_pad + own[m]];
            for (size_t c = 0; c < g; c++) now -= 2.0f * s->minus2x[c] * e[c];
        }
        if (b->fresh || cost[best] < now) memcpy(codes[i], proposed[best], b->M * sizeof *own);
    }
}

static void sweep_group(const mcq_block *b, size_t j, float *error, float *gradient, uint16_t *codes[],
                        const float *scale, ptrdiff_t scale_row, size_t rows, sweep_scratch *s)
{
    size_t g = b->g, w = b->num_groups * g;
    for (size_t r = 0; r < rows; r++) {
        float sc = scale[(ptrdiff_t)r * scale_row], inverse = sc != 0.0f ? 1.0f / sc : 0.0f;
        float *t = s->target + r * g;
        for (size_t c = 0; c < g; c++) t[c] = gradient[r * w + j * g + c] * inverse;
        sum_entries(b, codes[r], ALL, s->old + r * g);
        add_metric_product(b, j, s->old + r * g, t, 1.0f);
    }
    if (b->beam_width) sweep_beam(b, j, codes, rows, s);
    if (b->starts) sweep_starts(b, j, codes, rows, s);
    uint64_t known = b->fresh && !b->beam_width && !b->starts ? 0 : ALL;
    for (size_t move = 0; move < b->num_moves; move++) {
        sweep_move(b, j, move, known, codes, rows, s);
        known |= (uint64_t)1 << b->moves[2 * move] | (uint64_t)1 << b->moves[2 * move + 1];
    }
    for (size_t r = 0; r < rows; r++) {
        float *delta = s->minus2x, *old = s->old + r * g, sc = scale[(ptrdiff_t)r * scale_row];
        int changed = 0;
        sum_entries(b, codes[r], ALL, delta);
        for (size_t c = 0; c < g; c++) {
            delta[c] = sc * (delta[c] - old[c]);
            changed |= delta[c] != 0.0f;
        }
        if (!changed) continue;
        float *grad = gradient + r * w;
        for (size_t c = 0; c < g; c++) {
            const float *h = b->h_ww + (j * g + c) * w;
            error[r * w + j * g + c] -= delta[c];
            for (size_t k = 0; k < w; k++) grad[k] -= delta[c] * h[k];
        }
    }
}

static void sweep(const mcq_block *block, float *error_nw, float *gradient_nw, uint16_t *codes, size_t codes_stride,
                  const float *scale, ptrdiff_t scale_row, ptrdiff_t scale_group, float *scratch, size_t n)
{
    size_t g = block->g, w = block->num_groups * g, span = R * (block->K > 512 ? PAIR_TILES : 1);
    size_t rows_of_tables = !block->pair ? 0 : block->beam_width && R * block->M > 2 * span ? R * block->M : 2 * span;
    size_t tables = rows_of_tables * block->K_pad; /* first, to keep the caller's alignment */
    sweep_scratch s = {.unary = scratch, .target = scratch + tables, .old = scratch + tables + span * g,
                       .minus2x = scratch + tables + 2 * span * g, .others = scratch + tables + 3 * span * g};
    for (size_t i = 0; i < n; i += span) {
        size_t rows = n - i < span ? n - i : span;
        uint16_t *row_codes[R * PAIR_TILES];
        for (size_t j = 0; j < block->num_groups; j++) {
            for (size_t r = 0; r < rows; r++) row_codes[r] = codes + (i + r) * codes_stride + j * block->M;
            sweep_group(block, j, error_nw + i * w, gradient_nw + i * w, row_codes,
                        scale + (ptrdiff_t)i * scale_row + (ptrdiff_t)j * scale_group, scale_row, rows, &s);
        }
    }
}
