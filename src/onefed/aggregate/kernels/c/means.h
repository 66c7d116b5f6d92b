/* Weighted means. Sums are in float64, clients one after the other; see kernels.h. */

/* A tile of sums fits into half of the first-level cache. Four clients a pass read and write a sum
 * once instead of four times. */
enum { NAME(MEAN_TILE) = 2048 };

TARGET static void NAME(weighted_mean)(const void *const *columns, const double *weights,
                                       size_t clients, size_t size, double divisor, void *out) {
    double sums[NAME(MEAN_TILE)];
    REAL *restrict result = out;
    for (size_t start = 0; start < size; start += NAME(MEAN_TILE)) {
        size_t count = size - start < NAME(MEAN_TILE) ? size - start : NAME(MEAN_TILE);
        for (size_t i = 0; i < count; i++) sums[i] = 0.0;
        size_t k = 0;
        for (; k + 4 <= clients; k += 4) {
            const REAL *restrict a = (const REAL *)columns[k] + start;
            const REAL *restrict b = (const REAL *)columns[k + 1] + start;
            const REAL *restrict c = (const REAL *)columns[k + 2] + start;
            const REAL *restrict d = (const REAL *)columns[k + 3] + start;
            double wa = weights[k], wb = weights[k + 1], wc = weights[k + 2], wd = weights[k + 3];
            for (size_t i = 0; i < count; i++)
                sums[i] = (((sums[i] + wa * a[i]) + wb * b[i]) + wc * c[i]) + wd * d[i];
        }
        for (; k < clients; k++) {
            const REAL *restrict a = (const REAL *)columns[k] + start;
            double wa = weights[k];
            for (size_t i = 0; i < count; i++) sums[i] = sums[i] + wa * a[i];
        }
        for (size_t i = 0; i < count; i++) result[start + i] = (REAL)(sums[i] / divisor);
    }
}

TARGET static void NAME(fold)(double *restrict total, const void *column, size_t size,
                              double weight) {
    const REAL *restrict values = column;
    for (size_t i = 0; i < size; i++) total[i] = total[i] + weight * values[i];
}

TARGET static void NAME(divide)(const double *restrict total, size_t size, double divisor,
                                void *out) {
    REAL *restrict result = out;
    for (size_t i = 0; i < size; i++) result[i] = (REAL)(total[i] / divisor);
}
