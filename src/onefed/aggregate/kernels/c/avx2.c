/* x86-64 with AVX2 and FMA: chosen when the process starts, if the processor has both. */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define WIDE_BYTES 32
#define IN_REGISTER(v) __asm__("" : "+x"(v))

#define REAL float
#define INDEX int32_t
#define LOWER(x, y) _mm256_min_ps(x, y)
#define HIGHER(x, y) _mm256_max_ps(x, y)
#define MULTIPLY_ADD(a, b, sum) \
    ((vector)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(sum)))
#define NAME(x) avx2_float_##x
#include "instance.h"

#define REAL double
#define INDEX int64_t
#define LOWER(x, y) _mm256_min_pd(x, y)
#define HIGHER(x, y) _mm256_max_pd(x, y)
#define MULTIPLY_ADD(a, b, sum) ((sum) + (a) * (b))
#define NAME(x) avx2_double_##x
#include "instance.h"
#endif
