/* The nearest point of a shell, the integer vectors y with sum y_i^2 = R, and the point of a pyramid nearest by angle.
 *
 * Without weights all points of a shell are equally long, so the nearest one has the largest product with x, whatever
 * the gain. Every point is a leader, its magnitudes in descending order, with its entries permuted and signed; the best
 * permutation puts large magnitudes where x is large (rearrangement inequality). So: sort |x|, multiply with all
 * leaders, take the best. A factor per leader, its inverse norm, makes the same search one by angle over a pyramid.
 * Sorting is Batcher's network, the same exchanges in all lanes; lanes are vectors as in pyramid.inc.c.
 *
 * With weights neither holds, but the cost is still a sum over entries under a budget: a table of the least cost of
 * the first entries for every budget, one entry after another, is exact in O(N R^1.5) for each gain.
 */
static void exchange(vf *a, vf *b, vf *place_a, vf *place_b)
{
    vf first = *a, second = *b, of_first = *place_a, of_second = *place_b;
    *a = vselect(first, second, second, first);
    *b = vselect(first, second, first, second);
    *place_a = vselect(first, second, of_second, of_first);
    *place_b = vselect(first, second, of_first, of_second);
}

static void sort_descending(vf *a_N, vf *place_N, size_t N)
{
    size_t top = 1;
    while (2 * top < N) top *= 2;
    for (size_t i = 0; i < N; i++) place_N[i] = vset1((float)i);
    for (size_t p = top; p > 0; p /= 2)
        for (size_t q = top, r = 0, d = p;; d = q - p, q /= 2, r = p) {
            for (size_t i = 0; i + d < N; i++)
                if ((i & p) == r) exchange(a_N + i, a_N + i + d, place_N + i, place_N + i + d);
            if (q == p) break;
        }
}

static void leader_search(const mcq_leaders *t, const float *x_nN, int16_t *y_nN, float *product_n, size_t n)
{
    static const float ones[VL] = {[0 ... VL - 1] = 1.0f};
    vf a[MAX_GROUP], place[MAX_GROUP];
    for (size_t start = 0; start < n; start += VL) {
        size_t rows = n - start < VL ? n - start : VL;
        const float *x = x_nN + start * t->N;
        int16_t *y = y_nN + start * t->N;
        vf best = vset1(-1.0f), product = vset1(0.0f), chosen = product;
        load_magnitudes(x, ones, rows, t->N, a);
        sort_descending(a, place, t->N);
        for (size_t k = 0; k < t->num_leaders; k++) {
            const float *leader = t->leaders_KN + k * t->N;
            vf sum = vset1(0.0f);
            for (size_t i = 0; i < t->N && leader[i] > 0.0f; i++) sum += leader[i] * a[i];
            vf score = sum * t->factor_K[k];
            product = vselect(best, score, sum, product);
            chosen = vselect(best, score, vset1((float)k), chosen);
            best = vmax(best, score);
        }
        for (size_t l = 0; l < rows; l++) {
            const float *leader = t->leaders_KN + (size_t)chosen[l] * t->N;
            for (size_t i = 0; i < t->N; i++) {
                size_t c = l * t->N + (size_t)((float *)place)[i * VL + l];
                y[c] = (int16_t)copysignf(leader[i], x[c]);
            }
            product_n[start + l] = product[l];
        }
    }
}

/* least_R = least cost of all entries for every budget, and in chosen_NR the magnitudes that lead there. */
static void fill_budgets(const mcq_shell *t, const vf *a_N, vf *least_R, vf *rest_R, vf *chosen_NR)
{
    size_t budgets = t->squared_norm + 1;
    for (size_t r = 0; r < budgets; r++) least_R[r] = vset1(r == 0 ? 0.0f : MCQ_PAD_COST);
    memset(chosen_NR, 0, t->N * budgets * sizeof *chosen_NR);
    for (size_t i = 0; i < t->N; i++) {
        memcpy(rest_R, least_R, budgets * sizeof *least_R);
        vf *chosen = chosen_NR + i * budgets;
        for (size_t m = 1; m * m < budgets; m++) {
            vf size = vset1((float)m), cost = t->weights_N[i] * (size * (size - 2.0f * a_N[i]));
            for (size_t r = m * m; r < budgets; r++) {
                vf candidate = rest_R[r - m * m] + cost;
                chosen[r] = vselect(candidate, least_R[r], size, chosen[r]);
                least_R[r] = vmin(candidate, least_R[r]);
            }
        }
    }
}

static void shell_search(const mcq_shell *t, const float *x_nN, const float *inverse_n, int16_t *y_nN, uint8_t *gain_n,
                         float *scratch, size_t n)
{
    vf x[MAX_GROUP], a[MAX_GROUP];
    size_t budgets = t->squared_norm + 1;
    vf *least = (vf *)scratch, *rest = least + budgets, *chosen = rest + budgets;
    for (size_t start = 0; start < n; start += VL) {
        size_t rows = n - start < VL ? n - start : VL;
        float best[VL];
        for (size_t l = 0; l < VL; l++) best[l] = MCQ_PAD_COST;
        load_magnitudes(x_nN + start * t->N, inverse_n + start, rows, t->N, x);
        for (size_t s = 0; s < t->num_gains; s++) {
            float gain = t->gains[s], inverse = gain > 0.0f ? 1.0f / gain : 0.0f;
            for (size_t i = 0; i < t->N; i++) a[i] = x[i] * inverse;
            fill_budgets(t, a, least, rest, chosen);
            for (size_t l = 0; l < rows; l++) {
                float cost = least[t->squared_norm][l] * (gain * gain);
                if (!(cost < best[l])) continue;
                best[l] = cost;
                gain_n[start + l] = (uint8_t)s;
                for (size_t i = t->N, r = t->squared_norm; i-- > 0;) {
                    size_t c = (start + l) * t->N + i;
                    float m = chosen[i * budgets + r][l];
                    y_nN[c] = (int16_t)copysignf(m, x_nN[c]);
                    r -= (size_t)(m * m);
                }
            }
        }
    }
}
