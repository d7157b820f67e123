// pipeline: the microbatches in flight. Sends frames to stage 0, matches the results that come from
// the last stage with the rows that were sent, in order.
#pragma once

#include "base/clock.h"
#include "coordinator/scheduler.h"
#include "transport/io.h"

struct pipeline;

struct pipeline_config {
    struct clock clock;
    uint32_t stage_count;
    uint32_t in_flight_max;     // microbatches; at most the credits of the links
    struct frame_limits limits; // of RESULT frames; the epoch is set by pipeline_reset
};

// A drawn token. `pick` is as the scheduler made it; its run may have ended since.
typedef void pipeline_sample_fn(void *ctx, const struct scheduler_pick *pick,
                                const struct frame_sample *sample, const struct frame_top *tops);

// The steps of a microbatch no longer point at the sequence.
typedef void pipeline_released_fn(void *ctx, struct sequence *sequence);

// Takes a frame for stage 0, which pipeline_frame_sent() gives back. False: no room, which does not
// happen, for in_flight_max is at most the credits.
typedef bool pipeline_send_fn(void *ctx, struct frame *frame);

struct pipeline_outside {
    pipeline_send_fn *send;
    pipeline_sample_fn *sample;
    pipeline_released_fn *released; // once a pick, after its sample
    void *ctx;
};

MUST_USE enum status pipeline_open(const struct pipeline_config *config,
                                   const struct pipeline_outside *outside,
                                   struct pipeline **pipeline_out);
void pipeline_close(struct pipeline *pipeline); // NULL allowed

// Whether another microbatch may be sent.
bool pipeline_has_room(const struct pipeline *pipeline);
uint32_t pipeline_in_flight_count(const struct pipeline *pipeline);

// The next microbatch, pick_count >= 1. Call only when pipeline_has_room().
void pipeline_send(struct pipeline *pipeline, const struct scheduler_pick *picks,
                   uint32_t pick_count);

// What a finished step tells of the stages.
struct pipeline_measured {
    struct step_cost cost;
    // How long its frame took from one stage to the next; 0: not known, for frames wait for one
    // another when more than one is in flight.
    uint64_t hop_ns;
};

// A frame came from the last stage: hands out its samples. The frame stays the caller's.
// STATUS_UNAVAILABLE: of another epoch, dropped. STATUS_INVALID: the frame is wrong or out of
// order; the pipeline cannot go on in this epoch.
MUST_USE enum status pipeline_receive(struct pipeline *pipeline, struct frame *frame,
                                      struct pipeline_measured *measured_out, struct error *error);
// IO_SENT: the frame is free again.
void pipeline_frame_sent(struct pipeline *pipeline, struct frame *frame);

// Forgets everything in flight and begins to count steps for `epoch`.
void pipeline_reset(struct pipeline *pipeline, uint64_t epoch);

uint64_t pipeline_step_count(const struct pipeline *pipeline); // finished, in all epochs
