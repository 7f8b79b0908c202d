#define MCQ_TABLE mcq_kernels_avx2
#include "kernels.inc.c"
