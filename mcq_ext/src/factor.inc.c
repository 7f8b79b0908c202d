/* Cholesky factorisation A = U^T U in double precision, and the solution of systems with it.
 *
 * Why not LAPACK: the rounding of a threaded BLAS depends on its threads, and codes are chosen from what is made of the
 * factor; its threads also spin, which on a busy machine costs a hundred times the work. Right-looking by blocks of
 * rows: a block is factored, then every row below subtracts the products with it, a stretch of columns held in
 * registers. Rows below are independent of each other, so they may be split over threads without a trace.
 */
#define STRETCH 64

/* row[i..n) -= sum over p in [first, last) of U[p, row] U[p, i..n), in ascending order of p. */
static void subtract_products(double *a, size_t n, size_t row, size_t first, size_t last)
{
    double *target = a + row * n;
    for (size_t c = row; c < n; c += STRETCH) {
        size_t width = n - c < STRETCH ? n - c : STRETCH;
        double sum[STRETCH];
        if (width == STRETCH) {
            memcpy(sum, target + c, sizeof sum);
            for (size_t p = first; p < last; p++) {
                const double *u = a + p * n + c;
                double s = a[p * n + row];
                for (size_t l = 0; l < STRETCH; l++) sum[l] -= s * u[l];
            }
            memcpy(target + c, sum, sizeof sum);
        } else
            for (size_t p = first; p < last; p++)
                for (size_t l = 0; l < width; l++) target[c + l] -= a[p * n + row] * a[p * n + c + l];
    }
}

/* Factors rows [first, last), from which the products with all rows before have been subtracted. Returns 0, or the
 * number of the first pivot that is not positive, plus one. */
static size_t cholesky_rows(double *a_nn, size_t n, size_t first, size_t last)
{
    for (size_t p = first; p < last; p++) {
        subtract_products(a_nn, n, p, first, p);
        double pivot = a_nn[p * n + p];
        if (!(pivot > 0.0)) return p + 1;
        double root = sqrt(pivot);
        a_nn[p * n + p] = root;
        for (size_t c = p + 1; c < n; c++) a_nn[p * n + c] /= root;
    }
    return 0;
}

/* Subtracts the products with rows [first, last) from rows [from, to). */
static void cholesky_update(double *a_nn, size_t n, size_t first, size_t last, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) subtract_products(a_nn, n, i, first, last);
}

/* b <- (U^T U)^-1 b for b of shape (n, k). */
static void cholesky_solve(const double *u_nn, double *b_nk, size_t n, size_t k)
{
    for (size_t p = 0; p < n; p++) {
        for (size_t c = 0; c < k; c++) b_nk[p * k + c] /= u_nn[p * n + p];
        for (size_t i = p + 1; i < n; i++)
            for (size_t c = 0; c < k; c++) b_nk[i * k + c] -= u_nn[p * n + i] * b_nk[p * k + c];
    }
    for (size_t p = n; p-- > 0;) {
        for (size_t i = p + 1; i < n; i++)
            for (size_t c = 0; c < k; c++) b_nk[p * k + c] -= u_nn[p * n + i] * b_nk[i * k + c];
        for (size_t c = 0; c < k; c++) b_nk[p * k + c] /= u_nn[p * n + p];
    }
}
