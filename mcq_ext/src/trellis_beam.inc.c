/* Trellis codes under a metric that couples columns: a beam of paths, each with its own error feedback.
 *
 * With H = U D U^T, U unit upper triangular in the order of coding, an error e costs sum_p D_p (e_p + sum over q < p of
 * e_q U_qp)^2: the target of an entry depends on all errors before it, and so on the path. Paths into one state then
 * no longer differ by a constant and Viterbi's argument fails; feeding back the errors of one path to all others
 * loses more than a trellis gains. So the cheapest `width` paths are kept, each with the exact cost of its own past
 * (M-algorithm).
 *
 * What errors ask of later entries is summed for BLOCK entries at a time: within a block at every step, one vector
 * per path, and at its start over everything before. Paths share their old errors: those older than WINDOW entries
 * are made final, those of the cheapest path, and paths that disagree are dropped. Of the candidates, 2^k for each
 * path, the cheapest are found by bisection over the bits of their costs, which are positive floats and order like
 * integers; on a tie the first in order of path and code are kept.
 */
#define BLOCK 16
#define WINDOW 48
#define HISTORY (WINDOW + BLOCK)

typedef struct {
    size_t count;                       /* paths */
    size_t settled;                     /* entries that are final */
    float *fed, *next_fed;              /* (width, BLOCK) what errors before a block add to its targets */
    float *cost, *next_cost;            /* (width) */
    uint32_t *state, *next_state;       /* (width) */
    float *candidate;                   /* (32 width + VL) costs */
    uint32_t *chosen;                   /* (32 width + VL) numbers of candidates */
    float *error;                       /* (HISTORY, width) at the last entries, of each path there */
    uint32_t *origin;                   /* (HISTORY, width) which candidate the path was: path before << k | code */
    float *own;                         /* (WINDOW, width) the same, of the past of each present path */
    float *final;                       /* (d) errors of the entries that are final */
} beam;

static beam carve(const mcq_trellis *t, float *scratch)
{
    size_t width = t->width, many = 32 * width + VL;
    beam b = {.fed = scratch};
    b.next_fed = b.fed + width * BLOCK;
    b.error = b.next_fed + width * BLOCK;
    b.candidate = b.error + width * HISTORY;
    b.cost = b.candidate + many;
    b.next_cost = b.cost + width;
    b.own = b.next_cost + width;
    b.final = b.own + width * WINDOW;
    b.origin = (uint32_t *)(b.final + t->d);
    b.chosen = b.origin + width * HISTORY;
    b.state = b.chosen + many;
    b.next_state = b.state + width;
    return b;
}

/* Makes entries before `end` final, as `path` has them, one of those after step end - 1. */
static void settle(const mcq_trellis *t, beam *b, size_t end, size_t path, uint8_t *packed)
{
    for (size_t p = end; p-- > b->settled;) {
        size_t at = p % HISTORY * t->width + path;
        b->final[p] = b->error[at];
        put_code(t, t->d - 1 - p, b->origin[at], packed);
        path = b->origin[at] >> width_of(t, t->d - 1 - p);
    }
    b->settled = end;
}

/* Adds to BLOCK sums the products of `count` errors with rows of the feedback matrix. */
static void add_products(float *sum, const float *error, size_t step, const float *row, size_t stride, size_t count)
{
    for (size_t i = 0; i < BLOCK; i += VL) {
        vf total = vload(sum + i);
        for (size_t p = 0; p < count; p++) total += error[p * step] * vload(row + p * stride + i);
        vstore(sum + i, total);
    }
}

/* fed for the block that begins at `start`: what all errors before it add to its targets. Entries older than the window
 * become final first, as the cheapest path has them, and paths that disagree are dropped. */
static void open_block(const mcq_trellis *t, beam *b, size_t start, uint8_t *packed)
{
    size_t oldest = start < WINDOW ? 0 : start - WINDOW;
    uint32_t *path = b->chosen;
    for (size_t a = 0; a < b->count; a++) path[a] = (uint32_t)a;
    for (size_t p = start; p-- > oldest;) {
        unsigned k = width_of(t, t->d - 1 - p);
        size_t at = p % HISTORY * t->width;
        float *own = b->own + (p - oldest) * t->width;
        for (size_t a = 0; a < b->count; a++) {
            own[a] = b->error[at + path[a]];
            path[a] = b->origin[at + path[a]] >> k;
        }
    }
    if (oldest > 0) {
        uint32_t kept = path[least_of(b->cost, b->count)];
        for (size_t a = 0; a < b->count; a++) b->cost[a] = path[a] == kept ? b->cost[a] : INFINITY;
        settle(t, b, oldest, kept, packed);
    }
    float shared[BLOCK] = {0};
    const float *columns = t->feedback_dd + start;
    add_products(shared, b->final, 1, columns, t->stride, oldest);
    for (size_t a = 0; a < b->count; a++) {
        memcpy(b->fed + a * BLOCK, shared, sizeof shared);
        add_products(b->fed + a * BLOCK, b->own + a, t->width, columns + oldest * t->stride, t->stride, start - oldest);
    }
}

static size_t count_up_to(const float *candidate, size_t total, int32_t key)
{
    vi found = {0};
    for (size_t i = 0; i < total; i += VL) found -= (vi)vload(candidate + i) <= key;
    size_t sum = 0;
    for (int l = 0; l < VL; l++) sum += (size_t)found[l];
    return sum;
}

static int32_t bits_of(float x) { int32_t bits; memcpy(&bits, &x, sizeof bits); return bits; }
static float float_of(int32_t bits) { float x; memcpy(&x, &bits, sizeof x); return x; }

/* chosen = the cheapest candidates, `width` or all there are, in their order; returns how many. */
static size_t choose(const mcq_trellis *t, beam *b, size_t total, float *least)
{
    size_t wanted = total < t->width ? total : t->width, m = 0;
    for (size_t i = total; i % VL; i++) b->candidate[i] = INFINITY;
    vf lowest = vload(b->candidate);
    for (size_t i = VL; i < total; i += VL) lowest = vmin(vload(b->candidate + i), lowest);
    *least = vhmin(lowest);
    int32_t low = bits_of(*least), high = bits_of(INFINITY);
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        size_t found = count_up_to(b->candidate, total, middle);
        if (found == wanted) low = high = middle;
        else if (found < wanted) low = middle + 1;
        else high = middle;
    }
    size_t ties = wanted - count_up_to(b->candidate, total, low - 1);
    float limit = float_of(low);
    for (size_t i = 0; i < total; i += VL)
        for (unsigned mask = vmask_up_to(vload(b->candidate + i), vset1(limit)); mask && m < wanted; mask &= mask - 1) {
            size_t c = i + (size_t)__builtin_ctz(mask), tied = b->candidate[c] == limit;
            if (tied && ties == 0) continue;
            ties -= tied;
            b->chosen[m++] = (uint32_t)c;
        }
    return m;
}

/* Costs of every path with every code at an entry, the q-th of its block. */
INLINE void fill_candidates(const mcq_trellis *t, beam *b, size_t q, float x, float weight, unsigned k)
{
    uint32_t last = (1u << t->state_bits) - 1;
    for (size_t a = 0; a < b->count; a++) {
        float target = clamped(x + b->fed[a * BLOCK + q]), cost = b->cost[a];
        const float *value = t->value_S + (b->state[a] << k & last);
        for (size_t u = 0; u < (size_t)1 << k; u++) {
            float error = target - value[u];
            b->candidate[a << k | u] = cost + weight * (error * error);
        }
    }
}

static void any_candidates(const mcq_trellis *t, beam *b, size_t q, float x, float weight, unsigned k)
{
    switch (k) {
    case 1: fill_candidates(t, b, q, x, weight, 1); break;
    case 2: fill_candidates(t, b, q, x, weight, 2); break;
    case 3: fill_candidates(t, b, q, x, weight, 3); break;
    case 4: fill_candidates(t, b, q, x, weight, 4); break;
    default: fill_candidates(t, b, q, x, weight, 5);
    }
}

/* The cheapest of all paths with all codes at entry p, the q-th of its block, become the paths. */
static void extend_paths(const mcq_trellis *t, beam *b, size_t p, size_t q, float x)
{
    size_t j = t->d - 1 - p;
    unsigned k = width_of(t, j);
    uint32_t last = (1u << t->state_bits) - 1, code = (1u << k) - 1;
    any_candidates(t, b, q, x, t->weight_d[j], k);
    float least, *error = b->error + p % HISTORY * t->width;
    size_t count = choose(t, b, b->count << k, &least);
    memcpy(b->origin + p % HISTORY * t->width, b->chosen, count * sizeof *b->chosen);
    for (size_t m = 0; m < count; m++) {
        uint32_t a = b->chosen[m] >> k, state = (b->state[a] << k | (b->chosen[m] & code)) & last;
        b->next_state[m] = state;
        b->next_cost[m] = b->candidate[b->chosen[m]] - least;
        error[m] = x - t->value_S[state];
        memcpy(b->next_fed + m * BLOCK, b->fed + a * BLOCK, BLOCK * sizeof *b->fed);
        add_products(b->next_fed + m * BLOCK, error + m, 1, t->feedback_dd + p * t->stride + p - q, t->stride, 1);
    }
    b->count = count;
    float *fed = b->fed, *cost = b->cost;
    uint32_t *state = b->state;
    b->fed = b->next_fed, b->next_fed = fed;
    b->cost = b->next_cost, b->next_cost = cost;
    b->state = b->next_state, b->next_state = state;
}

static void trellis_beam(const mcq_trellis *t, const float *x_nd, const float *inverse_n, uint8_t *packed_nB,
                         float *scratch, size_t n)
{
    beam b = carve(t, scratch);
    for (size_t row = 0; row < n; row++) {
        uint8_t *packed = packed_nB + row * t->row_bytes;
        memset(packed, 0, t->row_bytes);
        b.count = 1, b.settled = 0, b.cost[0] = 0.0f, b.state[0] = 0;
        for (size_t start = 0; start < t->d; start += BLOCK) {
            open_block(t, &b, start, packed);
            for (size_t p = start; p < t->d && p < start + BLOCK; p++)
                extend_paths(t, &b, p, p - start, clamped(x_nd[row * t->d + t->d - 1 - p] * inverse_n[row]));
        }
        settle(t, &b, t->d, least_of(b.cost, b.count), packed);
    }
}
