// metrics_text: the meters of a pipeline as Prometheus text (exposition format 0.0.4,
// https://prometheus.io/docs/instrumenting/exposition_formats).
#pragma once

#include "base/memory.h"
#include "stagecoach/v1/admin.pb-c.h"

// Appends every metric of `pipeline` to `out`. STATUS_NO_MEMORY, STATUS_EXHAUSTED: the limit of
// `out`; what it holds is then useless.
MUST_USE enum status metrics_text_write(const Stagecoach__V1__Pipeline *pipeline,
                                        struct buffer *out);
