/* The nearest point of the pyramid P(N, K), the integer vectors y whose |y_i| sum to K, for a table of gains.
 *
 * For one gain s the problem, min sum_i w_i (a_i - y_i)^2 with a = |x| / s, is separable and convex under one sum
 * constraint. So is any shifted rounding round(a_i + shift / w_i), cut to [0, K], optimal for the sum that it happens to
 * have, and adding or removing one pulse at a time where it costs least leads from there to the optimum for the sum K
 * (Fox 1966). Where more than FEW_PULSES are to go, Newton steps for the shift come first, kept between the shifts that
 * gave too little and too much. Signs are those of x, the best gain is found by trying all. Costs leave out sum w x^2,
 * and with it squares that could overflow.
 *
 * One vector has too few entries for a register, and what is done to it depends on it: so as many vectors as there are
 * lanes go side by side, one to a lane, and loops run until the slowest lane is done. Lanes know nothing of each other,
 * so their number does not show in the result.
 */
#define MAX_GROUP 256
#define SHIFT_STEPS 8
#define FEW_PULSES 2.0f
#define FAR 1e30f

/* a_N = |x| * inverse of up to VL vectors; lanes past the last vector repeat it. */
static void load_magnitudes(const float *x_nN, const float *inverse_n, size_t rows, size_t N, vf *a_N)
{
    float *a = (float *)a_N;
    for (size_t l = 0; l < VL; l++) {
        size_t row = l < rows ? l : rows - 1;
        for (size_t i = 0; i < N; i++) a[i * VL + l] = fabsf(x_nN[row * N + i]) * inverse_n[row];
    }
}

static void store_signed(const float *x_nN, const vf *y_N, size_t rows, size_t N, int16_t *y_nN)
{
    const float *y = (const float *)y_N;
    for (size_t l = 0; l < rows; l++)
        for (size_t i = 0; i < N; i++) y_nN[l * N + i] = (int16_t)copysignf(y[i * VL + l], x_nN[l * N + i]);
}

/* y = round(a + shift / w) in [0, K]; returns K less its sum, and in slope how fast the sum grows with the shift. */
static vf shifted_rounding(const mcq_pyramid *p, const vf *a_N, vf shift, vf *y_N, vf *slope)
{
    vf zero = vset1(0.0f), K = vset1(p->pulses), left = K;
    *slope = zero;
    for (size_t i = 0; i < p->N; i++) {
        vf spread = vset1(p->spread_N[i]);
        vf y = vtrunc(vmax(vmin(a_N[i] + shift * spread + 0.5f, K), zero));
        y_N[i] = y;
        left -= y;
        *slope += vselect(zero, y, spread, zero);
    }
    return left;
}

/* One pulse more, or less, in every lane whose sum is not K, where it costs least; the first such entry on a tie. */
static vf move_pulses(const mcq_pyramid *p, const vf *a_N, vf *y_N, vf left)
{
    vf zero = vset1(0.0f), worst = vset1(-MCQ_PAD_COST), best = worst, where = zero - 1.0f;
    vf step = vselect(left, zero, vset1(-1.0f), vselect(zero, left, vset1(1.0f), zero));
    for (size_t i = 0; i < p->N; i++) {
        vf gained = p->weights_N[i] * (step * (a_N[i] - y_N[i]) - 0.5f);
        gained = vselect(y_N[i] + step, zero, worst, gained);
        where = vselect(best, gained, vset1((float)i), where);
        best = vselect(best, gained, gained, best);
    }
    for (size_t i = 0; i < p->N; i++) y_N[i] += vselect(vabs(where - (float)i), vset1(0.5f), step, zero);
    return left - step;
}

static void nearest_in_pyramid(const mcq_pyramid *p, const vf *a_N, vf *y_N)
{
    vf zero = vset1(0.0f), few = vset1(FEW_PULSES), shift = zero, low = vset1(-FAR), high = -low, slope;
    vf left = shifted_rounding(p, a_N, shift, y_N, &slope);
    for (int step = 0; step < SHIFT_STEPS && vany_less(few, vabs(left)); step++) {
        low = vselect(zero, left, shift, low);
        high = vselect(left, zero, shift, high);
        /* one more than the slope, so that the step is finite where the sum is zero */
        vf next = shift + left / (slope + 1.0f), middle = (low + high) * 0.5f;
        next = vselect(low, next, vselect(next, high, next, middle), middle);
        shift = vselect(few, vabs(left), next, shift);
        left = shifted_rounding(p, a_N, shift, y_N, &slope);
    }
    while (vany_less(zero, vabs(left))) left = move_pulses(p, a_N, y_N, left);
}

static void pyramid_search(const mcq_pyramid *p, const float *x_nN, const float *inverse_n, int16_t *y_nN,
                           uint8_t *gain_n, size_t n)
{
    vf x[MAX_GROUP], a[MAX_GROUP], y[MAX_GROUP], best_y[MAX_GROUP];
    for (size_t start = 0; start < n; start += VL) {
        size_t rows = n - start < VL ? n - start : VL;
        vf best = vset1(MCQ_PAD_COST), index = vset1(0.0f);
        load_magnitudes(x_nN + start * p->N, inverse_n + start, rows, p->N, x);
        for (size_t s = 0; s < p->num_gains; s++) {
            float gain = p->gains[s], inverse = gain > 0.0f ? 1.0f / gain : 0.0f;
            vf cost = vset1(0.0f);
            for (size_t i = 0; i < p->N; i++) a[i] = x[i] * inverse;
            nearest_in_pyramid(p, a, y);
            for (size_t i = 0; i < p->N; i++) cost += p->weights_N[i] * (y[i] * (y[i] - 2.0f * a[i]));
            cost *= gain * gain;
            for (size_t i = 0; i < p->N; i++) best_y[i] = vselect(cost, best, y[i], best_y[i]);
            index = vselect(cost, best, vset1((float)s), index);
            best = vmin(cost, best);
        }
        store_signed(x_nN + start * p->N, best_y, rows, p->N, y_nN + start * p->N);
        for (size_t l = 0; l < rows; l++) gain_n[start + l] = (uint8_t)index[l];
    }
}
