/* Randomised Hadamard transform of rows of any width; a row is written once to where it goes and stays in the L1 cache.
 *
 * A step multiplies a row by signs and transforms its first w or last w entries, w the largest power of two in d. If
 * w = d one step does all. Else steps alternate between the two ends, and each pair of steps starts with a butterfly
 * between the halves of the row: two overlapping blocks alone would mix badly where they hardly overlap. Every part is
 * orthogonal and its own inverse, so the inverse is the same parts in reverse.
 *
 * What costs is loads and stores: the levels within a vector are shuffles, and three levels of larger strides share a
 * pass through eight registers. Only pairs of entries are
 * added and subtracted, always in ascending order of strides, and the factor that keeps lengths comes first: the
 * result has the same bits whatever the width of a vector. Small blocks go level by level.
 */
typedef int32_t vi __attribute__((vector_size(4 * VL)));

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
#define SIGN(l, stride) ((l) & (stride) ? INT32_MIN : 0)
#if defined(__clang__)
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLE(v, ...) __builtin_shuffle(v, (vi){__VA_ARGS__})
#endif

/* One level within a vector: lane l meets lane l ^ stride. */
#define LANE_BUTTERFLY(v, stride) (SHUFFLE(v, LANES(PARTNER, stride)) + (vf)((vi)(v) ^ (vi){LANES(SIGN, stride)}))

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

INLINE void butterfly(vf *a, vf *b)
{
    vf sum = *a + *b;
    *b = *a - *b;
    *a = sum;
}

/* Three, two or one levels of strides from h on in one pass, h a multiple of VL; the first pass also does all levels
 * below, on entries times `factor`. */
INLINE void pass(float *x, size_t length, size_t h, int radix, int is_first, float factor)
{
    for (size_t block = 0; block < length; block += (size_t)radix * h)
        for (float *p = x + block; p < x + block + h; p += VL) {
            vf v[8];
#pragma GCC unroll 8
            for (int r = 0; r < radix; r++) {
                v[r] = vload(p + (size_t)r * h);
                if (is_first) v[r] = within(v[r] * vset1(factor));
            }
#pragma GCC unroll 3
            for (int s = 1; s < radix; s *= 2)
#pragma GCC unroll 8
                for (int r = 0; r < radix; r++)
                    if (!(r & s)) butterfly(v + r, v + r + s);
#pragma GCC unroll 8
            for (int r = 0; r < radix; r++) vstore(p + (size_t)r * h, v[r]);
        }
}

static void transform_block(float *x, size_t length)
{
    float factor = 1.0f / sqrtf((float)length);
    size_t h = 1;
    if (length < VL) {
        for (size_t i = 0; i < length; i++) x[i] *= factor;
        for (; h < length; h *= 2)
            for (size_t i = 0; i < length; i++)
                if (!(i & h)) {
                    float a = x[i], b = x[i + h];
                    x[i] = a + b;
                    x[i + h] = a - b;
                }
        return;
    }
    if (length < 8 * VL) {
        for (size_t i = 0; i < length; i += VL) vstore(x + i, within(vload(x + i) * vset1(factor)));
        h = VL;
    } else {
        pass(x, length, VL, 8, 1, factor);
        for (h = 8 * VL; 8 * h <= length; h *= 8) pass(x, length, h, 8, 0, 1.0f);
    }
    if (4 * h == length) pass(x, length, h, 4, 0, 1.0f);
    if (2 * h == length) pass(x, length, h, 2, 0, 1.0f);
}

static void mix_halves(float *x, size_t d)
{
    const float factor = sqrtf(0.5f);
    float *first = x, *second = x + d - d / 2;
    for (size_t i = 0; i < d / 2; i++) {
        float a = first[i], b = second[i];
        first[i] = (a + b) * factor;
        second[i] = (a - b) * factor;
    }
}

static void flip_signs(const float *x, const float *signs, float *out, size_t d)
{
    for (size_t i = 0; i < d; i++) out[i] = x[i] * signs[i];
}

static void hadamard(const float *x_nd, const float *signs_Sd, float *out_nd, size_t n, size_t d, size_t S, int inverse)
{
    size_t w = 1;
    while (2 * w <= d) w *= 2;
    for (size_t i = 0; i < n; i++) {
        const float *x = x_nd + i * d;
        float *out = out_nd + i * d;
        if (inverse) memmove(out, x, d * sizeof *out);
        for (size_t t = 0; t < S; t++) {
            size_t step = inverse ? S - 1 - t : t;
            int first = step % 2 == 0, halves = first && w < d;
            if (!inverse) flip_signs(t ? out : x, signs_Sd + step * d, out, d);
            if (!inverse && halves) mix_halves(out, d);
            transform_block(first ? out : out + d - w, w);
            if (inverse && halves) mix_halves(out, d);
            if (inverse) flip_signs(out, signs_Sd + step * d, out, d);
        }
    }
}
