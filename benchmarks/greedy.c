/* Pulses put down one by one where the cosine gains most, after a first share in proportion to |x|: the greedy search
 * that audio codecs use, in plain C and one vector at a time, for comparison. */
#include <math.h>
#include <stddef.h>

void greedy_search(const float *x_nN, short *y_nN, size_t n, size_t N, int pulses)
{
    for (size_t row = 0; row < n; row++) {
        const float *x = x_nN + row * N;
        short *y = y_nN + row * N;
        float sum = 0, product = 0, square = 0;
        int left = pulses;
        for (size_t i = 0; i < N; i++) sum += fabsf(x[i]);
        float share = 2 * pulses > (int)N && sum > 1e-15f ? (pulses + 0.8f) / sum : 0;
        for (size_t i = 0; i < N; i++) {
            int count = (int)(share * fabsf(x[i]));
            y[i] = (short)count;
            left -= count;
            product += fabsf(x[i]) * count;
            square += (float)count * count;
        }
        for (; left > 0; left--) {
            size_t best = 0;
            float numerator = -1, denominator = 1;
            for (size_t i = 0; i < N; i++) {
                float p = product + fabsf(x[i]), s = square + 2 * y[i] + 1;
                if (p * p * denominator > numerator * s) {
                    numerator = p * p;
                    denominator = s;
                    best = i;
                }
            }
            product += fabsf(x[best]);
            square += 2 * y[best] + 1;
            y[best]++;
        }
        for (size_t i = 0; i < N; i++)
            if (x[i] < 0) y[i] = (short)-y[i];
    }
}
