// limits_peak: loops of nothing but multiply-adds in registers, on the calling thread.
#pragma once

#include <stdint.h>

#include "tests/bench/limits.h"

struct peak {
    void (*run)(uint64_t round_count);
    double round_operations; // of one round; an FMA is two
};

// The loop with the highest peak that this processor has; run is NULL when it has none.
struct peak peak_find(enum limit limit);
