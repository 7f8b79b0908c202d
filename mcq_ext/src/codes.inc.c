/* Everything that reads or writes codes without choosing them.
 *
 * decode sums entries in order of the codebooks. scatter_add accumulates in double, because an entry may collect 1e6
 * rows, and takes a range of entries: threads split the entries and each reads all rows, so sums have one order
 * whatever the thread count. Bit strings are little-endian in both bytes and bits.
 */
static void decode(const uint16_t *codes_nGM, const float *codebooks_MKg, const float *scale, ptrdiff_t scale_row,
                   ptrdiff_t scale_group, float *out_nd, size_t n, size_t G, size_t M, size_t K, size_t g)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < G; j++) {
            float *out = out_nd + (i * G + j) * g;
            const uint16_t *codes = codes_nGM + (i * G + j) * M;
            float s = scale[(ptrdiff_t)i * scale_row + (ptrdiff_t)j * scale_group];
            memcpy(out, codebooks_MKg + codes[0] * g, g * sizeof *out);
            for (size_t m = 1; m < M; m++) {
                const float *e = codebooks_MKg + (m * K + codes[m]) * g;
                for (size_t c = 0; c < g; c++) out[c] += e[c];
            }
            for (size_t c = 0; c < g; c++) out[c] *= s;
        }
}

static void scatter_add(const uint16_t *codes_nGM, const float *values_nd, const float *scale, ptrdiff_t scale_row,
                        ptrdiff_t scale_group, double *sums_MKg, size_t n, size_t G, size_t M, size_t K, size_t g,
                        size_t first, size_t last)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < G; j++) {
            const float *v = values_nd + (i * G + j) * g;
            const uint16_t *codes = codes_nGM + (i * G + j) * M;
            float s = scale[(ptrdiff_t)i * scale_row + (ptrdiff_t)j * scale_group];
            for (size_t m = 0; m < M; m++) {
                if (codes[m] < first || codes[m] >= last) continue;
                double *sum = sums_MKg + (m * K + codes[m]) * g;
                for (size_t c = 0; c < g; c++) sum[c] += (double)s * v[c];
            }
        }
}

static void pack_bits(const uint16_t *words_nW, uint8_t *packed, size_t n, size_t W, unsigned bits)
{
    size_t bytes = (W * bits + 7) / 8;
    for (size_t i = 0; i < n; i++) {
        uint64_t pending = 0;
        unsigned held = 0;
        uint8_t *out = packed + i * bytes;
        for (size_t w = 0; w < W; w++) {
            pending |= (uint64_t)words_nW[i * W + w] << held;
            for (held += bits; held >= 8; held -= 8, pending >>= 8) *out++ = (uint8_t)pending;
        }
        if (held) *out = (uint8_t)pending;
    }
}

static void unpack_bits(const uint8_t *packed, uint16_t *words_nW, size_t n, size_t W, unsigned bits)
{
    size_t bytes = (W * bits + 7) / 8;
    for (size_t i = 0; i < n; i++) {
        uint64_t pending = 0;
        unsigned held = 0;
        const uint8_t *in = packed + i * bytes;
        for (size_t w = 0; w < W; w++) {
            for (; held < bits; held += 8) pending |= (uint64_t)*in++ << held;
            words_nW[i * W + w] = (uint16_t)(pending & ((1u << bits) - 1));
            pending >>= bits;
            held -= bits;
        }
    }
}

/* The same for words of up to 64 bits, which pass in halves so that what is pending fits in one register. */
static void pack_words(const uint64_t *words_nW, uint8_t *packed, size_t n, size_t W, unsigned bits)
{
    size_t bytes = (W * bits + 7) / 8;
    for (size_t i = 0; i < n; i++) {
        uint64_t pending = 0;
        unsigned held = 0;
        uint8_t *out = packed + i * bytes;
        for (size_t w = 0; w < W; w++)
            for (unsigned done = 0; done < bits; done += 32) {
                pending |= (words_nW[i * W + w] >> done & 0xffffffff) << held;
                for (held += bits - done < 32 ? bits - done : 32; held >= 8; held -= 8, pending >>= 8)
                    *out++ = (uint8_t)pending;
            }
        if (held) *out = (uint8_t)pending;
    }
}

static void unpack_words(const uint8_t *packed, uint64_t *words_nW, size_t n, size_t W, unsigned bits)
{
    size_t bytes = (W * bits + 7) / 8;
    for (size_t i = 0; i < n; i++) {
        uint64_t pending = 0;
        unsigned held = 0;
        const uint8_t *in = packed + i * bytes;
        for (size_t w = 0; w < W; w++) {
            uint64_t word = 0;
            for (unsigned done = 0; done < bits; done += 32) {
                unsigned part = bits - done < 32 ? bits - done : 32;
                for (; held < part; held += 8) pending |= (uint64_t)*in++ << held;
                word |= (pending & (((uint64_t)1 << part) - 1)) << done;
                pending >>= part;
                held -= part;
            }
            words_nW[i * W + w] = word;
        }
    }
}
