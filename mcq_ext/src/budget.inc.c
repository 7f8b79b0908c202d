/* A lattice point near a target under a full matrix B = U U^T, U upper triangular, for pyramids and shells alike.
 *
 * |U^T e|^2 is a sum over entries of squares that each depend on the entries up to its own: coding entry after entry,
 * every error is fed forward to those that follow. Taken alone that would spend the budget blindly, so for every
 * budget that the first entries may have spent the best way is kept, with the errors it feeds forward, and extended:
 * dynamic programming with a survivor for each state. Exact where B is diagonal, otherwise very good. The sign of an
 * entry is that of its own target, so magnitudes alone are tried. Lanes are vectors as in pyramid.inc.c.
 */

/* Below so many magnitudes to choose from, comparing with each is faster than loading every lane from its own place. */
enum { FEW = VL == 16 ? 9 : 1 };

static size_t spent(const mcq_budget *t, size_t m) { return t->squared ? m * m : m; }

/* The errors that the ways to budget r feed to entries behind i: those of the budgets that their last magnitudes left. */
static void from_chosen(const mcq_budget *t, size_t i, size_t r, vf magnitude, const vf *fed_RN, vf *fed_N)
{
    size_t N = t->N;
    if (r < spent(t, FEW)) {
        for (size_t k = i + 1; k < N; k++) {
            vf fed = fed_RN[r * N + k];
            for (size_t m = 1; spent(t, m) <= r; m++)
                fed = vselect(vabs(magnitude - (float)m), vset1(0.5f), fed_RN[(r - spent(t, m)) * N + k], fed);
            fed_N[k] = fed;
        }
        return;
    }
    vf used = t->squared ? magnitude * magnitude : magnitude;
    vi source = __builtin_convertvector((float)r - used, vi) * (int32_t)N;
    for (size_t k = i + 1; k < N; k++) fed_N[k] = vpick(fed_RN + k, source);
}

/* For all entries up to i: the best way to each budget r, from the costs and fed errors of those before. */
static void extend(const mcq_budget *t, size_t i, vf target, const vf *cost_R, const vf *fed_RN, vf *new_cost_R,
                   vf *new_fed_RN, vf *chosen_R, vf *centre_R)
{
    size_t budgets = t->budget + 1, N = t->N;
    const float *row = t->factor_NN + i * N;
    float weight = row[i] * row[i];
    for (size_t r = 0; r < budgets; r++) centre_R[r] = target + fed_RN[r * N + i] / row[i];
    for (size_t r = 0; r < budgets; r++) {
        vf best = vset1(INFINITY), magnitude = vset1(0.0f), centre = magnitude;
        for (size_t m = 0; spent(t, m) <= r; m++) {
            vf from = centre_R[r - spent(t, m)], distance = vabs(from) - (float)m;
            vf candidate = cost_R[r - spent(t, m)] + weight * (distance * distance);
            magnitude = vselect(candidate, best, vset1((float)m), magnitude);
            centre = vselect(candidate, best, from, centre);
            best = vmin(candidate, best);
        }
        vf y = vselect(centre, vset1(0.0f), -magnitude, magnitude), error = target - y;
        new_cost_R[r] = best;
        chosen_R[r] = y;
        vf *fed = new_fed_RN + r * N;
        from_chosen(t, i, r, magnitude, fed_RN, fed);
        for (size_t k = i + 1; k < N; k++) fed[k] += row[k] * error;
    }
}

static void budget_search(const mcq_budget *t, const float *x_nN, const float *inverse_n, int16_t *y_nN, float *scratch,
                           size_t n)
{
    size_t budgets = t->budget + 1, N = t->N;
    vf *cost = (vf *)scratch, *new_cost = cost + budgets, *centre = new_cost + budgets, *chosen = centre + budgets;
    vf *fed = chosen + N * budgets, *new_fed = fed + N * budgets, a[MAX_GROUP];
    for (size_t start = 0; start < n; start += VL) {
        size_t rows = n - start < VL ? n - start : VL;
        for (size_t l = 0; l < VL; l++) {
            size_t row = start + (l < rows ? l : rows - 1);
            for (size_t i = 0; i < N; i++) ((float *)a)[i * VL + l] = x_nN[row * N + i] * inverse_n[row];
        }
        for (size_t r = 0; r < budgets; r++) cost[r] = vset1(r == 0 ? 0.0f : MCQ_PAD_COST);
        memset(fed, 0, N * budgets * sizeof *fed);
        for (size_t i = 0; i < N; i++) {
            vf target = vmin(vmax(a[i], vset1(-LARGEST_TARGET)), vset1(LARGEST_TARGET));
            extend(t, i, target, cost, fed, new_cost, new_fed, chosen + i * budgets, centre);
            vf *old = cost, *old_fed = fed;
            cost = new_cost, new_cost = old;
            fed = new_fed, new_fed = old_fed;
        }
        for (size_t l = 0; l < rows; l++)
            for (size_t i = N, r = t->budget; i-- > 0;) {
                float y = chosen[i * budgets + r][l];
                y_nN[(start + l) * N + i] = (int16_t)y;
                r -= spent(t, (size_t)fabsf(y));
            }
    }
}
