// samples: repeated measurements of one thing. The machine is shared: the best is what it can do,
// the median what it did.
#pragma once

#include <stdint.h>

enum { SAMPLE_COUNT_MAX = 256 }; // more are dropped

struct samples {
    double values[SAMPLE_COUNT_MAX];
    uint32_t count;
};

void samples_add(struct samples *samples, double value);
// Of no samples: 0.
double samples_least(const struct samples *samples);
double samples_greatest(const struct samples *samples);
double samples_median(const struct samples *samples);
