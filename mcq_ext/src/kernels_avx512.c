#define MCQ_TABLE mcq_kernels_avx512
#include "kernels.inc.c"
