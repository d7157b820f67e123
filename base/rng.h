// rng: counter-based random numbers. The same (key, counter) gives the same number anywhere, so a
// replayed sequence draws what it drew before.
#pragma once

#include <stdint.h>

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Four independent 32-bit words from a 128-bit counter and a 64-bit key.
void rng_philox(uint64_t key, const uint32_t counter[4], uint32_t out[4]);

// A number in [0, 1) with 53 bits, for the draw at `position` of the sequence seeded with `seed`.
double rng_uniform(uint64_t seed, uint64_t position);
