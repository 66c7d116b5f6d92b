/* Gram matrix of centred columns: lanes, blocks and superblocks as in docs/numerics.md.
 *
 * A block's differences are widened to float64 once, into a tile with a row for each client. Then
 * all pairs of rows are multiplied out of the cache, in panels of 4 x 3 pairs whose 12 vectors of
 * lanes stay in registers. Which panel a pair is in does not show in its sum.
 */
#ifndef ONEFED_VECTOR
#define ONEFED_VECTOR
/* The four lanes of a pair. Narrower machines hold it in several registers. */
typedef double vector __attribute__((vector_size(GRAM_LANES * sizeof(double)), may_alias));
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED __builtin_shufflevector
#else
typedef int64_t vector_index __attribute__((vector_size(GRAM_LANES * sizeof(int64_t))));
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (vector_index){__VA_ARGS__})
#endif
#define TREE_PAIR(a, b) (SHUFFLED(a, b, 0, 4, 2, 6) + SHUFFLED(a, b, 1, 5, 3, 7))
#endif

/* Four rows a against `across` rows b: sums[j][i] += inner product of rows i of a and j of b. With
 * triangle set, b is a, and only the pairs i <= j are of interest. All loops over rows have
 * constant bounds and are unrolled, so that lanes and right are registers: 12 for the lanes of a
 * 4 x 3 panel, 3 for its right rows and one for the left row of the moment. */
TARGET ALWAYS_INLINE void NAME(panel)(const double *restrict a, const double *restrict b,
                                      const int across, const int triangle,
                                      double *restrict sums, size_t sums_stride) {
    vector lanes[4][4] = {{{0}}};
    for (size_t s = 0; s < GRAM_BLOCK; s += GRAM_LANES) {
        vector right[4];
#pragma GCC unroll 4
        for (int j = 0; j < across; j++) right[j] = *(const vector *)(b + j * GRAM_STRIDE + s);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vector left = triangle ? right[i] : *(const vector *)(a + i * GRAM_STRIDE + s);
            if (!triangle) IN_REGISTER(left);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                if (j < across && (!triangle || i <= j))
                    lanes[j][i] = MULTIPLY_ADD(left, right[j], lanes[j][i]);
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < across; j++) {
        /* Two trees at a time: pair 0 and 1, lanes 0 + 1 and 2 + 3, and so on. */
        vector front = TREE_PAIR(lanes[j][0], lanes[j][1]);
        vector back = TREE_PAIR(lanes[j][2], lanes[j][3]);
        *(vector *)(sums + j * sums_stride) +=
            SHUFFLED(front, back, 0, 1, 4, 5) + SHUFFLED(front, back, 2, 3, 6, 7);
    }
}

/* The differences of a block, widened; coordinates after the last and rows of no client are 0. */
TARGET static void NAME(centred)(const void *const *columns, const void *centre, size_t clients,
                                 size_t start, size_t count, double *restrict tile) {
    const REAL *restrict origin = (const REAL *)centre + start;
    for (size_t k = 0; k < clients; k++) {
        const REAL *restrict column = (const REAL *)columns[k] + start;
        double *restrict row = tile + k * GRAM_STRIDE;
        for (size_t i = 0; i < count; i++) row[i] = (double)(column[i] - origin[i]);
        for (size_t i = count; i < GRAM_BLOCK; i++) row[i] = 0.0;
    }
}

TARGET static void NAME(gram)(const void *const *columns, const void *centre, size_t clients,
                              size_t size, double *out, void *scratch) {
    size_t rows = gram_rows(clients);
    double *tile = scratch, *sums = tile + rows * GRAM_STRIDE;
    /* Rows of no client, and the sums behind the tile. */
    for (size_t i = clients * GRAM_STRIDE; i < rows * (GRAM_STRIDE + rows); i++) tile[i] = 0.0;
    for (size_t start = 0; start < size; start += GRAM_BLOCK) {
        size_t count = size - start < GRAM_BLOCK ? size - start : GRAM_BLOCK;
        NAME(centred)(columns, centre, clients, start, count, tile);
        /* One row of the block after the next is asked for with each panel. */
        size_t ahead = start + 2 * GRAM_BLOCK, asked = 0;
        size_t wanted = ahead + GRAM_BLOCK <= size ? GRAM_BLOCK : ahead < size ? size - ahead : 0;
        for (size_t i = 0; i < rows; i += GRAM_ROWS) {
            const double *a = tile + i * GRAM_STRIDE;
            NAME(panel)(a, a, 4, 1, sums + i * rows + i, rows);
            if (asked < clients) NAME(prefetch)(columns[asked++], ahead, wanted);
            /* The rows after a group are a multiple of four: threes, and at the end twos. */
            for (size_t j = i + GRAM_ROWS, across; j < rows; j += across) {
                across = rows - j == 2 || rows - j == 4 ? 2 : 3;
                const double *b = tile + j * GRAM_STRIDE;
                if (across == 3)
                    NAME(panel)(a, b, 3, 0, sums + j * rows + i, rows);
                else
                    NAME(panel)(a, b, 2, 0, sums + j * rows + i, rows);
                if (asked < clients) NAME(prefetch)(columns[asked++], ahead, wanted);
            }
        }
        while (asked < clients) NAME(prefetch)(columns[asked++], ahead, wanted);
    }
    for (size_t i = 0; i < clients; i++)
        for (size_t j = i; j < clients; j++) out[i * clients + j] = sums[j * rows + i];
}
