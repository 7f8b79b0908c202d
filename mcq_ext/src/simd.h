/* The vector operations that the kernels need, at the width of the level being compiled.
 *
 * Arithmetic stays in GCC's vector types, so one body serves every level. Only min, comparisons and choices are spelt
 * with intrinsics, because the generic forms compile poorly. No fused multiply-add that rounds otherwise than a product and
 * a sum: the baseline has none, and results must be the same at every level.
 */
#ifndef MCQ_SIMD_H
#define MCQ_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));

#define INLINE static inline __attribute__((always_inline))

INLINE vf vload(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void vstore(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf vset1(float x) { return x - (vf){0}; }

INLINE vf vmin(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    for (int l = 0; l < VL; l++) a[l] = a[l] < b[l] ? a[l] : b[l];
    return a;
#endif
}

INLINE int vany_less(vf a, vf b)
{
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps(_mm_cmplt_ps((__m128)a, (__m128)b)) != 0;
#else
    for (int l = 0; l < VL; l++) if (a[l] < b[l]) return 1;
    return 0;
#endif
}

/* A bit for each lane where a <= b. */
INLINE unsigned vmask_up_to(vf a, vf b)
{
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#elif defined(__AVX2__)
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ));
#elif defined(__SSE2__)
    return (unsigned)_mm_movemask_ps(_mm_cmple_ps((__m128)a, (__m128)b));
#else
    unsigned mask = 0;
    for (int l = 0; l < VL; l++) mask |= (unsigned)(a[l] <= b[l]) << l;
    return mask;
#endif
}

/* In each lane yes where a < b, else no. */
INLINE vf vselect(vf a, vf b, vf yes, vf no)
{
#if defined(__AVX512F__)
    return (vf)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ), (__m512)no, (__m512)yes);
#elif defined(__AVX2__)
    return (vf)_mm256_blendv_ps((__m256)no, (__m256)yes, _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ));
#else
    vi less = a < b;
    return (vf)(((vi)yes & less) | ((vi)no & ~less));
#endif
}

/* a + s b for s of 1 and -1 only: their product is exact, so that fusing it saves an instruction and no rounding. */
INLINE vf vadd_signed(vf a, vf s, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)s, (__m512)b, (__m512)a);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)s, (__m256)b, (__m256)a);
#else
    return a + s * b;
#endif
}

INLINE vf vmax(vf a, vf b) { return vselect(a, b, b, a); }
INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }
/* Towards zero; lanes must fit in 32 bits. */
INLINE vf vtrunc(vf a) { return __builtin_convertvector(__builtin_convertvector(a, vi), vf); }

/* Lane l of the vector at p + VL index[l], for each l. */
INLINE vf vpick(const vf *p, vi index)
{
#if defined(__AVX512F__)
    __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (vf)_mm512_i32gather_ps(_mm512_add_epi32(_mm512_slli_epi32((__m512i)index, 4), lanes), p, 4);
#elif defined(__AVX2__)
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (vf)_mm256_i32gather_ps((const float *)p, _mm256_add_epi32(_mm256_slli_epi32((__m256i)index, 3), lanes), 4);
#else
    vf v;
    for (int l = 0; l < VL; l++) v[l] = p[index[l]][l];
    return v;
#endif
}

INLINE float vhmin(vf v)
{
    float best = v[0];
    for (int l = 1; l < VL; l++) best = v[l] < best ? v[l] : best;
    return best;
}

#endif
