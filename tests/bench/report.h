// report: what the benchmarks that hold something against limits say of the machine.
#pragma once

#include <jansson.h>

#include "tests/bench/limits.h"

// Prints the limits, and gives them as JSON: {"read": {"best", "median"}, "f32":, "bf16":, "int8":
// (null where the processor lacks the unit), "ways_of_reading": [...]}; in GB/s and GOP/s. For
// those who read: shares are taken of limits measured beside the work.
json_t *report_limits(struct limits *limits);

// Ends the output with one line of JSON.
void report_json(const json_t *json);
