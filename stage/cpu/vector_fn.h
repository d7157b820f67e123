// vector_fn: how the functions on vectors are declared, so that they leave no trace but their
// instructions. Included by vector.h and the instruction sets.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
// The vector functions of a set; not every source uses all of them.
#define VECTOR_FN static ALWAYS_INLINE __attribute__((unused))
