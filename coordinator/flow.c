#include "coordinator/flow.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"

struct flow {
    struct flow_config config;
    struct flow_outside outside;
    struct cluster *cluster;
    struct kv_blocks *blocks;
    struct scheduler *scheduler;
    struct pipeline *pipeline;
    struct timeline *timeline;    // of config.cluster; NULL: nothing is recorded
    struct scheduler_pick *picks; // of the microbatch being made
    bool is_running;              // frames of linked_epoch may be sent
    uint64_t linked_epoch;        // the last one whose links were asked for
    uint64_t absent_since_ms;     // meaningful while not running
    uint64_t replay_count, stale_frame_count;
};

// -- sequences ------------------------------------------------------------------------------------

enum status flow_add(struct flow *flow, struct sequence *sequence) {
    return scheduler_add(flow->scheduler, sequence);
}

void flow_remove(struct flow *flow, struct sequence *sequence) {
    scheduler_remove(flow->scheduler, sequence);
}

void flow_stop(struct flow *flow) {
    pipeline_reset(flow->pipeline, 0);
}

// -- what happened --------------------------------------------------------------------------------

struct cluster *flow_cluster(struct flow *flow) {
    return flow->cluster;
}

void flow_links_up(struct flow *flow, uint64_t epoch) {
    cluster_links_up(flow->cluster, epoch);
}

void flow_links_lost(struct flow *flow, uint64_t epoch, const char *reason) {
    cluster_links_lost(flow->cluster, epoch, reason);
}

void flow_receive(struct flow *flow, struct frame *frame) {
    struct error error;
    struct pipeline_measured measured;
    enum status status = pipeline_receive(flow->pipeline, frame, &measured, &error);
    if (status == STATUS_UNAVAILABLE) {
        flow->stale_frame_count++;
        return;
    }
    if (status != STATUS_OK) {
        cluster_links_lost(flow->cluster, flow->linked_epoch, error.text);
        return;
    }
    if (flow->timeline != NULL) timeline_result(flow->timeline, clock_now_ns(&flow->config.clock));
    scheduler_observe(flow->scheduler, &measured.cost);
    if (measured.hop_ns > 0) scheduler_observe_hop(flow->scheduler, measured.hop_ns);
}

void flow_frame_sent(struct flow *flow, struct frame *frame) {
    pipeline_frame_sent(flow->pipeline, frame);
}

// -- what follows ---------------------------------------------------------------------------------

// Forgets what is in flight, and counts steps anew; `epoch` 0: none will be sent.
static void begin_steps(struct flow *flow, uint64_t epoch) {
    pipeline_reset(flow->pipeline, epoch);
    if (flow->timeline != NULL) timeline_begin_epoch(flow->timeline, epoch);
}

// Everything in flight is void; running sequences start again from their tokens.
static void lose(struct flow *flow) {
    flow->is_running = false;
    flow->absent_since_ms = clock_now_ms(&flow->config.clock);
    uint32_t count = scheduler_reset(flow->scheduler);
    flow->replay_count += count;
    if (count > 0) log_warn("%" PRIu32 " sequences will be replayed", count);
    begin_steps(flow, 0);
    flow->outside.lost(flow->outside.ctx);
}

static void make_links(struct flow *flow) {
    uint32_t last_link_id = flow->config.cluster.plan.stage_count;
    struct io_ring_position position = {
        .epoch = cluster_epoch(flow->cluster),
        .encrypts = cluster_encrypts(flow->cluster),
        .in_count = 1,
        .ins = {{.link_id = last_link_id}},
        .out_count = 1,
        .outs = {{.link_id = 0}},
        .credit_count = flow->config.credit_count,
        .frame_bytes_max = flow->config.frame_bytes_max,
    };
    snprintf(position.outs[0].address, sizeof(position.outs[0].address), "%s",
             cluster_first_address(flow->cluster));
    memcpy(position.ins[0].key, cluster_link_key(flow->cluster, last_link_id), LINK_KEY_BYTES);
    memcpy(position.outs[0].key, cluster_link_key(flow->cluster, 0), LINK_KEY_BYTES);
    bool is_taken = flow->outside.connect(flow->outside.ctx, &position);
    memory_wipe(&position, sizeof(position));
    if (!is_taken) return; // again at the next tick
    flow->linked_epoch = cluster_epoch(flow->cluster);
    begin_steps(flow, flow->linked_epoch);
}

// Brings links and sequences in line with the cluster's state.
static void follow_cluster(struct flow *flow) {
    cluster_tick(flow->cluster);
    enum cluster_state state = cluster_state(flow->cluster);
    uint64_t epoch = cluster_epoch(flow->cluster);
    if (flow->is_running && (state != CLUSTER_RUNNING || epoch != flow->linked_epoch)) lose(flow);
    if (state == CLUSTER_CONNECTING && epoch != flow->linked_epoch) make_links(flow);
    if (state == CLUSTER_RUNNING) flow->is_running = true;
}

// What the timeline is told of a microbatch; before pipeline_send changes the sequences.
static struct timeline_send describe_picks(const struct flow *flow, uint32_t pick_count) {
    struct timeline_send send = {.sequence_count = pick_count};
    for (uint32_t i = 0; i < pick_count; i++) {
        const struct scheduler_pick *pick = &flow->picks[i];
        send.row_count += pick->row_count;
        if (pick->is_ahead && pick->sequence->sampled_step > send.token_step)
            send.token_step = pick->sequence->sampled_step;
    }
    return send;
}

static void send_microbatch(struct flow *flow, uint32_t pick_count) {
    struct timeline_send send = describe_picks(flow, pick_count);
    send.sent_ns = clock_now_ns(&flow->config.clock); // the stage may have it before this returns
    pipeline_send(flow->pipeline, flow->picks, pick_count);
    if (flow->timeline != NULL) timeline_sent(flow->timeline, &send);
}

static void send_microbatches(struct flow *flow) {
    while (flow->is_running && pipeline_has_room(flow->pipeline)) {
        uint32_t pick_count = scheduler_pick(flow->scheduler, flow->picks);
        if (pick_count == 0) return;
        for (uint32_t i = 0; i < pick_count; i++)
            flow->outside.issued(flow->outside.ctx, flow->picks[i].sequence);
        send_microbatch(flow, pick_count);
    }
}

// Whether there is nothing to compute.
static bool is_quiet(const struct flow *flow) {
    return scheduler_running_count(flow->scheduler) == 0 &&
           scheduler_waiting_count(flow->scheduler) == 0;
}

void flow_tick(struct flow *flow) {
    cluster_set_sequence_count(flow->cluster, scheduler_running_count(flow->scheduler) +
                                                  scheduler_waiting_count(flow->scheduler));
    follow_cluster(flow);
    if (flow->timeline != NULL)
        timeline_set_quiet(flow->timeline, is_quiet(flow), clock_now_ns(&flow->config.clock));
    send_microbatches(flow);
}

// -- what is so -----------------------------------------------------------------------------------

bool flow_is_running(const struct flow *flow, uint64_t *absent_since_ms_out) {
    *absent_since_ms_out = flow->absent_since_ms;
    return flow->is_running;
}

uint32_t flow_waiting_count(const struct flow *flow) {
    return scheduler_waiting_count(flow->scheduler);
}

uint32_t flow_running_count(const struct flow *flow) {
    return scheduler_running_count(flow->scheduler);
}

uint32_t flow_in_flight_count(const struct flow *flow) {
    return pipeline_in_flight_count(flow->pipeline);
}

uint64_t flow_progress_count(const struct flow *flow) {
    return pipeline_step_count(flow->pipeline) + cluster_progress_count(flow->cluster);
}

const struct kv_blocks *flow_blocks(const struct flow *flow) {
    return flow->blocks;
}

enum status flow_describe(struct flow *flow, Stagecoach__V1__Pipeline *pipeline) {
    pipeline->request_running_count = scheduler_running_count(flow->scheduler);
    pipeline->request_waiting_count = scheduler_waiting_count(flow->scheduler);
    pipeline->kv_block_count = kv_blocks_total_count(flow->blocks);
    pipeline->kv_block_used_count = pipeline->kv_block_count - kv_blocks_free_count(flow->blocks);
    pipeline->kv_block_cached_count = kv_blocks_cached_count(flow->blocks);
    pipeline->microbatch_in_flight_count = pipeline_in_flight_count(flow->pipeline);
    pipeline->step_count = pipeline_step_count(flow->pipeline);
    pipeline->replay_count = flow->replay_count + scheduler_preempted_count(flow->scheduler);
    pipeline->stale_frame_count = flow->stale_frame_count;
    return cluster_describe(flow->cluster, pipeline);
}

// -- life -----------------------------------------------------------------------------------------

static enum status open_parts(struct flow *flow) {
    const struct flow_config *config = &flow->config;
    const struct flow_outside *outside = &flow->outside;
    enum status status = cluster_open(&config->cluster, &outside->cluster, &flow->cluster);
    if (status == STATUS_OK)
        status = config->has_prefix_cache ? kv_blocks_open_cached(config->kv_block_count,
                                                                  config->cache_seed, &flow->blocks)
                                          : kv_blocks_open(config->kv_block_count, &flow->blocks);
    if (status == STATUS_OK)
        status = scheduler_open(&config->scheduler, flow->blocks, &flow->scheduler);
    if (status != STATUS_OK) return status;
    flow->picks = memory_array(config->scheduler.sequence_count_max, sizeof(*flow->picks));
    if (flow->picks == NULL) return STATUS_NO_MEMORY;
    struct pipeline_config pipeline = {.clock = config->clock,
                                       .stage_count = config->cluster.plan.stage_count,
                                       .in_flight_max = config->scheduler.in_flight_max,
                                       .limits = config->limits};
    struct pipeline_outside pipeline_outside = {.send = outside->send,
                                                .sample = outside->sample,
                                                .released = outside->released,
                                                .ctx = outside->ctx};
    return pipeline_open(&pipeline, &pipeline_outside, &flow->pipeline);
}

enum status flow_open(const struct flow_config *config, const struct flow_outside *outside,
                      struct flow **flow_out) {
    struct flow *flow = calloc(1, sizeof(*flow));
    if (flow == NULL) return STATUS_NO_MEMORY;
    flow->config = *config;
    flow->outside = *outside;
    flow->timeline = config->cluster.timeline;
    flow->absent_since_ms = clock_now_ms(&config->clock);
    enum status status = open_parts(flow);
    if (status != STATUS_OK)
        flow_close(flow);
    else
        *flow_out = flow;
    return status;
}

void flow_close(struct flow *flow) {
    if (flow == NULL) return;
    pipeline_close(flow->pipeline);
    free(flow->picks);
    scheduler_close(flow->scheduler);
    kv_blocks_close(flow->blocks);
    cluster_close(flow->cluster);
    free(flow);
}
