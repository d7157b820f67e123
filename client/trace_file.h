// trace_file: microbatches as a timeline in the Chrome trace format (JSON array of events, which
// Perfetto and chrome://tracing open):
// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
//
// One track a stage, with one slice for each microbatch, and the stage's idle time before it by
// cause. One more track a link, with the time that frames were on their way (async events, for
// frames may overtake the computation of others). Arrows join the slices of a microbatch.
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "stagecoach/v1/admin.pb-c.h"

struct trace_file {
    FILE *file;
    uint64_t begin_ns; // becomes time 0
    bool has_events;
    uint64_t step_count, wire_count; // written so far
};

// Writes names of the model and the stages.
void trace_file_begin(struct trace_file *trace, FILE *file, uint64_t begin_ns,
                      const Stagecoach__V1__Pipeline *pipeline);
void trace_file_step(struct trace_file *trace, const Stagecoach__V1__Step *step);
// False when something could not be written; errno says why. The file stays the caller's.
bool trace_file_end(struct trace_file *trace);
