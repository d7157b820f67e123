// measure: times work in turn with the limits it is held against. A shared machine is faster in one
// second than in the next, by half and more: a share is taken between neighbours in time.
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "tests/bench/limits.h"
#include "tests/bench/samples.h"

// What a call needs, whatever computes it.
struct work {
    double bytes;          // that must be read from memory
    double operations;     // of the unit that is meant for them; an FMA is two
    double f32_operations; // more of them, in f32 whatever the unit
};

// Does the work once. `index` counts the calls of a measurement, so that each can take other data.
typedef void call_fn(void *ctx, uint64_t index);

enum {
    MEASURE_SAMPLE_COUNT_MIN = 3,
    MEASURE_LONGER_MAX = 3,
    MEASURE_PIECE_COUNT_MAX = 64,
};

struct measure_plan {
    struct limits *limits; // NULL: times only
    enum limit unit;       // of work.operations
    // A sample is one call for each piece, with the limits measured before, between and after.
    const struct work *pieces;
    uint32_t piece_count; // call `index` is piece index % piece_count
    // One short piece: a sample is as many calls as take some 30 ms, after one to warm up.
    bool is_short;
    // Measures for about so long, and at least MEASURE_SAMPLE_COUNT_MIN samples, or one when more
    // would take MEASURE_LONGER_MAX times as long. Until then, samples during which others used the
    // processors, or the limits changed, are taken again.
    double seconds;
    call_fn *call;
    void *ctx;
};

// Seconds of a sample: taken, and at least needed with the limits of that moment. Sample i of each
// belongs together.
struct measurement {
    struct work work; // of all pieces
    enum limit unit;
    bool has_limits;
    struct samples taken;
    struct samples read;      // reading the bytes
    struct samples unit_peak; // the operations at the unit's peak, f32_operations at that of f32
    struct samples f32_peak;  // all operations at the f32 peak
    struct samples roofline;  // the longer of read and unit_peak, piece by piece
    double noise;             // share of the processors' time that others had meanwhile
};

void measure(const struct measure_plan *plan, struct measurement *out);

// A result as the best and the median of the samples.
struct result {
    double best;
    double median;
};

struct result measurement_seconds(const struct measurement *m);
// Bytes/s and operations/s, all operations counted.
struct result measurement_bytes_rate(const struct measurement *m);
struct result measurement_operations_rate(const struct measurement *m);
// What is needed over what was taken, of one of the kinds in struct measurement.
// best: of the least of both; median: of the shares of each sample.
struct result measurement_share(const struct measurement *m, const struct samples *needed);

// {"best": x, "median": y}, both times `scale`.
json_t *result_json(struct result result, double scale);
// {"seconds":, "noise":, "gb_per_s":, "gop_per_s":, "unit":, "share_of_read":, "share_of_unit":,
// "share_of_f32":, "share_of_roofline":}; without limits only the first two.
json_t *measurement_json(const struct measurement *m);
// The columns of a table that all measurements with limits have, and their heading.
void measurement_print(const struct measurement *m);
extern const char measurement_heading[];

// Adds name: value to object, which takes the value. Aborts when there is no memory.
void json_add(json_t *object, const char *name, json_t *value);
