#include "tests/bench/report.h"

#include <stdio.h>

#include "base/check.h"
#include "tests/bench/measure.h"

static json_t *patterns_json(const struct limits *limits) {
    json_t *patterns = json_array();
    CHECK(patterns != NULL);
    for (uint32_t i = 0; i < limits_pattern_count(); i++) {
        char name[80];
        double rate = limits_pattern(limits, i, name, sizeof(name));
        json_t *pattern = json_object();
        json_add(pattern, "way", json_string(name));
        json_add(pattern, "gb_per_s", json_real(rate * 1e-9));
        CHECK(json_array_append_new(patterns, pattern) == 0);
    }
    return patterns;
}

json_t *report_limits(struct limits *limits) {
    enum { TRY_COUNT = 5 };
    json_t *json = json_object();
    CHECK(json != NULL);
    printf("limits:");
    for (enum limit limit = 0; limit < LIMIT_COUNT; limit++) {
        struct samples samples = {.count = 0};
        for (uint32_t i = 0; i < TRY_COUNT && limits_has(limit); i++)
            samples_add(&samples, limits_measure(limits, limit));
        struct result result = {samples_greatest(&samples), samples_median(&samples)};
        const char *unit = limit == LIMIT_READ ? "GB/s" : limit == LIMIT_INT8 ? "GOP/s" : "GFLOP/s";
        if (samples.count > 0) printf("  %s %.1f %s", limits_name(limit), result.best * 1e-9, unit);
        json_add(json, limits_name(limit),
                 samples.count > 0 ? result_json(result, 1e-9) : json_null());
    }
    printf("\n");
    json_add(json, "ways_of_reading", patterns_json(limits));
    return json;
}

void report_json(const json_t *json) {
    CHECK(json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6)) == 0);
    printf("\n");
}
