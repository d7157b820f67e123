#include "coordinator/pipeline.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"
#include "coordinator/microbatch.h"
#include "proto/frame_pool.h"

// A microbatch in flight.
struct step {
    uint64_t number;
    struct scheduler_pick *picks;
    uint32_t pick_count;
    uint32_t row_count;
    uint64_t attended_count;
    uint64_t sent_ns;
    bool is_alone; // none was in flight when it was sent, nor since
};

struct pipeline {
    struct pipeline_config config;
    struct pipeline_outside outside;
    struct step *steps; // a queue, oldest at step_first, in_flight_max of them
    uint32_t step_first;
    uint32_t step_count;
    uint64_t step_next; // number of the next one
    uint64_t finished_count;
    struct frame_pool *frames;
};

enum status pipeline_open(const struct pipeline_config *config,
                          const struct pipeline_outside *outside, struct pipeline **pipeline_out) {
    struct pipeline *pipeline = calloc(1, sizeof(*pipeline));
    if (pipeline == NULL) return STATUS_NO_MEMORY;
    pipeline->config = *config;
    pipeline->outside = *outside;
    pipeline->steps = memory_array(config->in_flight_max, sizeof(*pipeline->steps));
    if (pipeline->steps == NULL) goto no_memory;
    for (uint32_t i = 0; i < config->in_flight_max; i++) {
        pipeline->steps[i].picks =
            memory_array(config->limits.sequence_count_max, sizeof(struct scheduler_pick));
        if (pipeline->steps[i].picks == NULL) goto no_memory;
    }
    // Twice as many as can be in flight: frames of a former epoch may be on their way back from io.
    enum status status = frame_pool_open(config->in_flight_max * 2,
                                         frame_capacity_bytes(&config->limits), &pipeline->frames);
    if (status != STATUS_OK) goto no_memory;
    *pipeline_out = pipeline;
    return STATUS_OK;
no_memory:
    pipeline_close(pipeline);
    return STATUS_NO_MEMORY;
}

void pipeline_close(struct pipeline *pipeline) {
    if (pipeline == NULL) return;
    for (uint32_t i = 0; pipeline->steps != NULL && i < pipeline->config.in_flight_max; i++)
        free(pipeline->steps[i].picks);
    free(pipeline->steps);
    frame_pool_close(pipeline->frames);
    free(pipeline);
}

bool pipeline_has_room(const struct pipeline *pipeline) {
    return pipeline->step_count < pipeline->config.in_flight_max &&
           frame_pool_free_count(pipeline->frames) > 0;
}

uint32_t pipeline_in_flight_count(const struct pipeline *pipeline) {
    return pipeline->step_count;
}

uint64_t pipeline_step_count(const struct pipeline *pipeline) {
    return pipeline->finished_count;
}

static void count_rows(struct step *step) {
    step->row_count = 0;
    step->attended_count = 0;
    for (uint32_t i = 0; i < step->pick_count; i++) {
        uint64_t first = step->picks[i].position_first, count = step->picks[i].row_count;
        step->row_count += (uint32_t)count;
        step->attended_count += count * (first + 1) + count * (count - 1) / 2;
    }
}

// The next row of a sequence may be sent before the token is known that this step draws.
static void note_samples(const struct step *step) {
    uint32_t sample_count = 0;
    for (uint32_t i = 0; i < step->pick_count; i++) {
        if (!step->picks[i].is_sample) continue;
        step->picks[i].sequence->sampled_step = step->number;
        step->picks[i].sequence->sampled_index = sample_count++;
    }
}

void pipeline_send(struct pipeline *pipeline, const struct scheduler_pick *picks,
                   uint32_t pick_count) {
    CHECK(pipeline_has_room(pipeline));
    uint32_t at = (pipeline->step_first + pipeline->step_count) % pipeline->config.in_flight_max;
    struct step *step = &pipeline->steps[at];
    step->number = pipeline->step_next++;
    step->pick_count = pick_count;
    memcpy(step->picks, picks, pick_count * sizeof(*picks));
    count_rows(step);
    step->sent_ns = clock_now_ns(&pipeline->config.clock);
    step->is_alone = pipeline->step_count == 0;
    pipeline->steps[pipeline->step_first].is_alone = step->is_alone; // nor is the oldest any more
    for (uint32_t i = 0; i < pick_count; i++)
        picks[i].sequence->in_flight_count++;
    pipeline->step_count++;
    struct frame *frame = frame_pool_take(pipeline->frames);
    enum status status =
        microbatch_write(frame, pipeline->config.limits.epoch, step->number, picks, pick_count);
    CHECK(status == STATUS_OK); // the frame has the capacity of the largest microbatch
    note_samples(step);
    // The link holds as many frames as credits can exist, and in_flight_max is not more.
    bool is_taken = pipeline->outside.send(pipeline->outside.ctx, frame);
    CHECK(is_taken);
}

void pipeline_frame_sent(struct pipeline *pipeline, struct frame *frame) {
    frame_pool_give(pipeline->frames, frame);
}

static void release_oldest(struct pipeline *pipeline) {
    struct step *step = &pipeline->steps[pipeline->step_first];
    pipeline->step_first = (pipeline->step_first + 1) % pipeline->config.in_flight_max;
    pipeline->step_count--;
    for (uint32_t i = 0; i < step->pick_count; i++) {
        struct sequence *sequence = step->picks[i].sequence;
        CHECK(sequence->in_flight_count > 0);
        sequence->in_flight_count--;
        pipeline->outside.released(pipeline->outside.ctx, sequence);
    }
}

static enum status check_samples(const struct step *step, const struct frame_view *view,
                                 struct error *error) {
    uint32_t sample_count = 0;
    for (uint32_t i = 0; i < step->pick_count; i++) {
        const struct scheduler_pick *pick = &step->picks[i];
        if (!pick->is_sample) continue;
        if (sample_count == view->header->sample_count ||
            view->samples[sample_count].sequence_id != pick->run_id)
            return error_set(error, STATUS_INVALID,
                             "result of step %" PRIu64 ": no sample for sequence %" PRIu64,
                             step->number, pick->run_id);
        sample_count++;
    }
    if (sample_count != view->header->sample_count)
        return error_set(error, STATUS_INVALID,
                         "result of step %" PRIu64 " has %" PRIu32 " samples, %" PRIu32
                         " were asked for",
                         step->number, view->header->sample_count, sample_count);
    return STATUS_OK;
}

// Stages tell times of their own clocks: durations, which are compared with nothing but durations.
static struct pipeline_measured measure(const struct pipeline *pipeline, const struct step *step,
                                        const struct frame_header *result) {
    struct pipeline_measured measured = {.cost = {.row_count = step->row_count,
                                                  .attended_count = step->attended_count,
                                                  .slowest_ns = result->slowest_ns,
                                                  .sum_ns = result->compute_ns}};
    uint64_t took_ns = clock_now_ns(&pipeline->config.clock) - step->sent_ns;
    if (step->is_alone && took_ns > result->compute_ns)
        measured.hop_ns = (took_ns - result->compute_ns) / (pipeline->config.stage_count + 1);
    return measured;
}

enum status pipeline_receive(struct pipeline *pipeline, struct frame *frame,
                             struct pipeline_measured *measured_out, struct error *error) {
    struct frame_view view;
    enum status status = frame_parse(frame, &pipeline->config.limits, &view, error);
    if (status != STATUS_OK) return status;
    struct step *step = &pipeline->steps[pipeline->step_first];
    if (pipeline->step_count == 0 || view.header->step != step->number)
        return error_set(error, STATUS_INVALID,
                         "result is of step %" PRIu64 ", step %" PRIu64 " is next",
                         view.header->step, pipeline->step_count == 0 ? 0 : step->number);
    status = check_samples(step, &view, error);
    if (status != STATUS_OK) return status;
    *measured_out = measure(pipeline, step, view.header);
    const struct frame_sample *sample = view.samples;
    for (uint32_t i = 0; i < step->pick_count; i++) {
        if (!step->picks[i].is_sample) continue;
        pipeline->outside.sample(pipeline->outside.ctx, &step->picks[i], sample,
                                 &view.tops[sample->top_first]);
        sample++;
    }
    pipeline->finished_count++;
    release_oldest(pipeline);
    return STATUS_OK;
}

void pipeline_reset(struct pipeline *pipeline, uint64_t epoch) {
    while (pipeline->step_count > 0)
        release_oldest(pipeline);
    pipeline->config.limits.epoch = epoch;
    pipeline->step_next = 1;
}
