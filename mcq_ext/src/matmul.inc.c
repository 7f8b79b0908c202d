/* Matrix product in a fixed order.
 *
 * Why not BLAS: its rounding depends on the CPU, the number of threads and the shape, and codes are chosen from its
 * results; here every output element is one chain of multiply and add over d in ascending order, so codes are the same
 * everywhere. A strip of b is packed once per (columns, depth) block and stays in L1 while all rows pass; the tile of
 * MR x NR sums stays in registers.
 */
#if VL == 16
#define MR 8
#define NV 2
#else
#define MR 4
#define NV 2
#endif
#define NR (NV * VL)
#define DEPTH 256

INLINE void matmul_tile(const float *a, size_t lda, const float *strip, size_t depth, vf acc[MR][NV])
{
    for (size_t p = 0; p < depth; p++) {
        vf b[NV];
        for (int v = 0; v < NV; v++) b[v] = vload(strip + p * NR + v * VL);
        for (int r = 0; r < MR; r++) {
            vf s = vset1(a[r * lda + p]);
            for (int v = 0; v < NV; v++) acc[r][v] += s * b[v];
        }
    }
}

static void matmul_rows(const float *a, size_t lda, const float *strip, float *out, size_t ldo,
                        size_t rows, size_t depth, size_t width, int accumulate)
{
    float edge_a[MR * DEPTH], edge_out[MR * NR];
    int whole = rows == MR && width == NR;
    const float *src = a;
    size_t lds = lda;
    if (rows < MR) { /* a short tile reads zeros for the missing rows */
        memset(edge_a, 0, sizeof edge_a);
        for (size_t r = 0; r < rows; r++) memcpy(edge_a + r * DEPTH, a + r * lda, depth * sizeof(float));
        src = edge_a;
        lds = DEPTH;
    }
    vf acc[MR][NV];
    if (accumulate && !whole) {
        memset(edge_out, 0, sizeof edge_out);
        for (size_t r = 0; r < rows; r++) memcpy(edge_out + r * NR, out + r * ldo, width * sizeof(float));
    }
    for (int r = 0; r < MR; r++)
        for (int v = 0; v < NV; v++)
            acc[r][v] = !accumulate ? (vf){0} : vload((whole ? out + r * ldo : edge_out + r * NR) + v * VL);
    matmul_tile(src, lds, strip, depth, acc);
    for (int r = 0; r < MR; r++)
        for (int v = 0; v < NV; v++) vstore((whole ? out + r * ldo : edge_out + r * NR) + v * VL, acc[r][v]);
    if (!whole)
        for (size_t r = 0; r < rows; r++) memcpy(out + r * ldo, edge_out + r * NR, width * sizeof(float));
}

static void matmul(const float *a_nd, size_t lda, const float *b_dk, size_t ldb, float *out_nk, size_t ldo,
                   size_t n, size_t d, size_t k, float alpha, int accumulate)
{
    float strip[DEPTH * NR] __attribute__((aligned(64)));
    for (size_t j = 0; j < k; j += NR) {
        size_t width = k - j < NR ? k - j : NR;
        for (size_t p = 0; p < d; p += DEPTH) {
            size_t depth = d - p < DEPTH ? d - p : DEPTH;
            if (width < NR) memset(strip, 0, sizeof strip);
            for (size_t q = 0; q < depth; q++)
                for (size_t c = 0; c < width; c++) strip[q * NR + c] = alpha * b_dk[(p + q) * ldb + j + c];
            for (size_t i = 0; i < n; i += MR)
                matmul_rows(a_nd + i * lda + p, lda, strip, out_nk + i * ldo + j, ldo, n - i < MR ? n - i : MR,
                            depth, width, accumulate || p > 0);
        }
    }
}
