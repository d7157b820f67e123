// flow: from sequences to tokens. Owns who computes (cluster), where KV lies (kv_blocks), which
// rows go next (scheduler) and what is in flight (pipeline), and starts it all again when a stage
// is lost. No threads, no I/O, no clients: what happened is told, what follows goes out by
// functions.
#pragma once

#include "coordinator/cluster.h"
#include "coordinator/pipeline.h"

struct flow;

struct flow_config {
    struct clock clock;
    struct cluster_config cluster;
    struct scheduler_config scheduler;
    struct frame_limits limits; // of RESULT frames
    uint32_t kv_block_count;
    bool has_prefix_cache;
    uint64_t cache_seed;    // as kv_blocks_open_cached's hash_seed
    uint32_t credit_count;  // of each link
    size_t frame_bytes_max; // of each link
};

struct flow_outside {
    struct cluster_outside cluster;
    // Makes the links of an epoch; flow_links_up or flow_links_lost follows. False: try again
    // later.
    bool (*connect)(void *ctx, const struct io_ring_position *position);
    // As pipeline_send_fn: a frame for stage 0; flow_frame_sent gives it back.
    pipeline_send_fn *send;
    // The first and every further microbatch with rows of the sequence goes out.
    void (*issued)(void *ctx, struct sequence *sequence);
    pipeline_sample_fn *sample;
    pipeline_released_fn *released;
    // The pipeline was lost; running sequences wait again, and their replay_count has risen.
    void (*lost)(void *ctx);
    void *ctx; // of all but `cluster`, which has its own
};

MUST_USE enum status flow_open(const struct flow_config *config, const struct flow_outside *outside,
                               struct flow **flow_out);
// Every sequence was removed before. NULL allowed.
void flow_close(struct flow *flow);

// -- sequences ------------------------------------------------------------------------------------

// Borrowed until flow_remove and in_flight_count is 0. STATUS_EXHAUSTED: too many wait already.
MUST_USE enum status flow_add(struct flow *flow, struct sequence *sequence);
// No more rows are computed for it.
void flow_remove(struct flow *flow, struct sequence *sequence);
// Forgets everything in flight, so that all sequences are released: before flow_close.
void flow_stop(struct flow *flow);

// -- what happened --------------------------------------------------------------------------------

// Members join, speak and leave through the cluster.
struct cluster *flow_cluster(struct flow *flow);
void flow_links_up(struct flow *flow, uint64_t epoch);
void flow_links_lost(struct flow *flow, uint64_t epoch, const char *reason);
// A frame came from the last stage; it stays the caller's.
void flow_receive(struct flow *flow, struct frame *frame);
void flow_frame_sent(struct flow *flow, struct frame *frame);
// Acts on all of it and on the time that has passed: follows the cluster, sends microbatches. Call
// after each of the above and every 100 ms.
void flow_tick(struct flow *flow);

// -- what is so -----------------------------------------------------------------------------------

// Microbatches are sent; if not, since when (clock_now_ms).
bool flow_is_running(const struct flow *flow, uint64_t *absent_since_ms_out);
uint32_t flow_waiting_count(const struct flow *flow);
uint32_t flow_running_count(const struct flow *flow);
// What is in flight, and a count that moves when any of it gets on.
uint32_t flow_in_flight_count(const struct flow *flow);
uint64_t flow_progress_count(const struct flow *flow);
const struct kv_blocks *flow_blocks(const struct flow *flow);
// Fills state, stages and counts of `pipeline`; see cluster_describe.
MUST_USE enum status flow_describe(struct flow *flow, Stagecoach__V1__Pipeline *pipeline);
