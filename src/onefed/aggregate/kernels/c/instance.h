/* All kernels for one element type and one instruction set.
 *
 * REAL     float or double
 * INDEX    an integer of the size of REAL
 * MULTIPLY_ADD(a, b, sum)   sum + a * b of vectors, each operation rounded; it may be fused where
 *          a and b are widened floats, since the product of such is exact
 * TARGET   attribute that lets the compiler use the instruction set, or nothing
 * NAME(x)  the name of x in this instance
 */
#include "means.h"
#include "ranks.h"
#include "gram.h"

const kernels NAME(kernels) = {
    NAME(weighted_mean), NAME(fold),        NAME(divide),
    NAME(sorted_mean),   NAME(middle_mean), NAME(gram),
};

#undef REAL
#undef INDEX
#undef LOWER
#undef HIGHER
#undef MULTIPLY_ADD
#undef NAME
