// simulation: the coordinator's own scheduler, block accounting, pipeline and recovery, driven by a
// virtual clock, with stages, links, clients and faults that are made up from a seed.
// Deterministic: the same settings give the same story, event for event.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

enum simulation_fault {
    SIMULATION_DELAY = 1,    // frames and messages take longer, each in its own way
    SIMULATION_LOSS = 2,     // a link loses what is on it and breaks
    SIMULATION_STALL = 4,    // a link, a stage or the coordinator stands still and goes on later
    SIMULATION_CRASH = 8,    // a stage dies, with its memory, and starts again later
    SIMULATION_CONTROL = 16, // a control stream breaks or is held up
    SIMULATION_DAMAGE = 32,  // a frame is cut short, comes twice, or comes after its epoch
    SIMULATION_LOAD = 64,    // a stage cannot load its layers
    SIMULATION_CANCEL = 128, // a client goes away
    SIMULATION_FAULT_ALL = 255,
};

// What can be set as a number, or is drawn from the seed.
enum simulation_number {
    SIMULATION_STAGES,
    SIMULATION_SPARES,
    SIMULATION_LAYERS, // of the model
    SIMULATION_REQUESTS,
    SIMULATION_PROMPT,    // tokens of each prompt; drawn: up to a limit, some share their beginning
    SIMULATION_TOKENS,    // made for each request; drawn: some end earlier by a token
    SIMULATION_SPREAD_US, // requests arrive within this time
    SIMULATION_KV_TOKENS,
    SIMULATION_RUNNING,      // sequences computed at once
    SIMULATION_CHUNK,        // prompt rows of a microbatch; 0: chosen by cost
    SIMULATION_ROWS,         // of a microbatch
    SIMULATION_MICROBATCHES, // in flight
    SIMULATION_STAGE_NS,     // cost of a microbatch on a stage: this,
    SIMULATION_ROW_NS,       // so much a row,
    SIMULATION_ATTENDED_PS,  // and so much a position that a row attends to
    SIMULATION_HOP_NS,       // from one stage to the next
    SIMULATION_NUMBER_COUNT,
};
#define SIMULATION_DRAWN UINT64_MAX

struct simulation_settings {
    uint64_t seed;
    uint32_t faults; // bits of enum simulation_fault
    uint64_t numbers[SIMULATION_NUMBER_COUNT];
    bool is_naive;             // one microbatch of everything at a time
    bool feedback_coordinator; // no rows ahead of their token
    bool no_prefix_cache;
    // Values that cost the same at every position, and checks only now and then: for long runs.
    bool is_long;
    // Called around the coordinator's own code, to measure it. NULL: not.
    void (*enter)(void *ctx);
    void (*leave)(void *ctx);
    void *ctx;
};

struct simulation_report {
    // Empty when every rule held; else what was broken, and when.
    char failure[512];
    uint64_t end_ns; // virtual time when the last request ended
    uint64_t event_count, step_count, row_count;
    uint32_t done_count, cancelled_count, refused_count, failed_count; // requests
    uint64_t prompt_token_count, token_count, cached_token_count;
    uint64_t wasted_row_count; // computed for sequences that had ended
    uint32_t fault_count, epoch_count;
    uint64_t replay_count, stale_frame_count; // replays of preempted sequences too
    uint64_t first_sent_ns;                   // when the first microbatch was sent
    uint64_t first_token_ns;                  // when the last request had its first token
    // From then until the first request ended: steady decode.
    uint64_t steady_ns, steady_step_count, steady_token_count;
    uint64_t busy_ns[PIPELINE_STAGE_COUNT_MAX];        // of each stage, from start to end
    uint64_t steady_busy_ns[PIPELINE_STAGE_COUNT_MAX]; // within the steady part
};

// Numbers all SIMULATION_DRAWN, no faults.
struct simulation_settings simulation_settings_of(uint64_t seed);
// Replaces every number that is to be drawn.
void simulation_settings_draw(struct simulation_settings *settings);

// The option of a number, such as "hop-ns", its limits and one sentence.
struct simulation_option {
    const char *name;
    uint64_t minimum, maximum;
    const char *help;
};
const struct simulation_option *simulation_option(enum simulation_number number);
// "all", "none" or names such as "crash,delay". STATUS_INVALID names the word.
MUST_USE enum status simulation_faults_parse(const char *text, uint32_t *faults_out,
                                             struct error *error);
// The command line that repeats a run with these settings.
void simulation_command(const struct simulation_settings *settings, char *out,
                        size_t capacity_bytes);

// If the process is aborted from now on, by a CHECK or a time limit (SIGALRM), the command that
// repeats `settings` is printed before it ends.
void simulation_announce(const struct simulation_settings *settings);

// Runs until every request has ended, or a rule is broken. STATUS_NO_MEMORY, or STATUS_INVALID: the
// numbers do not fit together.
MUST_USE enum status simulation_run(const struct simulation_settings *settings,
                                    struct simulation_report *report, struct error *error);
