#define MCQ_TABLE mcq_kernels_baseline
#include "kernels.inc.c"
