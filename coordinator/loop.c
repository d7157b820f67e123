#include "coordinator/loop.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "coordinator/loop_internal.h"
#include "coordinator/reply.h"
#include "coordinator/vllm_query.h"
#include "transport/link_crypto.h"

enum { CHECK_MS = 100 };

// -- requests -------------------------------------------------------------------------------------

// Frees a request when nothing refers to it any more.
static void close_if_done(struct loop *loop, struct request *request) {
    if (!request->is_ended || !request->is_call_closed) return;
    for (uint32_t i = 0; i < request->answer_count; i++)
        if (request->answers[i].sequence.in_flight_count > 0) return;
    TAILQ_REMOVE(&loop->requests, request, link);
    request_close(request);
}

// No more rows are computed for it. Does not free: a caller may still be in the middle of its step.
static void end_answer(struct loop *loop, struct answer *answer) {
    struct request *request = answer->request;
    if (answer->is_ended) return;
    answer->is_ended = true;
    flow_remove(loop->flow, &answer->sequence);
    if (--request->running_count > 0) return;
    request->is_ended = true;
    request->sent_ns = clock_now_ns(&loop->config.clock);
    loop->request_count--;
}

static void end_request(struct loop *loop, struct request *request) {
    for (uint32_t i = 0; i < request->answer_count; i++)
        end_answer(loop, &request->answers[i]);
}

static void fail_request(struct loop *loop, struct request *request, enum rpc_code code,
                         const char *reason) {
    if (request->is_ended) return;
    log_warn("request %s fails: %s: %s", request->id, rpc_code_name(code), reason);
    loop->request_failed_count++;
    rpc_call_end(request->call, code, reason);
    end_request(loop, request);
}

// 0 while one more request may wait, else how long one that is refused should stay away: until half
// of those that wait have started, so that there is room and still something to do.
static uint32_t retry_ms(const struct loop *loop) {
    uint32_t waiting_count = flow_waiting_count(loop->flow);
    if (waiting_count < loop->config.waiting_count_max && loop->request_count < REQUEST_COUNT_MAX)
        return 0;
    return throughput_wait_ms(&loop->throughput, clock_now_ms(&loop->config.clock),
                              waiting_count / 2);
}

static void refuse_request(struct loop *loop, struct request *request, uint32_t wait_ms) {
    log_debug("request %s is refused", request->id);
    loop->refused_count++;
    loop->request_failed_count++;
    reply_refuse(request->call, wait_ms);
    end_request(loop, request);
}

// The client is gone or its deadline has passed: the pipeline does not hear of it.
static bool is_too_late(struct loop *loop, struct request *request) {
    if (!rpc_call_is_over(request->call) && !rpc_call_is_late(request->call)) return false;
    rpc_call_end(request->call, RPC_DEADLINE_EXCEEDED, "the deadline passed");
    loop->request_failed_count++;
    end_request(loop, request);
    return true;
}

// Its finish reason is known.
static void finish_answer(struct loop *loop, struct answer *answer, uint64_t now_ns) {
    struct request *request = answer->request;
    log_debug("answer %" PRIu32 " of request %s is done: %" PRIu32 " tokens", answer->index,
              request->id, answer->completion.token_count);
    throughput_count(&loop->throughput, now_ns / 1000000);
    end_answer(loop, answer);
    if (!request->is_ended) return;
    loop->request_done_count++;
    meters_observe(loop->meters, METER_REQUEST, now_ns - request->arrived_ns);
}

// Of a call that goes on, answers of which only the finish reason is missing.
static void finish_known(struct loop *loop, struct request *request) {
    uint64_t now_ns = clock_now_ns(&loop->config.clock);
    for (uint32_t i = 0; i < request->answer_count; i++) {
        struct answer *answer = &request->answers[i];
        if (answer->is_ended || answer->completion.finish_reason == FINISH_NONE) continue;
        reply_send(answer, now_ns);
        finish_answer(loop, answer, now_ns);
    }
}

static void on_request(struct loop *loop, struct request *request) {
    uint32_t wait_ms = retry_ms(loop);
    TAILQ_INSERT_TAIL(&loop->requests, request, link);
    loop->request_count++;
    uint32_t prompt_count = request->answers[0].sequence.prompt_count;
    log_debug("request %s: %" PRIu32 " prompt tokens", request->id, prompt_count);
    if (is_too_late(loop, request)) return;
    if (wait_ms > 0) {
        refuse_request(loop, request, wait_ms);
        return;
    }
    for (uint32_t i = 0; i < request->answer_count; i++) {
        struct answer *answer = &request->answers[i];
        if (answer->is_ended || answer->completion.finish_reason != FINISH_NONE) continue;
        if (flow_add(loop->flow, &answer->sequence) == STATUS_OK) continue;
        refuse_request(loop, request, RETRY_MS_MAX);
        return;
    }
    loop->prompt_token_count += prompt_count;
    finish_known(loop, request);
}

static void on_request_closed(struct loop *loop, struct request *request) {
    request->is_call_closed = true;
    if (!request->is_ended) {
        log_debug("request %s was cancelled after %" PRIu32 " tokens of its first answer",
                  request->id, request->answers[0].completion.token_count);
        loop->request_failed_count++;
        end_request(loop, request);
    }
    access_log_write(request->call, request->trace_id, request);
    close_if_done(loop, request);
}

static void count_token(struct loop *loop, struct answer *answer, uint64_t now_ns) {
    struct request *request = answer->request;
    loop->completion_token_count++;
    meters_count_token(loop->meters, now_ns);
    if (request->first_token_ns == 0) {
        request->first_token_ns = now_ns;
        meters_observe(loop->meters, METER_FIRST_TOKEN, now_ns - request->arrived_ns);
    }
    const struct sequence *sequence = &answer->sequence;
    if (answer->last_token_ns != 0)
        meters_observe(loop->meters, METER_INTER_TOKEN, now_ns - answer->last_token_ns);
    else
        meters_count_prompt(loop->meters, sequence->prompt_count, sequence->cached_count);
    answer->last_token_ns = now_ns;
}

static void on_sample(void *ctx, const struct scheduler_pick *pick,
                      const struct frame_sample *sample, const struct frame_top *tops) {
    struct loop *loop = ctx;
    struct sequence *sequence = pick->sequence;
    if (sequence->run_id != pick->run_id) return; // ended, cancelled or replayed since
    struct answer *answer = sequence->owner;
    struct request *request = answer->request;
    if (sample->outcome != FRAME_SAMPLE_DRAWN) {
        fail_request(loop, request, RPC_INTERNAL, "the model's logits are not finite numbers");
        return;
    }
    uint64_t now_ns = clock_now_ns(&loop->config.clock);
    count_token(loop, answer, now_ns);
    enum status status = sequence_append(sequence, sample->token_id);
    if (status == STATUS_OK) status = completion_push(&answer->completion, sample, tops);
    if (status != STATUS_OK) {
        fail_request(loop, request, RPC_RESOURCE_EXHAUSTED, "no memory for the completion");
        return;
    }
    reply_send(answer, now_ns);
    if (answer->completion.finish_reason != FINISH_NONE) finish_answer(loop, answer, now_ns);
}

static void on_released(void *ctx, struct sequence *sequence) {
    struct answer *answer = sequence->owner;
    close_if_done(ctx, answer->request);
}

// A request that has waited too long for a pipeline.
static void expire_absent(struct loop *loop, struct request *request, uint64_t now_ms) {
    uint64_t absent_since_ms;
    if (request->is_ended || flow_is_running(loop->flow, &absent_since_ms)) return;
    uint64_t since_ms = request->arrived_ns / 1000000;
    if (since_ms < absent_since_ms) since_ms = absent_since_ms;
    if (now_ms - since_ms >= loop->config.absent_ms)
        fail_request(loop, request, RPC_UNAVAILABLE, cluster_explanation(flow_cluster(loop->flow)));
}

// A request that is complete and waits for a client that does not read.
static void expire_unread(struct loop *loop, struct request *request, uint64_t now_ms) {
    if (!request->is_ended || request->is_call_closed) return;
    if (now_ms - request->sent_ns / 1000000 < loop->config.unread_ms) return;
    log_warn("request %s is dropped: the client does not read its answer", request->id);
    rpc_call_cancel(request->call);
    request->sent_ns = now_ms * 1000000; // once is enough
}

static void check_requests(struct loop *loop) {
    uint64_t now_ms = clock_now_ms(&loop->config.clock);
    if (now_ms < loop->check_next_ms) return;
    loop->check_next_ms = now_ms + CHECK_MS;
    struct request *request, *next;
    for (request = TAILQ_FIRST(&loop->requests); request != NULL; request = next) {
        next = TAILQ_NEXT(request, link);
        expire_absent(loop, request, now_ms);
        expire_unread(loop, request, now_ms);
    }
    if (loop->refused_count > 0)
        log_warn("%" PRIu32 " requests were refused: too many wait", loop->refused_count);
    loop->refused_count = 0;
}

// -- VllmEngine -----------------------------------------------------------------------------------

static void abort_request(struct loop *loop, struct request *request) {
    log_debug("request %s is aborted", request->id);
    loop->request_failed_count++;
    for (uint32_t i = 0; i < request->answer_count; i++) {
        struct answer *answer = &request->answers[i];
        if (answer->is_ended) continue;
        answer->completion.finish_reason = FINISH_CANCELLED;
        end_answer(loop, answer);
    }
    reply_send_all(request, clock_now_ns(&loop->config.clock));
}

static void abort_requests(struct loop *loop, const struct vllm_query *query) {
    struct request *request;
    TAILQ_FOREACH(request, &loop->requests, link) {
        if (request->is_abortable && !request->is_ended && vllm_query_has_id(query, request->id))
            abort_request(loop, request);
    }
}

static void on_vllm_asked(struct loop *loop, struct vllm_query *query) {
    if (query->question == VLLM_ABORT) abort_requests(loop, query);
    Stagecoach__V1__Pipeline out;
    if (loop_describe(loop, &out) == STATUS_OK)
        vllm_query_answer(query, &out);
    else
        vllm_query_fail(query, "no memory");
    loop_free_stages(&out);
}

// -- what came ------------------------------------------------------------------------------------

static void handle_event(struct loop *loop, const struct event *event) {
    switch ((enum event_kind)event->kind) {
    case EVENT_REQUEST:
        on_request(loop, event->subject);
        break;
    case EVENT_REQUEST_WRITABLE:
        reply_send_all(event->subject, clock_now_ns(&loop->config.clock));
        break;
    case EVENT_REQUEST_CLOSED:
        on_request_closed(loop, event->subject);
        break;
    case EVENT_PIPELINE_ASKED:
        loop_on_pipeline_asked(loop, event->subject);
        break;
    case EVENT_VLLM_ASKED:
        on_vllm_asked(loop, event->subject);
        break;
    case EVENT_METRICS_ASKED:
        loop_on_metrics_asked(loop, event->subject);
        break;
    case EVENT_STEPS_ASKED:
        loop_on_steps_asked(loop, event->subject);
        break;
    case EVENT_STAGE_OPENED:
        if (!cluster_join(flow_cluster(loop->flow), event->subject)) log_warn("too many stages");
        break;
    case EVENT_STAGE_MESSAGE:
        cluster_message(flow_cluster(loop->flow), event->subject,
                        (const Stagecoach__V1__StageMessage *)event->message);
        break;
    case EVENT_STAGE_DONE:
        rpc_call_end(((struct member *)event->subject)->stream, RPC_OK, "");
        break;
    case EVENT_STAGE_CLOSED: {
        struct member *member = event->subject;
        cluster_leave(flow_cluster(loop->flow), member);
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

static void take_frames(struct loop *loop) {
    struct io_event event;
    while (io_take(loop->config.io, &event)) {
        switch (event.kind) {
        case IO_UP:
            flow_links_up(loop->flow, event.epoch);
            break;
        case IO_RECEIVED:
            flow_receive(loop->flow, event.frame);
            io_release(loop->config.io, event.frame);
            break;
        case IO_SENT:
            flow_frame_sent(loop->flow, event.frame);
            break;
        case IO_LOST:
            flow_links_lost(loop->flow, event.epoch, event.error.text);
            break;
        }
    }
}

// -- what flow asks for ---------------------------------------------------------------------------

static void send_to_stage(void *ctx, struct member *member,
                          const Stagecoach__V1__CoordinatorMessage *message) {
    (void)ctx;
    if (rpc_call_send(member->stream, &message->base)) return;
    // One that takes no more; a call that has ended keeps its own code.
    if (!rpc_call_is_over(member->stream)) rpc_call_cancel(member->stream);
}

static void drop_stage(void *ctx, struct member *member, bool is_refusal, const char *message) {
    (void)ctx;
    rpc_call_end(member->stream, is_refusal ? RPC_FAILED_PRECONDITION : RPC_UNAVAILABLE, message);
}

static void draw(void *ctx, void *out, size_t size_bytes) {
    (void)ctx;
    link_crypto_draw(out, size_bytes); // started by the port of our io
}

static bool connect_links(void *ctx, const struct io_ring_position *position) {
    struct loop *loop = ctx;
    return io_connect(loop->config.io, position);
}

static bool send_frame(void *ctx, struct frame *frame) {
    struct loop *loop = ctx;
    return io_send(loop->config.io, 0, frame);
}

static void on_issued(void *ctx, struct sequence *sequence) {
    struct loop *loop = ctx;
    struct answer *answer = sequence->owner;
    struct request *request = answer->request;
    if (request->issued_ns != 0) return;
    request->issued_ns = clock_now_ns(&loop->config.clock);
    meters_observe(loop->meters, METER_QUEUE, request->issued_ns - request->arrived_ns);
}

static bool is_replayed_too_often(const struct request *request) {
    for (uint32_t i = 0; i < request->answer_count; i++)
        if (request->answers[i].sequence.replay_count > REQUEST_REPLAY_COUNT_MAX) return true;
    return false;
}

static void on_lost(void *ctx) {
    struct loop *loop = ctx;
    struct request *request, *next;
    for (request = TAILQ_FIRST(&loop->requests); request != NULL; request = next) {
        next = TAILQ_NEXT(request, link);
        if (is_replayed_too_often(request))
            fail_request(loop, request, RPC_UNAVAILABLE,
                         "the pipeline was lost again and again while this request ran");
    }
}

// -- life -----------------------------------------------------------------------------------------

enum status loop_open(const struct loop_config *config, struct loop **loop_out) {
    struct loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL) return STATUS_NO_MEMORY;
    loop->config = *config;
    throughput_init(&loop->throughput, clock_now_ms(&config->clock));
    TAILQ_INIT(&loop->requests);
    struct flow_outside outside = {
        .cluster = {.send = send_to_stage, .drop = drop_stage, .draw = draw, .ctx = loop},
        .connect = connect_links,
        .send = send_frame,
        .issued = on_issued,
        .sample = on_sample,
        .released = on_released,
        .lost = on_lost,
        .ctx = loop,
    };
    enum status status = meters_open(config->flow.cluster.plan.stage_count,
                                     clock_now_ns(&config->clock), &loop->meters);
    if (status != STATUS_OK) goto free_loop;
    struct flow_config flow = config->flow;
    flow.cluster.timeline = meters_timeline(loop->meters);
    status = flow_open(&flow, &outside, &loop->flow);
    if (status != STATUS_OK) goto close_meters;
    *loop_out = loop;
    return STATUS_OK;
close_meters:
    meters_close(loop->meters);
free_loop:
    free(loop);
    return status;
}

void loop_close(struct loop *loop) {
    if (loop == NULL) return;
    take_events(loop);
    loop_end_requests(loop, "the coordinator stops");
    flow_stop(loop->flow);
    CHECK(TAILQ_EMPTY(&loop->requests));
    flow_close(loop->flow);
    meters_close(loop->meters);
    free(loop);
}

void loop_tick(struct loop *loop) {
    take_events(loop);
    take_frames(loop);
    flow_tick(loop->flow);
    check_requests(loop);
    atomic_store(loop->config.retry_ms, retry_ms(loop));
}

uint32_t loop_request_count(const struct loop *loop) {
    return loop->request_count;
}

bool loop_is_idle(const struct loop *loop) {
    return TAILQ_EMPTY(&loop->requests);
}

struct readiness_report loop_report(const struct loop *loop) {
    uint64_t absent_since_ms;
    return (struct readiness_report){
        .is_ready = flow_is_running(loop->flow, &absent_since_ms) && !loop->is_draining,
        .is_owed = flow_in_flight_count(loop->flow) > 0,
        .owed_count = flow_progress_count(loop->flow),
    };
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
