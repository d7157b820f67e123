#include "tests/bench/samples.h"

#include <stdlib.h>
#include <string.h>

void samples_add(struct samples *samples, double value) {
    if (samples->count < SAMPLE_COUNT_MAX) samples->values[samples->count++] = value;
}

double samples_least(const struct samples *samples) {
    double least = samples->count > 0 ? samples->values[0] : 0;
    for (uint32_t i = 1; i < samples->count; i++) {
        if (samples->values[i] < least) least = samples->values[i];
    }
    return least;
}

double samples_greatest(const struct samples *samples) {
    double greatest = samples->count > 0 ? samples->values[0] : 0;
    for (uint32_t i = 1; i < samples->count; i++) {
        if (samples->values[i] > greatest) greatest = samples->values[i];
    }
    return greatest;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double samples_median(const struct samples *samples) {
    if (samples->count == 0) return 0;
    double sorted[SAMPLE_COUNT_MAX];
    memcpy(sorted, samples->values, samples->count * sizeof(*sorted));
    qsort(sorted, samples->count, sizeof(*sorted), compare);
    uint32_t middle = samples->count / 2;
    return samples->count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
