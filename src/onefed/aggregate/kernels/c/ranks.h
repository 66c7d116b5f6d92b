/* Order statistics: rows of a tile, one per client, sorted at each coordinate by a network.
 *
 * A comparator is a minimum and a maximum of two rows, so all coordinates of a tile are sorted at
 * once and nothing branches on data. Rows of the next tile are prefetched meanwhile.
 */

/* As many elements as the instruction set takes at once. Rows are aligned to it. */
typedef REAL NAME(wide) __attribute__((vector_size(WIDE_BYTES), may_alias));

/* Ask for elements start..start+count-1 of a column. A prefetch cannot fail. */
TARGET static inline void NAME(prefetch)(const REAL *column, size_t start, size_t count) {
    for (size_t i = 0; i < count; i += CACHE_LINE / sizeof(REAL))
        __builtin_prefetch(column + start + i, 0, 3);
}

/* The comparator of two rows. */
TARGET static inline void NAME(pair)(NAME(wide) *restrict a, NAME(wide) *restrict b,
                                     size_t count) {
    for (size_t i = 0; i < count; i++) {
        NAME(wide) x = a[i], y = b[i];
        a[i] = LOWER(x, y);
        b[i] = HIGHER(x, y);
    }
}

/* The comparator of two rows, which leaves the smaller (or, if larger is set, the larger) in moved;
 * then that of moved and third, which leaves the smaller in third if down is set. */
TARGET ALWAYS_INLINE void NAME(chain)(NAME(wide) *restrict kept, NAME(wide) *restrict moved,
                                      NAME(wide) *restrict third, size_t count, const int larger,
                                      const int down) {
    for (size_t i = 0; i < count; i++) {
        NAME(wide) x = kept[i], y = moved[i], z = third[i];
        NAME(wide) low = LOWER(x, y), high = HIGHER(x, y), m = larger ? high : low;
        kept[i] = larger ? low : high;
        moved[i] = down ? HIGHER(m, z) : LOWER(m, z);
        third[i] = down ? LOWER(m, z) : HIGHER(m, z);
    }
}

/* The comparators (a, b), (c, d), (a, c), and (b, d), or (d, b) if crossed is set. */
TARGET ALWAYS_INLINE void NAME(square)(NAME(wide) *restrict a, NAME(wide) *restrict b,
                                       NAME(wide) *restrict c, NAME(wide) *restrict d,
                                       size_t count, const int crossed) {
    for (size_t i = 0; i < count; i++) {
        NAME(wide) w = a[i], x = b[i], y = c[i], z = d[i];
        NAME(wide) low_ab = LOWER(w, x), high_ab = HIGHER(w, x);
        NAME(wide) low_cd = LOWER(y, z), high_cd = HIGHER(y, z);
        a[i] = LOWER(low_ab, low_cd);
        c[i] = HIGHER(low_ab, low_cd);
        b[i] = crossed ? HIGHER(high_ab, high_cd) : LOWER(high_ab, high_cd);
        d[i] = crossed ? LOWER(high_ab, high_cd) : HIGHER(high_ab, high_cd);
    }
}

/* Run one comparator, or as many of the next as share its rows in a way that is known here, on
 * values that are loaded and stored once. Returns their number; the results are those of one after
 * the other. */
TARGET static size_t NAME(compare)(REAL *rows, size_t width, const int32_t *pairs, size_t left) {
#define ROW(index) ((NAME(wide) *)(rows + (size_t)(index) * width))
    const size_t count = width * sizeof(REAL) / sizeof(NAME(wide));
    const int32_t a = pairs[0], b = pairs[1];
    const int32_t c = left > 1 ? pairs[2] : a, d = left > 1 ? pairs[3] : b;
    if (c != a && c != b && d != a && d != b) {
        if (left >= 4 && pairs[4] == a && pairs[5] == c) {
            if (pairs[6] == b && pairs[7] == d) {
                NAME(square)(ROW(a), ROW(b), ROW(c), ROW(d), count, 0);
                return 4;
            }
            if (pairs[6] == d && pairs[7] == b) {
                NAME(square)(ROW(a), ROW(b), ROW(c), ROW(d), count, 1);
                return 4;
            }
        }
    } else if (c != a || d != b) {
        if (c == a) NAME(chain)(ROW(b), ROW(a), ROW(d), count, 0, 0);
        if (d == a) NAME(chain)(ROW(b), ROW(a), ROW(c), count, 0, 1);
        if (c == b) NAME(chain)(ROW(a), ROW(b), ROW(d), count, 1, 0);
        if (d == b) NAME(chain)(ROW(a), ROW(b), ROW(c), count, 1, 1);
        return 2;
    }
    NAME(pair)(ROW(a), ROW(b), count);
    return 1;
#undef ROW
}

/* Load elements start..start+count-1 of all columns into rows of the given width, sort them by the
 * network, and have the next tile on its way. Elements count..width-1 are 0. */
TARGET static void NAME(sorted_rows)(const void *const *columns, size_t clients, size_t size,
                                     size_t start, size_t width, const int32_t *pairs,
                                     size_t pair_count, REAL *restrict rows) {
    size_t count = size - start < width ? size - start : width;
    for (size_t k = 0; k < clients; k++) {
        const REAL *restrict column = (const REAL *)columns[k] + start;
        REAL *restrict row = rows + k * width;
        for (size_t i = 0; i < count; i++) row[i] = column[i] + (REAL)0.0; /* -0.0 becomes 0.0 */
        for (size_t i = count; i < width; i++) row[i] = (REAL)0.0;
    }
    size_t next = start + count, left = size - next, asked = 0;
    size_t next_count = left < width ? left : width;
    for (size_t pair = 0; pair < pair_count;) {
        pair += NAME(compare)(rows, width, pairs + 2 * pair, pair_count - pair);
        for (; asked * pair_count < pair * clients; asked++)
            NAME(prefetch)(columns[asked], next, next_count);
    }
}

/* out[start..start+count-1] = mean of the given number of rows, added up one after the other */
TARGET static void NAME(mean_of_rows)(const REAL *restrict rows, size_t row_count, size_t width,
                                      size_t start, size_t count, double *restrict sums,
                                      void *out) {
    for (size_t i = 0; i < width; i++) sums[i] = 0.0;
    size_t k = 0;
    for (; k + 4 <= row_count; k += 4) {
        const REAL *a = rows + k * width, *b = a + width, *c = b + width, *d = c + width;
        for (size_t i = 0; i < width; i++)
            sums[i] = (((sums[i] + (double)a[i]) + (double)b[i]) + (double)c[i]) + (double)d[i];
    }
    for (; k < row_count; k++) {
        const REAL *a = rows + k * width;
        for (size_t i = 0; i < width; i++) sums[i] = sums[i] + (double)a[i];
    }
    double divisor = (double)row_count;
    REAL *restrict result = (REAL *)out + start;
    for (size_t i = 0; i < count; i++) result[i] = (REAL)(sums[i] / divisor);
}

TARGET static void NAME(sorted_mean)(const void *const *columns, size_t clients, size_t size,
                                     const int32_t *pairs, size_t pair_count, size_t low,
                                     size_t high, void *out, void *scratch) {
    size_t width = ranks_width(clients, sizeof(REAL));
    double *sums = scratch;
    REAL *rows = (REAL *)(sums + width);
    for (size_t start = 0; start < size; start += width) {
        size_t count = size - start < width ? size - start : width;
        NAME(sorted_rows)(columns, clients, size, start, width, pairs, pair_count, rows);
        NAME(mean_of_rows)(rows + low * width, high - low, width, start, count, sums, out);
    }
}

/* Move the rows of each coordinate down by starts[i], so that its window begins in row 0.
 *
 * By one power of two at a time, the largest first. Before the step of a power, what is left to
 * move is less than twice the power; after it less than the power. So the step has to fill the
 * rows 0 .. keep + power - 2, of which those beyond the last source are not needed. */
TARGET static void NAME(move_windows)(REAL *restrict rows, size_t clients, size_t width,
                                      size_t keep, const INDEX *restrict starts) {
    size_t power = 1;
    while (2 * power <= clients - keep) power *= 2;
    for (; power > 0; power /= 2) {
        for (size_t k = 0; k + 1 < keep + power && k + power < clients; k++) {
            REAL *restrict here = rows + k * width, *restrict there = here + power * width;
            for (size_t i = 0; i < width; i++) {
                REAL stay = here[i], move = there[i];
                here[i] = starts[i] & (INDEX)power ? move : stay;
            }
        }
    }
}

TARGET static void NAME(middle_mean)(const void *const *columns, size_t clients, size_t size,
                                     const int32_t *pairs, size_t pair_count, size_t keep,
                                     void *out, void *scratch) {
    size_t width = ranks_width(clients, sizeof(REAL));
    double *sums = scratch;
    INDEX *restrict starts = (INDEX *)(sums + width);
    REAL *rows = (REAL *)(sums + 2 * width);
    const REAL *a = rows + (clients - 1) / 2 * width, *b = rows + clients / 2 * width;
    for (size_t start = 0; start < size; start += width) {
        size_t count = size - start < width ? size - start : width;
        NAME(sorted_rows)(columns, clients, size, start, width, pairs, pair_count, rows);
        for (size_t i = 0; i < width; i++) {
            sums[i] = (double)a[i] + (double)b[i]; /* twice the median */
            starts[i] = 0;
        }
        for (size_t q = 0; q + keep < clients; q++) {
            const REAL *lost = rows + q * width, *gained = lost + keep * width;
            for (size_t i = 0; i < width; i++)
                starts[i] += sums[i] > (double)lost[i] + (double)gained[i];
        }
        if (keep < clients) NAME(move_windows)(rows, clients, width, keep, starts);
        NAME(mean_of_rows)(rows, keep, width, start, count, sums, out);
    }
}
