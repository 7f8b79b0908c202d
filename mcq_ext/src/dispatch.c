/* Which levels exist in this build and run on this CPU. Compiled with baseline flags only. */
#include "mcq_kernels.h"

extern const mcq_kernels mcq_kernels_baseline;
#ifdef MCQ_HAVE_AVX2
extern const mcq_kernels mcq_kernels_avx2;
#endif
#ifdef MCQ_HAVE_AVX512
extern const mcq_kernels mcq_kernels_avx512;
#endif

static int supported(int level)
{
    switch (level) {
    case 0:
        return 1;
#ifdef MCQ_HAVE_AVX2
    case 1:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
#ifdef MCQ_HAVE_AVX512
    case 2:
        return supported(1) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    default:
        return 0;
    }
}

const char *mcq_level_name(int level)
{
    static const char *const names[] = {"baseline", "avx2", "avx512"};
    return level >= 0 && level <= 2 && supported(level) ? names[level] : 0;
}

const mcq_kernels *mcq_level_kernels(int level)
{
    if (!mcq_level_name(level)) return 0;
#ifdef MCQ_HAVE_AVX512
    if (level == 2) return &mcq_kernels_avx512;
#endif
#ifdef MCQ_HAVE_AVX2
    if (level == 1) return &mcq_kernels_avx2;
#endif
    return &mcq_kernels_baseline;
}
