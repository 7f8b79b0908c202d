/* Randomised Hadamard transform of rows of any width; a row is written once to where it goes and stays in the L1 cache.
 *
 * A step multiplies a row by signs and transforms its first w or last w entries, w the largest power of two in d. If
 * w = d one step does all. Else steps alternate between the two ends, and each pair of steps starts with a butterfly
 * between the halves of the row: two overlapping blocks alone would mix badly where they hardly overlap. Every part is
 * orthogonal and its own inverse, so the inverse is the same parts in reverse.
 *
 * Loads and stores cost as much as sums. Hence several levels share a pass: all those within a vector, which are
 * shuffles, and three of larger strides, on eight registers. Signs come with the first pass of a block, or the last, and
 * while a row of one block is transformed the next is on its way from memory. Only pairs of entries are added and
 * subtracted, always in ascending order of strides, and the factor that keeps lengths comes first: the result has the
 * same bits whatever the width of a vector.
 */

/* Levels of strides of whole vectors in a pass, at most. */
#define PASS_LEVELS 3

/* f(lane, stride) for all lanes; shuffles are fast only if their order is a constant. */
#define LANES4(f, l, stride) f(l, stride), f(l + 1, stride), f(l + 2, stride), f(l + 3, stride)
#if VL == 16
#define LANES(f, s) LANES4(f, 0, s), LANES4(f, 4, s), LANES4(f, 8, s), LANES4(f, 12, s)
#elif VL == 8
#define LANES(f, s) LANES4(f, 0, s), LANES4(f, 4, s)
#else
#define LANES(f, s) LANES4(f, 0, s)
#endif
#define PARTNER(l, stride) ((l) ^ (stride))
#define SIGN(l, stride) ((l) & (stride) ? -1.0f : 1.0f)
#if defined(__clang__)
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLE(v, ...) __builtin_shuffle(v, (vi){__VA_ARGS__})
#endif

/* One level within a vector: lane l meets lane l ^ stride. */
#define LANE_BUTTERFLY(v, stride) vadd_signed(SHUFFLE(v, LANES(PARTNER, stride)), (vf){LANES(SIGN, stride)}, v)

INLINE vf within(vf v)
{
    v = LANE_BUTTERFLY(v, 1);
    v = LANE_BUTTERFLY(v, 2);
#if VL >= 8
    v = LANE_BUTTERFLY(v, 4);
#endif
#if VL >= 16
    v = LANE_BUTTERFLY(v, 8);
#endif
    return v;
}

#define EACH(r, count) _Pragma("GCC unroll 8") for (int r = 0; r < (count); r++)

/* Levels of strides h, 2 h, ... in one pass. The first, where h = VL, does all levels below before, on entries times
 * `factor`. Signs that are not NULL multiply entries before or after; what lies `next` entries further is fetched. */
INLINE void pass(const float *x, float *out, size_t length, size_t h, int levels, int is_first, float factor,
                 const float *before, const float *after, size_t next)
{
    const int radix = 1 << levels;
    for (size_t block = 0; block < length; block += (size_t)radix * h)
        for (size_t i = block; i < block + h; i += VL) {
            vf v[1 << PASS_LEVELS];
            EACH(r, radix) v[r] = vload(x + i + (size_t)r * h);
            if (before) EACH(r, radix) v[r] *= vload(before + i + (size_t)r * h);
            if (is_first) EACH(r, radix) v[r] = within(v[r] * vset1(factor));
            if (next) EACH(r, radix) __builtin_prefetch((is_first ? x : out) + i + (size_t)r * h + next);
#pragma GCC unroll 3
            for (int s = 1; s < radix; s *= 2)
                EACH(r, radix)
                    if (!(r & s)) {
                        vf a = v[r], b = v[r + s];
                        v[r] = a + b;
                        v[r + s] = a - b;
                    }
            if (after) EACH(r, radix) v[r] *= vload(after + i + (size_t)r * h);
            EACH(r, radix) vstore(out + i + (size_t)r * h, v[r]);
        }
}

/* Blocks shorter than a vector. */
static void transform_few(const float *x, float *out, size_t length, float factor, const float *before,
                          const float *after)
{
    for (size_t i = 0; i < length; i++) out[i] = (before ? x[i] * before[i] : x[i]) * factor;
    for (size_t h = 1; h < length; h *= 2)
        for (size_t i = 0; i < length; i++)
            if (!(i & h)) {
                float a = out[i], b = out[i + h];
                out[i] = a + b;
                out[i + h] = a - b;
            }
    for (size_t i = 0; after && i < length; i++) out[i] *= after[i];
}

static void transform_block(const float *x, float *out, size_t length, const float *before, const float *after,
                            size_t next)
{
    float factor = 1.0f / sqrtf((float)length);
    if (length < VL) {
        transform_few(x, out, length, factor, before, after);
        return;
    }
    int left = 0;
    while ((size_t)VL << left < length) left++;
    int passes = left ? (left + PASS_LEVELS - 1) / PASS_LEVELS : 1;
    for (size_t h = VL; passes; passes--) {
        int levels = (left + passes - 1) / passes;
        const float *last = passes == 1 ? after : NULL;
#define CASE(levels)                                                                                 \
    case levels:                                                                                     \
        if (h == VL)                                                                                 \
            pass(x, out, length, VL, levels, 1, factor, before, last, next);                         \
        else                                                                                         \
            pass(out, out, length, h, levels, 0, factor, NULL, last, passes == 1 ? next : 0);        \
        break;
        switch (levels) {
            CASE(0)
            CASE(1)
            CASE(2)
            CASE(3)
        }
#undef CASE
        h <<= levels;
        left -= levels;
    }
}

/* Signs of all entries, then a rotation of the halves of the row by 45 degrees; inverse: the rotation, then signs. */
static void mix_halves(const float *x, const float *signs, float *out, size_t d, int inverse)
{
    const float factor = sqrtf(0.5f);
    size_t other = d - d / 2;
#pragma GCC ivdep
    for (size_t i = 0; i < d / 2; i++) {
        float a = x[i], b = x[i + other], s = signs[i], t = signs[i + other];
        if (!inverse) a *= s, b *= t;
        float sum = (a + b) * factor, difference = (a - b) * factor;
        out[i] = inverse ? sum * s : sum;
        out[i + other] = inverse ? difference * t : difference;
    }
    if (d % 2) out[d / 2] = x[d / 2] * signs[d / 2];
}

static void flip_signs(const float *x, const float *signs, float *out, size_t d)
{
#pragma GCC ivdep
    for (size_t i = 0; i < d; i++) out[i] = x[i] * signs[i];
}

static void hadamard_step(const float *x, const float *signs, float *out, size_t d, size_t w, size_t step, int inverse,
                          size_t next)
{
    if (step % 2 == 0 && w < d) {
        if (!inverse) {
            mix_halves(x, signs, out, d, 0);
            transform_block(out, out, w, NULL, NULL, 0);
        } else {
            memmove(out + w, x + w, (d - w) * sizeof *out);
            transform_block(x, out, w, NULL, NULL, 0);
            mix_halves(out, signs, out, d, 1);
        }
    } else {
        size_t start = step % 2 ? d - w : 0;
        const float *own = signs + start;
        flip_signs(x, signs, out, start);
        transform_block(x + start, out + start, w, inverse ? NULL : own, inverse ? own : NULL, next);
    }
}

static void hadamard(const float *x_nd, const float *signs_Sd, float *out_nd, size_t n, size_t d, size_t S, int inverse)
{
    size_t w = 1;
    while (2 * w <= d) w *= 2;
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < S; t++) {
            size_t step = inverse ? S - 1 - t : t;
            hadamard_step((t ? out_nd : x_nd) + i * d, signs_Sd + step * d, out_nd + i * d, d, w, step, inverse,
                          w == d && i + 1 < n ? d : 0);
        }
}
