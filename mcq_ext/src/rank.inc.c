/* Ranks of lattice points: a bijection between the integer vectors of one budget and 0 .. count - 1 (Cover 1973).
 *
 * The budget is sum |y_i| = K for a pyramid and sum y_i^2 = K for a shell. Vectors are ordered entry by entry: first
 * those whose entry is not negative, larger magnitudes first, then the negative ones likewise. What precedes an entry
 * of magnitude m, of n entries left with budget r, is then one number F(n, r, m), and F(n, r, -1) is all that is not
 * negative. For a shell these are a table over (n, r, m). For a pyramid F depends on r - m alone: it is U(n, r - m) of
 * the pyramid coders, a table of a few KiB. Both are reached through strides. A rank is then a sum of one or two table
 * entries per coordinate, and its inverse a few comparisons: a few entries are large, most are 0 or 1.
 */
static void lattice_rank(const mcq_lattice *t, const int16_t *y_nN, uint64_t *rank_n, size_t n)
{
    for (size_t row = 0; row < n; row++) {
        const int16_t *y = y_nN + row * t->N;
        uint64_t rank = 0;
        ptrdiff_t budget = t->budget;
        for (size_t i = 0; i < t->N; i++) {
            const uint64_t *before = t->table + (ptrdiff_t)(t->N - i) * t->row_step + budget * t->budget_step;
            ptrdiff_t m = y[i] < 0 ? -y[i] : y[i];
            rank += before[(m + 1) * t->value_step] + (y[i] < 0 ? before[0] : 0);
            budget -= t->squared ? m * m : m;
        }
        rank_n[row] = rank;
    }
}

static void lattice_unrank(const mcq_lattice *t, const uint64_t *rank_n, int16_t *y_nN, size_t n)
{
    for (size_t row = 0; row < n; row++) {
        int16_t *y = y_nN + row * t->N;
        uint64_t rank = rank_n[row];
        ptrdiff_t budget = t->budget;
        for (size_t i = 0; i < t->N; i++) {
            const uint64_t *before = t->table + (ptrdiff_t)(t->N - i) * t->row_step + budget * t->budget_step;
            int negative = rank >= before[0];
            ptrdiff_t m = 0;
            rank -= negative ? before[0] : 0;
            while (before[(m + 1) * t->value_step] > rank) m++;
            rank -= before[(m + 1) * t->value_step];
            budget -= t->squared ? m * m : m;
            y[i] = (int16_t)(negative ? -m : m);
        }
    }
}
