/* The compiled kernels: what each takes, and how much scratch memory it wants.
 *
 * The order of operations of every kernel is in docs/numerics.md; ../reference.py is its oracle.
 * One source makes all of them: means.h, ranks.h, gram.h and steps.h are written for an element type REAL
 * and an instruction set TARGET, and instance.h includes them for each pair. No variant may differ
 * from another in a single bit, so the build neither fuses nor reorders floating-point operations
 * (-ffp-contract=off, no -ffast-math).
 *
 * Callers guarantee what module.c checks: sizes, alignment, no overlap of inputs and outputs.
 */
#ifndef ONEFED_KERNELS_H
#define ONEFED_KERNELS_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#if FLT_EVAL_METHOD != 0
#error "float and double must be computed in their own precision; use the numpy reference instead"
#endif

/* For functions with arguments that are constants wherever they are called. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define CACHE_LINE 64u /* bytes; also the alignment of scratch memory */

/* Steps of the server optimizers, and their memories: m, r, or both. */
enum { STEP_MOMENTUM, STEP_ADAGRAD, STEP_ADAM, STEP_YOGI, STEP_KINDS };
typedef struct {
    double rate, beta_1, beta_2, tau;
} step_numbers;
static inline int step_has_m(size_t kind) { return kind != STEP_ADAGRAD; }
static inline int step_has_r(size_t kind) { return kind != STEP_MOMENTUM; }

typedef struct {
    /* out = sum of weights[k] * columns[k] over the clients, / divisor */
    void (*weighted_mean)(const void *const *columns, const double *weights, size_t clients,
                          size_t size, double divisor, void *out);
    /* total += weight * column */
    void (*fold)(double *total, const void *column, size_t size, double weight);
    /* out = total / divisor */
    void (*divide)(const double *total, size_t size, double divisor, void *out);
    /* out = mean of the ranks low..high-1 */
    void (*sorted_mean)(const void *const *columns, size_t clients, size_t size,
                        const int32_t *pairs, size_t pair_count, size_t low, size_t high,
                        void *out, void *scratch);
    /* out = mean of the keep values nearest to the median; the network sorts all ranks */
    void (*middle_mean)(const void *const *columns, size_t clients, size_t size,
                        const int32_t *pairs, size_t pair_count, size_t keep, void *out,
                        void *scratch);
    /* out[i * clients + j] = inner product of columns i and j less centre, for i <= j; the others
     * stay as they are. At most one superblock. */
    void (*gram)(const void *const *columns, const void *centre, size_t clients, size_t size,
                 double *out, void *scratch);
    /* model, the mean of the updates, becomes the next model; m and r advance, or are NULL.
     * Whether all that was stored is finite. */
    int (*advance)(int kind, const step_numbers *numbers, const void *old, void *model, void *m,
                   void *r, size_t size);
} kernels;

extern const kernels baseline_float_kernels, baseline_double_kernels;
#if defined(__x86_64__)
extern const kernels avx2_float_kernels, avx2_double_kernels;
#endif

/* Tiles of the order statistics: a row of this many elements for each client. All rows are in the
 * first-level cache while there are few clients. A multiple of 32, so that rows stay aligned. */
static inline size_t ranks_width(size_t clients, size_t item_bytes) {
    size_t width = 16384 / (clients * item_bytes) / 32 * 32;
    return width < 32 ? 32 : width > 512 ? 512 : width;
}

/* The rows, and for each coordinate a sum in float64 and the start of a window. */
static inline size_t ranks_scratch(size_t clients, size_t item_bytes) {
    return ranks_width(clients, item_bytes) * (clients * item_bytes + 2 * sizeof(double));
}

/* As in docs/numerics.md; and rows of a tile, a cache line more than a power of two apart, so that
 * they do not compete for the same sets of the cache. Rows go in groups of GRAM_ROWS. */
enum {
    GRAM_LANES = 4,
    GRAM_BLOCK = 128,
    GRAM_SUPERBLOCK = 65536,
    GRAM_STRIDE = GRAM_BLOCK + 8,
    GRAM_ROWS = 4
};

/* Rows of the tile: clients, and rows of zeros up to a whole number of row groups. */
static inline size_t gram_rows(size_t clients) {
    return (clients + GRAM_ROWS - 1) / GRAM_ROWS * GRAM_ROWS;
}

/* The tile of one block in float64, and the sums of all pairs. */
static inline size_t gram_scratch(size_t clients) {
    size_t rows = gram_rows(clients);
    return rows * (GRAM_STRIDE + rows) * sizeof(double);
}

#endif
