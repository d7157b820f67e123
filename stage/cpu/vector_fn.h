// vector_fn: how the functions on vectors are declared, so that they leave no trace but their
// instructions. Included by vector.h and the instruction sets.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
// The vector functions of a set; not every source uses all of them.
#define VECTOR_FN static ALWAYS_INLINE __attribute__((unused))

// Before a loop of at most 32 turns, whose number is known, over arrays that are to be registers.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
