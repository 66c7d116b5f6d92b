/* What every processor of the architecture can: SSE2 on x86-64, NEON on aarch64. */
#include "kernels.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#define LOWER_FLOAT(x, y) _mm_min_ps(x, y)
#define HIGHER_FLOAT(x, y) _mm_max_ps(x, y)
#define LOWER_DOUBLE(x, y) _mm_min_pd(x, y)
#define HIGHER_DOUBLE(x, y) _mm_max_pd(x, y)
#else
/* mask is a vector of integers: all bits set where its comparison holds, none where not. */
#define CHOSEN(mask, x, y) (((mask) & (__typeof__(mask))(x)) | (~(mask) & (__typeof__(mask))(y)))
#define LOWER_FLOAT(x, y) (__typeof__(x)) CHOSEN((x) < (y), x, y)
#define HIGHER_FLOAT(x, y) (__typeof__(x)) CHOSEN((x) < (y), y, x)
#define LOWER_DOUBLE(x, y) LOWER_FLOAT(x, y)
#define HIGHER_DOUBLE(x, y) HIGHER_FLOAT(x, y)
#endif

#define TARGET
#define WIDE_BYTES 16
#define IN_REGISTER(v) (void)0

#define REAL float
#define INDEX int32_t
#define LOWER(x, y) LOWER_FLOAT(x, y)
#define HIGHER(x, y) HIGHER_FLOAT(x, y)
#define MULTIPLY_ADD(a, b, sum) ((sum) + (a) * (b))
#define NAME(x) baseline_float_##x
#include "instance.h"

#define REAL double
#define INDEX int64_t
#define LOWER(x, y) LOWER_DOUBLE(x, y)
#define HIGHER(x, y) HIGHER_DOUBLE(x, y)
#define MULTIPLY_ADD(a, b, sum) ((sum) + (a) * (b))
#define NAME(x) baseline_double_##x
#include "instance.h"
