// measure: times work in turn with the limits it is held against. A shared machine is faster in one
// second than in the next, by half and more: a share is taken between neighbours in time.
#pragma once

#include <jansson.h>

#include "tests/bench/limits.h"
#include "tests/bench/samples.h"

// What one call needs, whatever computes it.
struct work {
    double bytes;      // that must be read from memory
    double operations; // an FMA is two
    enum limit unit;   // whose peak the roofline takes; not LIMIT_READ
};

struct measurement {
    struct work work;
    // Sample i of each belongs together: seconds of a call, and the limits right before and after.
    struct samples seconds;
    struct samples read; // empty without limits
    struct samples peak; // of work.unit
    struct samples f32;  // the f32 peak
    double noise;        // share of the processors' time that others had meanwhile
};

// Does the work once. `index` counts the calls of a measurement, so that each can take other data.
typedef void call_fn(void *ctx, uint64_t index);

// Measures for about `seconds`, at least MEASURE_SAMPLE_COUNT_MIN samples. Samples during which
// others used the processors or the limits changed are taken again, but not for longer than
// MEASURE_LONGER_MAX times as long. limits may be NULL.
enum { MEASURE_SAMPLE_COUNT_MIN = 3, MEASURE_LONGER_MAX = 3 };
void measure(struct limits *limits, double seconds, const struct work *work, call_fn *call,
             void *ctx, struct measurement *out);

// A result as the best and the median of the samples.
struct result {
    double best;
    double median;
};

struct result measurement_seconds(const struct measurement *m);
struct result measurement_bytes_rate(const struct measurement *m);
struct result measurement_operations_rate(const struct measurement *m);
// The roofline's time over the time taken: with the limits of memory and of work.unit, or of one of
// them alone, or of f32 whatever the unit. best: of the best limits and the best time; median: of
// the shares of each sample.
struct result measurement_share(const struct measurement *m);
struct result measurement_share_of_read(const struct measurement *m);
struct result measurement_share_of_peak(const struct measurement *m);
struct result measurement_share_of_f32(const struct measurement *m);

// {"best": x, "median": y}, both times `scale`.
json_t *result_json(struct result result, double scale);
// {"seconds":, "gb_per_s":, "gop_per_s":, "unit":, "share_of_read":, "share_of_peak":,
// "share_of_f32":, "share":, "noise":}
json_t *measurement_json(const struct measurement *m);
// Adds name: value to object, which takes the value. Aborts when there is no memory.
void json_add(json_t *object, const char *name, json_t *value);
