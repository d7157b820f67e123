#include "coordinator/loop.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/reply.h"

struct loop {
    struct loop_config config;
    struct cluster *cluster;
    struct kv_blocks *blocks;
    struct scheduler *scheduler;
    struct pipeline *pipeline;
    struct scheduler_pick *picks; // of the microbatch being made
    struct request_list requests; // all that the loop owns
    uint32_t request_count;       // of these, not ended
    bool is_draining;
    bool is_flowing;          // frames of linked_epoch may be sent
    uint64_t linked_epoch;    // the last one whose links were asked for
    uint64_t absent_since_ms; // meaningful while not flowing
    uint64_t prompt_token_count, completion_token_count;
    uint64_t request_done_count, request_failed_count;
    uint64_t replay_count, stale_frame_count;
};

// -- requests -------------------------------------------------------------------------------------

// Frees a request when nothing refers to it any more.
static void close_if_done(struct loop *loop, struct request *request) {
    if (!request->is_ended || !request->is_call_closed || request->sequence.in_flight_count > 0)
        return;
    TAILQ_REMOVE(&loop->requests, request, link);
    request_close(request);
}

// No more rows are computed for it. Does not free: a caller may still be in the middle of its step.
static void end_request(struct loop *loop, struct request *request) {
    if (request->is_ended) return;
    request->is_ended = true;
    loop->request_count--;
    scheduler_remove(loop->scheduler, &request->sequence);
}

static void fail_request(struct loop *loop, struct request *request, enum rpc_code code,
                         const char *reason) {
    if (request->is_ended) return;
    log_warn("request %s fails: %s: %s", request->id, rpc_code_name(code), reason);
    loop->request_failed_count++;
    rpc_call_end(request->call, code, reason);
    end_request(loop, request);
}

static void on_request(struct loop *loop, struct request *request) {
    TAILQ_INSERT_TAIL(&loop->requests, request, link);
    loop->request_count++;
    log_debug("request %s: %" PRIu32 " prompt tokens", request->id, request->sequence.prompt_count);
    if (loop->request_count > REQUEST_COUNT_MAX ||
        scheduler_add(loop->scheduler, &request->sequence) != STATUS_OK) {
        char reason[96];
        snprintf(reason, sizeof(reason), "%" PRIu32 " requests wait already",
                 scheduler_waiting_count(loop->scheduler));
        fail_request(loop, request, RPC_RESOURCE_EXHAUSTED, reason);
        return;
    }
    loop->prompt_token_count += request->sequence.prompt_count;
}

static void on_request_closed(struct loop *loop, struct request *request) {
    request->is_call_closed = true;
    if (!request->is_ended) {
        log_debug("request %s was cancelled after %" PRIu32 " tokens", request->id,
                  request->completion.token_count);
        loop->request_failed_count++;
        end_request(loop, request);
    }
    close_if_done(loop, request);
}

static void on_sample(void *ctx, const struct scheduler_pick *pick,
                      const struct frame_sample *sample, const struct frame_top *tops) {
    struct loop *loop = ctx;
    struct sequence *sequence = pick->sequence;
    if (sequence->run_id != pick->run_id) return; // ended, cancelled or replayed since
    struct request *request = request_of(sequence);
    if (sample->outcome != FRAME_SAMPLE_DRAWN) {
        fail_request(loop, request, RPC_INTERNAL, "the model's logits are not finite numbers");
        return;
    }
    uint64_t now_ns = clock_now_ns(&loop->config.clock);
    if (request->first_token_ns == 0) request->first_token_ns = now_ns;
    loop->completion_token_count++;
    enum status status = sequence_append(sequence, sample->token_id);
    if (status == STATUS_OK) status = completion_push(&request->completion, sample, tops);
    if (status != STATUS_OK) {
        fail_request(loop, request, RPC_RESOURCE_EXHAUSTED, "no memory for the completion");
        return;
    }
    reply_send(request, now_ns);
    if (request->completion.finish_reason == FINISH_NONE) return;
    loop->request_done_count++;
    log_debug("request %s is done: %" PRIu32 " tokens", request->id,
              request->completion.token_count);
    end_request(loop, request);
}

static void on_released(void *ctx, struct sequence *sequence) {
    close_if_done(ctx, request_of(sequence));
}

// Requests that have waited too long for a pipeline.
static void expire_requests(struct loop *loop) {
    if (loop->is_flowing) return;
    uint64_t now_ms = clock_now_ms(&loop->config.clock);
    struct request *request, *next;
    for (request = TAILQ_FIRST(&loop->requests); request != NULL; request = next) {
        next = TAILQ_NEXT(request, link);
        uint64_t since_ms = request->arrived_ns / 1000000;
        if (since_ms < loop->absent_since_ms) since_ms = loop->absent_since_ms;
        if (now_ms - since_ms >= loop->config.absent_ms)
            fail_request(loop, request, RPC_UNAVAILABLE, cluster_explanation(loop->cluster));
    }
}

// -- status ---------------------------------------------------------------------------------------

static void fill_counts(struct loop *loop, Stagecoach__V1__Pipeline *out) {
    out->version = (char *)STAGECOACH_VERSION;
    out->model_name = (char *)loop->config.model_name;
    out->request_running_count = scheduler_running_count(loop->scheduler);
    out->request_waiting_count = scheduler_waiting_count(loop->scheduler);
    out->kv_block_count = kv_blocks_total_count(loop->blocks);
    out->kv_block_used_count = out->kv_block_count - kv_blocks_free_count(loop->blocks);
    out->microbatch_in_flight_count = pipeline_in_flight_count(loop->pipeline);
    out->step_count = pipeline_step_count(loop->pipeline);
    out->prompt_token_count = loop->prompt_token_count;
    out->completion_token_count = loop->completion_token_count;
    out->request_done_count = loop->request_done_count;
    out->request_failed_count = loop->request_failed_count;
    out->replay_count = loop->replay_count + scheduler_preempted_count(loop->scheduler);
    out->stale_frame_count = loop->stale_frame_count;
}

static void on_pipeline_asked(struct loop *loop, struct rpc_call *call) {
    Stagecoach__V1__Pipeline out = STAGECOACH__V1__PIPELINE__INIT;
    if (cluster_describe(loop->cluster, &out) == STATUS_OK) {
        fill_counts(loop, &out);
        if (loop->is_draining) out.state = STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_DRAINING;
        if (rpc_call_send(call, &out.base)) rpc_call_end(call, RPC_OK, "");
    } else {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
    }
    for (size_t i = 0; i < out.n_stages; i++)
        free(out.stages[i]);
    free(out.stages);
    rpc_call_release(call);
}

// -- what came ------------------------------------------------------------------------------------

static void handle_event(struct loop *loop, const struct event *event) {
    switch ((enum event_kind)event->kind) {
    case EVENT_REQUEST:
        on_request(loop, event->subject);
        break;
    case EVENT_REQUEST_WRITABLE:
        reply_send(event->subject, clock_now_ns(&loop->config.clock));
        break;
    case EVENT_REQUEST_CLOSED:
        on_request_closed(loop, event->subject);
        break;
    case EVENT_PIPELINE_ASKED:
        on_pipeline_asked(loop, event->subject);
        break;
    case EVENT_STAGE_OPENED:
        if (!cluster_join(loop->cluster, event->subject)) log_warn("too many stages");
        break;
    case EVENT_STAGE_MESSAGE:
        cluster_message(loop->cluster, event->subject,
                        (const Stagecoach__V1__StageMessage *)event->message);
        break;
    case EVENT_STAGE_CLOSED: {
        struct member *member = event->subject;
        cluster_leave(loop->cluster, member);
        rpc_call_release(member->stream);
        free(member);
        break;
    }
    }
}

static void take_events(struct loop *loop) {
    struct event *event;
    while ((event = inbox_take(loop->config.inbox)) != NULL) {
        handle_event(loop, event);
        event_close(event);
    }
}

static void on_frame(struct loop *loop, struct frame *frame) {
    struct error error;
    enum status status = pipeline_receive(loop->pipeline, frame, &error);
    io_release(loop->config.io, frame);
    if (status == STATUS_UNAVAILABLE)
        loop->stale_frame_count++;
    else if (status != STATUS_OK)
        cluster_links_lost(loop->cluster, loop->linked_epoch, error.text);
}

static void take_frames(struct loop *loop) {
    struct io_event event;
    while (io_take(loop->config.io, &event)) {
        switch (event.kind) {
        case IO_UP:
            cluster_links_up(loop->cluster, event.epoch);
            break;
        case IO_RECEIVED:
            on_frame(loop, event.frame);
            break;
        case IO_SENT:
            pipeline_frame_sent(loop->pipeline, event.frame);
            break;
        case IO_LOST:
            cluster_links_lost(loop->cluster, event.epoch, event.error.text);
            break;
        }
    }
}

// -- what follows ---------------------------------------------------------------------------------

// Everything in flight is void; running requests start again from their tokens.
static void stop_flow(struct loop *loop) {
    loop->is_flowing = false;
    loop->absent_since_ms = clock_now_ms(&loop->config.clock);
    uint32_t count = scheduler_reset(loop->scheduler);
    loop->replay_count += count;
    if (count > 0) log_warn("%" PRIu32 " requests will be replayed", count);
    pipeline_reset(loop->pipeline, 0);
    struct request *request, *next;
    for (request = TAILQ_FIRST(&loop->requests); request != NULL; request = next) {
        next = TAILQ_NEXT(request, link);
        if (request->sequence.replay_count > REQUEST_REPLAY_COUNT_MAX)
            fail_request(loop, request, RPC_UNAVAILABLE,
                         "the pipeline was lost again and again while this request ran");
    }
}

static void make_links(struct loop *loop) {
    struct io_ring_position position = {
        .epoch = cluster_epoch(loop->cluster),
        .link_in_id = loop->config.cluster.plan.stage_count,
        .link_out_id = 0,
        .credit_count = loop->config.credit_count,
        .frame_bytes_max = loop->config.frame_bytes_max,
    };
    snprintf(position.out_address, sizeof(position.out_address), "%s",
             cluster_first_address(loop->cluster));
    if (!io_connect(loop->config.io, &position)) return; // tried again at the next tick
    loop->linked_epoch = position.epoch;
    pipeline_reset(loop->pipeline, position.epoch);
}

// Brings links and requests in line with the cluster's state.
static void follow_cluster(struct loop *loop) {
    cluster_tick(loop->cluster);
    enum cluster_state state = cluster_state(loop->cluster);
    uint64_t epoch = cluster_epoch(loop->cluster);
    if (loop->is_flowing && (state != CLUSTER_RUNNING || epoch != loop->linked_epoch))
        stop_flow(loop);
    if (state == CLUSTER_CONNECTING && epoch != loop->linked_epoch) make_links(loop);
    if (state == CLUSTER_RUNNING) loop->is_flowing = true;
}

static void send_microbatches(struct loop *loop) {
    while (loop->is_flowing && pipeline_has_room(loop->pipeline)) {
        uint32_t pick_count = scheduler_pick(loop->scheduler, loop->picks);
        if (pick_count == 0) return;
        uint64_t now_ns = clock_now_ns(&loop->config.clock);
        for (uint32_t i = 0; i < pick_count; i++) {
            struct request *request = request_of(loop->picks[i].sequence);
            if (request->issued_ns == 0) request->issued_ns = now_ns;
        }
        pipeline_send(loop->pipeline, loop->picks, pick_count);
    }
}

void loop_tick(struct loop *loop) {
    take_events(loop);
    take_frames(loop);
    follow_cluster(loop);
    send_microbatches(loop);
    expire_requests(loop);
}

// -- life -----------------------------------------------------------------------------------------

static void send_to_stage(void *ctx, struct member *member,
                          const Stagecoach__V1__CoordinatorMessage *message) {
    (void)ctx;
    if (!rpc_call_send(member->stream, &message->base)) rpc_call_cancel(member->stream);
}

static void drop_stage(void *ctx, struct member *member, bool is_refusal, const char *message) {
    (void)ctx;
    rpc_call_end(member->stream, is_refusal ? RPC_FAILED_PRECONDITION : RPC_UNAVAILABLE, message);
}

enum status loop_open(const struct loop_config *config, struct loop **loop_out) {
    struct loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL) return STATUS_NO_MEMORY;
    loop->config = *config;
    loop->absent_since_ms = clock_now_ms(&config->clock);
    TAILQ_INIT(&loop->requests);
    struct cluster_outside outside = {.send = send_to_stage, .drop = drop_stage, .ctx = loop};
    enum status status = cluster_open(&config->cluster, &outside, &loop->cluster);
    if (status != STATUS_OK) goto close_loop;
    status = kv_blocks_open(config->kv_block_count, &loop->blocks);
    if (status != STATUS_OK) goto close_loop;
    status = scheduler_open(&config->scheduler, loop->blocks, &loop->scheduler);
    if (status != STATUS_OK) goto close_loop;
    loop->picks = memory_array(config->scheduler.sequence_count_max, sizeof(*loop->picks));
    status = loop->picks == NULL ? STATUS_NO_MEMORY : STATUS_OK;
    if (status != STATUS_OK) goto close_loop;
    struct pipeline_config pipeline = {.io = config->io,
                                       .in_flight_max = config->scheduler.in_flight_max,
                                       .limits = config->limits};
    struct pipeline_handler handler = {.sample = on_sample, .released = on_released, .ctx = loop};
    status = pipeline_open(&pipeline, &handler, &loop->pipeline);
    if (status != STATUS_OK) goto close_loop;
    *loop_out = loop;
    return STATUS_OK;
close_loop:
    loop_close(loop);
    return status;
}

void loop_close(struct loop *loop) {
    if (loop == NULL) return;
    if (loop->pipeline != NULL) {
        take_events(loop);
        loop_end_requests(loop, "the coordinator stops");
        pipeline_reset(loop->pipeline, 0);
        CHECK(TAILQ_EMPTY(&loop->requests));
    }
    pipeline_close(loop->pipeline);
    free(loop->picks);
    scheduler_close(loop->scheduler);
    kv_blocks_close(loop->blocks);
    cluster_close(loop->cluster);
    free(loop);
}

uint32_t loop_request_count(const struct loop *loop) {
    return loop->request_count;
}

void loop_end_requests(struct loop *loop, const char *reason) {
    struct request *request, *next;
    for (request = TAILQ_FIRST(&loop->requests); request != NULL; request = next) {
        next = TAILQ_NEXT(request, link);
        fail_request(loop, request, RPC_UNAVAILABLE, reason);
    }
}

void loop_set_draining(struct loop *loop) {
    loop->is_draining = true;
}
