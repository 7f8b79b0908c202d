/* Beam over the codebooks of one group, on tables only.
 *
 * A hypothesis is a choice for the first m codebooks and its cost; a step adds one codebook to every hypothesis and
 * keeps the cheapest. The list of the best is sorted by insertion: it is short, and a line of lanes is looked at only
 * if it holds something below the worst of the list. Ties go to the earlier hypothesis, then to the lower entry.
 * Cost per row and step: width * m * K additions, far below the K^2 of a pair search for the widths in use.
 */
#define MAX_BEAM 256

/* The best `count` extensions found so far, ascending, at most `width`. */
typedef struct {
    float cost[MAX_BEAM];
    uint32_t parent[MAX_BEAM];
    uint16_t entry[MAX_BEAM];
    size_t count, width;
} beam_list;

INLINE void beam_insert(beam_list *l, float cost, size_t parent, size_t entry)
{
    size_t at = l->count < l->width ? l->count++ : l->width - 1;
    for (; at > 0 && l->cost[at - 1] > cost; at--) {
        l->cost[at] = l->cost[at - 1];
        l->parent[at] = l->parent[at - 1];
        l->entry[at] = l->entry[at - 1];
    }
    l->cost[at] = cost;
    l->parent[at] = (uint32_t)parent;
    l->entry[at] = (uint16_t)entry;
}

/* Offers all extensions of one hypothesis: base + unary_k + sum over o of rows[o][k]. */
INLINE void beam_extend(beam_list *l, float base, size_t parent, const float *unary, const float *const *rows,
                        size_t num_rows, size_t K, size_t K_pad)
{
    for (size_t start = 0; start < K_pad; start += VL) {
        vf v = vload(unary + start);
        for (size_t o = 0; o < num_rows; o++) v += vload(rows[o] + start);
        v += vset1(base);
        if (l->count == l->width && !vany_less(v, vset1(l->cost[l->width - 1]))) continue;
        for (size_t k = start; k < start + VL && k < K; k++)
            if (l->count < l->width || v[k - start] < l->cost[l->width - 1]) beam_insert(l, v[k - start], parent, k);
    }
}

/* One step for n rows: b hypotheses of m codes each become B. Empty places have a cost of MCQ_PAD_COST. */
static void beam_step(const float *unary_nK, const float *pair_PK, const uint16_t *codes_nbm, const float *cost_nb,
                      int32_t *parent_nB, uint16_t *entry_nB, float *cost_nB, size_t n, size_t b, size_t m, size_t B,
                      size_t K, size_t K_pad)
{
    for (size_t i = 0; i < n; i++) {
        beam_list list = {.count = 0, .width = B};
        for (size_t h = 0; h < b; h++) {
            const float *rows[MAX_CODEBOOKS];
            if (cost_nb[i * b + h] >= MCQ_PAD_COST) continue;
            for (size_t o = 0; o < m; o++) rows[o] = pair_PK + (o * K + codes_nbm[(i * b + h) * m + o]) * K_pad;
            beam_extend(&list, cost_nb[i * b + h], h, unary_nK + i * K_pad, rows, m, K, K_pad);
        }
        for (size_t r = 0; r < B; r++) {
            int real = r < list.count;
            parent_nB[i * B + r] = real ? (int32_t)list.parent[r] : 0;
            entry_nB[i * B + r] = real ? list.entry[r] : 0;
            cost_nB[i * B + r] = real ? list.cost[r] : MCQ_PAD_COST;
        }
    }
}

/* The whole beam for one row; returns the cost of the best codes. pair(o, m) lies at pair + (m (m - 1) / 2 + o) * step. */
static float beam_row(const float *unary_MK, const float *pair, size_t step, size_t width, size_t M, size_t K,
                      size_t K_pad, uint16_t *codes)
{
    uint16_t held[2][MAX_BEAM][MAX_CODEBOOKS];
    beam_list list[2];
    list[0].count = 1;
    list[0].cost[0] = 0.0f;
    for (size_t m = 0; m < M; m++) {
        beam_list *from = &list[m & 1], *to = &list[~m & 1];
        to->count = 0;
        to->width = m + 1 < M ? width : 1; /* of the last codebook only the best counts */
        for (size_t h = 0; h < from->count; h++) {
            const float *rows[MAX_CODEBOOKS];
            for (size_t o = 0; o < m; o++)
                rows[o] = pair + (m * (m - 1) / 2 + o) * step + held[m & 1][h][o] * K_pad;
            beam_extend(to, from->cost[h], h, unary_MK + m * K_pad, rows, m, K, K_pad);
        }
        for (size_t h = 0; h < to->count; h++) {
            memcpy(held[~m & 1][h], held[m & 1][to->parent[h]], m * sizeof(uint16_t));
            held[~m & 1][h][m] = to->entry[h];
        }
    }
    memcpy(codes, held[M & 1][0], M * sizeof *codes);
    return list[M & 1].cost[0];
}

/* The MCQ_TILE cheapest entries for one target, ascending; places beyond the last entry repeat the best. */
static void best_entries(const float *target, size_t g, const float *entries_t, const float *quad, size_t K,
                         size_t K_pad, uint16_t code[R], float cost[R])
{
    beam_list list = {.count = 0, .width = R};
    for (size_t start = 0; start < K_pad; start += VL) {
        vf v = vload(quad + start);
        for (size_t c = 0; c < g; c++) v += vset1(-2.0f * target[c]) * vload(entries_t + c * K_pad + start);
        if (list.count == R && !vany_less(v, vset1(list.cost[R - 1]))) continue;
        for (size_t k = start; k < start + VL && k < K; k++)
            if (list.count < R || v[k - start] < list.cost[R - 1]) beam_insert(&list, v[k - start], 0, k);
    }
    for (size_t r = 0; r < R; r++) {
        code[r] = list.entry[r < list.count ? r : 0];
        cost[r] = list.cost[r < list.count ? r : 0];
    }
}
