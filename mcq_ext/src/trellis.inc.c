/* Trellis codes: the value of an entry is a function of L bits of its row, those from its own bits on.
 *
 * Entries are coded from the last to the first. Each puts its k bits below the state, the last L bits so far, which
 * picks its value: state' = (state << k | code) mod 2^L, and before the first step the state is 0. A state is thus the
 * window of L bits at the place of its entry, zeros past the end of the row, and any entry can be decoded alone.
 *
 * Viterbi's search is exact where the metric couples no columns: of the paths that lead to a state only the cheapest
 * counts. The 2^k states that follow group g = state mod 2^(L - k) are the same for all 2^k members of the group, so
 * a minimum over members serves all of them. Members are 2^(L - k) apart and followers adjacent: both are read and
 * written by whole vectors, and lanes are states. A byte for each group and entry tells the way back. Costs are kept
 * relative to the cheapest, one step late, so that long rows lose no digits. On a tie the lowest member wins.
 */

typedef uint8_t vb __attribute__((vector_size(VL)));

INLINE float clamped(float target)
{
    return target > LARGEST_TARGET ? LARGEST_TARGET : target < -LARGEST_TARGET ? -LARGEST_TARGET : target;
}

/* Lanes i VL, i VL + 1, ... of v with every lane 2^k times. */
INLINE vf repeat(vf v, int i, unsigned k)
{
    vi lane;
    for (int l = 0; l < VL; l++) lane[l] = (i * VL + l) >> k;
    return __builtin_shuffle(v, lane);
}

/* Costs new_S after one more entry, and the member of each group that leads there; returns the least of old_S. */
INLINE float take_step(unsigned k, size_t states, const float *old_S, float *new_S, const float *value_S, float target,
                       float weight, float base, uint8_t *member_g)
{
    size_t groups = states >> k;
    vf least = vset1(INFINITY);
    for (size_t g = 0; g < groups; g += VL) {
        vf best = vload(old_S + g), member = vset1(0.0f);
        for (int h = 1; h < 1 << k; h++) {
            vf other = vload(old_S + g + h * groups);
            member = vselect(other, best, vset1((float)h), member);
            best = vmin(other, best);
        }
        vb bytes = __builtin_convertvector(__builtin_convertvector(member, vi), vb);
        memcpy(member_g + g, &bytes, sizeof bytes);
        least = vmin(best, least);
        best -= base;
#pragma GCC unroll 32
        for (int i = 0; i < 1 << k; i++) {
            vf error = target - vload(value_S + (g << k) + i * VL);
            vstore(new_S + (g << k) + i * VL, repeat(best, i, k) + weight * (error * error));
        }
    }
    return vhmin(least);
}

static float any_step(unsigned k, size_t states, const float *old_S, float *new_S, const float *value_S, float target,
                      float weight, float base, uint8_t *member_g)
{
    switch (k) {
    case 1: return take_step(1, states, old_S, new_S, value_S, target, weight, base, member_g);
    case 2: return take_step(2, states, old_S, new_S, value_S, target, weight, base, member_g);
    case 3: return take_step(3, states, old_S, new_S, value_S, target, weight, base, member_g);
    case 4: return take_step(4, states, old_S, new_S, value_S, target, weight, base, member_g);
    default: return take_step(5, states, old_S, new_S, value_S, target, weight, base, member_g);
    }
}

static size_t least_of(const float *cost, size_t count)
{
    size_t best = 0;
    for (size_t i = 1; i < count; i++) best = cost[i] < cost[best] ? i : best;
    return best;
}

static unsigned width_of(const mcq_trellis *t, size_t j) { return t->offset_d[j + 1] - t->offset_d[j]; }

/* Writes the k bits of entry j into a row of zeros. */
static void put_code(const mcq_trellis *t, size_t j, size_t state, uint8_t *row)
{
    size_t at = t->offset_d[j];
    unsigned bits = (unsigned)(state & ((1u << width_of(t, j)) - 1)) << (at & 7);
    row[at >> 3] |= (uint8_t)bits;
    if (bits >> 8) row[(at >> 3) + 1] |= (uint8_t)(bits >> 8);
}

static void trellis_search(const mcq_trellis *t, const float *x_nd, const float *inverse_n, uint8_t *packed_nB,
                           float *scratch, uint8_t *member_dg, size_t n)
{
    size_t states = (size_t)1 << t->state_bits, d = t->d;
    for (size_t row = 0; row < n; row++) {
        const float *x = x_nd + row * d;
        uint8_t *packed = packed_nB + row * t->row_bytes;
        float *cost = scratch, *next = scratch + states, base = 0.0f;
        cost[0] = 0.0f;
        for (size_t s = 1; s < states; s++) cost[s] = INFINITY;
        for (size_t j = d; j-- > 0;) {
            float target = clamped(x[j] * inverse_n[row]);
            float least = any_step(width_of(t, j), states, cost, next, t->value_S, target, t->weight_d[j], base,
                                   member_dg + j * t->groups);
            float *old = cost;
            cost = next, next = old;
            base = least - base;
        }
        memset(packed, 0, t->row_bytes);
        size_t state = least_of(cost, states);
        for (size_t j = 0; j < d; j++) {
            unsigned k = width_of(t, j);
            size_t group = state >> k;
            put_code(t, j, state, packed);
            state = group | (size_t)member_dg[j * t->groups + group] << (t->state_bits - k);
        }
    }
}

static void trellis_decode(const mcq_trellis *t, const uint8_t *packed_nB, const float *scale_n, float *out_nd,
                           uint8_t *scratch, size_t n)
{
    uint32_t last = (1u << t->state_bits) - 1;
    memset(scratch + t->row_bytes, 0, 4);
    for (size_t row = 0; row < n; row++) {
        memcpy(scratch, packed_nB + row * t->row_bytes, t->row_bytes);
        for (size_t j = 0; j < t->d; j++) {
            size_t at = t->offset_d[j];
            const uint8_t *b = scratch + (at >> 3);
            uint32_t bits = b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
            out_nd[row * t->d + j] = t->value_S[bits >> (at & 7) & last] * scale_n[row];
        }
    }
}
