/* All kernels for one element type and one instruction set, which the file that includes this says:
 *
 * TARGET          attribute that lets the compiler use the instruction set, or nothing
 * WIDE_BYTES      bytes that it takes at once
 * IN_REGISTER(v)  have the vector v in a register here, or nothing: a hint
 * REAL            float or double
 * INDEX           a signed integer of the size of REAL
 * NAME(x)         the name of x in this instance
 * LOWER(x, y), HIGHER(x, y)   minimum and maximum of two vectors of REAL, element by element; no
 *                 element is NaN or -0.0, so all definitions of them agree
 * MULTIPLY_ADD(a, b, sum)     sum + a * b of vectors of double, each operation rounded; it may be
 *                 fused where a and b are widened floats, since the product of such is exact
 */
#include "means.h"
#include "ranks.h"
#include "gram.h"
#include "steps.h"

const kernels NAME(kernels) = {
    NAME(weighted_mean), NAME(fold),        NAME(divide),
    NAME(sorted_mean),   NAME(middle_mean), NAME(gram), NAME(advance),
};

#undef REAL
#undef INDEX
#undef NAME
#undef LOWER
#undef HIGHER
#undef MULTIPLY_ADD
