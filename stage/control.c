#include "stage/control.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/address.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/signals.h"
#include "stage/control_internal.h"
#include "stage/service.h"

enum { TICK_MS = 100, EVENT_COUNT_MAX = 1024 };

// What the main thread is told: the worker's reports, and what happens on the stream.
enum control_event {
    CONTROL_WORKER,                                         // plus enum worker_report
    CONTROL_MESSAGE = CONTROL_WORKER + WORKER_REPORT_COUNT, // message: CoordinatorMessage
    CONTROL_CLOSED,                                         // subject: struct stream_end
};
struct stream_end {
    enum rpc_code code;
    char message[512];
};

// -- the stream, on the rpc thread ----------------------------------------------------------------

static void on_stream_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)call;
    struct control *control = ctx;
    inbox_put(&control->inbox, CONTROL_MESSAGE, NULL, message);
}

static void on_stream_closed(struct rpc_call *call, void *ctx, enum rpc_code code,
                             const char *message) {
    (void)call;
    struct control *control = ctx;
    struct stream_end *end = malloc(sizeof(*end));
    if (end != NULL) {
        end->code = code;
        snprintf(end->message, sizeof(end->message), "%s", message);
    }
    inbox_put(&control->inbox, CONTROL_CLOSED, end, NULL);
}

// -- messages of the coordinator ------------------------------------------------------------------

static void refuse_assignment(struct control *control, uint64_t epoch, const char *reason) {
    struct worker_failed failed = {.epoch = epoch, .failure = WORKER_FAILED_LOAD};
    error_set(&failed.error, STATUS_INVALID, "assignment: %s", reason);
    log_error("%s", failed.error.text);
    control_send_failed(control, &failed);
}

static void on_assignment(struct control *control, const Stagecoach__V1__Assignment *m) {
    const char *path =
        control->settings->model_path != NULL ? control->settings->model_path : m->model_path;
    struct assignment *a = calloc(1, sizeof(*a));
    if (a == NULL || m->model_digest.len != sizeof(a->model_digest) ||
        strlen(path) >= sizeof(a->model_path)) {
        free(a);
        refuse_assignment(control, m->epoch, "model_digest or model_path has a wrong size");
        return;
    }
    a->epoch = control->epoch = m->epoch;
    control->has_layers = true;
    control->is_connected = false;
    a->stage_index = m->stage_index;
    a->stage_count = m->stage_count;
    a->layer_first = m->layer_first;
    a->layer_count = m->layer_count;
    memcpy(a->model_path, path, strlen(path) + 1);
    memcpy(&a->model_digest, m->model_digest.data, sizeof(a->model_digest));
    // Values that are no dtype or format are refused by the engine, which names the field.
    a->activation_dtype = (enum dtype)m->activation_dtype;
    a->kv_dtype = (enum dtype)m->kv_dtype;
    a->kv_block_count = m->kv_block_count;
    a->kv_block_positions = m->kv_block_positions;
    a->row_count_max = m->row_count_max;
    a->sequence_count_max = m->sequence_count_max;
    a->credit_count = m->credit_count;
    a->position_count_max = m->position_count_max;
    a->load_format = (enum load_format)m->load_format;
    a->weight_format = (enum weight_format)m->weight_format;
    a->token_lag_max = m->token_lag_max;
    control->assignment = *a;
    worker_order(control->worker, WORKER_LOAD, a);
}

// "host:port" as the coordinator gave it; an empty host is the coordinator's own.
static bool read_address(const struct control *control, const char *field, const char *text,
                         struct io_out *out) {
    struct address address;
    struct error error;
    if (address_parse(text, &address, &error) == STATUS_OK &&
        address_format(address.host[0] != '\0' ? address.host : control->coordinator_host,
                       address.port, out->address, sizeof(out->address)))
        return true;
    log_error("start: %s '%.200s' is not host:port", field, text);
    return false;
}

static bool read_key(const char *field, const ProtobufCBinaryData *bytes, uint8_t *key_out) {
    if (bytes->len == LINK_KEY_BYTES) {
        memcpy(key_out, bytes->data, LINK_KEY_BYTES);
        return true;
    }
    log_error("start: %s has %zu bytes, it must have %d", field, bytes->len, LINK_KEY_BYTES);
    return false;
}

// Link i goes to stage i, link stage_count to the coordinator, and one more from the last stage
// straight back to the first.
static bool read_position(const struct control *control, const Stagecoach__V1__Start *m,
                          struct io_ring_position *position) {
    const struct assignment *a = &control->assignment;
    position->epoch = m->epoch;
    position->encrypts = m->encrypts;
    struct io_in *in = &position->ins[position->in_count++];
    in->link_id = a->stage_index;
    if (!read_key("in_key", &m->in_key, in->key)) return false;
    if (assignment_takes_tokens(a) && a->stage_count > 1) {
        in = &position->ins[position->in_count++];
        in->link_id = a->stage_count + 1;
        if (!read_key("feedback_key", &m->feedback_key, in->key)) return false;
    }
    struct io_out *out = &position->outs[position->out_count++];
    out->link_id = a->stage_index + 1;
    if (!read_key("next_key", &m->next_key, out->key) ||
        !read_address(control, "next_address", m->next_address, out))
        return false;
    if (!assignment_sends_tokens(a)) return true;
    out = &position->outs[position->out_count++];
    out->link_id = a->stage_count + 1;
    return read_key("feedback_key", &m->feedback_key, out->key) &&
           read_address(control, "feedback_address", m->feedback_address, out);
}

static void on_start(struct control *control, const Stagecoach__V1__Start *m) {
    if (m->epoch != control->epoch) return;
    struct io_ring_position *position = calloc(1, sizeof(*position));
    // The coordinator tries another epoch.
    if (position == NULL) return;
    if (read_position(control, m, position)) {
        worker_order(control->worker, WORKER_START, position);
    } else {
        memory_wipe(position, sizeof(*position));
        free(position);
    }
}

static void wipe_keys(const Stagecoach__V1__Start *m) {
    if (m->in_key.len > 0) memory_wipe(m->in_key.data, m->in_key.len);
    if (m->next_key.len > 0) memory_wipe(m->next_key.data, m->next_key.len);
    if (m->feedback_key.len > 0) memory_wipe(m->feedback_key.data, m->feedback_key.len);
}

static void on_message(struct control *control, const Stagecoach__V1__CoordinatorMessage *m) {
    control->heard_ms = clock_now_ms(&control->clock);
    control->is_joined = true;
    control->dial_wait_ms = STAGE_DIAL_MS_MIN;
    switch (m->kind_case) {
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_WELCOME:
        log_info("joined %s as stage id %" PRIu32, control->settings->coordinator,
                 m->welcome->stage_id);
        break;
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_ASSIGNMENT:
        on_assignment(control, m->assignment);
        break;
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_START:
        on_start(control, m->start);
        wipe_keys(m->start);
        break;
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_HEARTBEAT:
        control->heard_sent_ns = m->heartbeat->sent_ns;
        control->heard_ns = clock_now_ns(&control->clock);
        control->sequence_count = m->heartbeat->sequence_count;
        break;
    default:
        break; // what newer coordinators say
    }
}

// -- the stream, on the main thread ---------------------------------------------------------------

static void dial(struct control *control) {
    static const struct rpc_handler handler = {.message = on_stream_message,
                                               .closed = on_stream_closed};
    uint64_t now_ms = clock_now_ms(&control->clock);
    control->is_joined = false;
    control->heard_ms = control->heartbeat_ms = now_ms;
    control->heard_sent_ns = control->heard_ns = 0;
    enum status status = rpc_call_begin(control->channel, &stagecoach__v1__control__descriptor,
                                        "Join", &handler, control, NULL, &control->call);
    if (status != STATUS_OK) {
        control->call = NULL;
        control->dial_at_ms = now_ms + STAGE_DIAL_MS_MAX;
        return;
    }
    control_send_hello(control);
}

static void on_closed(struct control *control, const struct stream_end *end) {
    enum rpc_code code = end != NULL ? end->code : RPC_UNKNOWN;
    const char *text = end != NULL ? end->message : "";
    rpc_call_release(control->call);
    control->call = NULL;
    control->has_layers = control->is_connected = false;
    worker_order(control->worker, WORKER_STOP, NULL);
    if (code == RPC_FAILED_PRECONDITION) {
        control->final_status = error_set(control->final_error, STATUS_INVALID,
                                          "the coordinator refuses this stage: %s", text);
        return;
    }
    if (control->is_joined)
        log_warn("the coordinator is lost (%s: %s), dialling again", rpc_code_name(code), text);
    else if (control->dial_wait_ms >= STAGE_DIAL_MS_MAX)
        log_warn("cannot join %s (%s: %s), dialling again", control->settings->coordinator,
                 rpc_code_name(code), text);
    control->dial_at_ms = clock_now_ms(&control->clock) + control->dial_wait_ms;
    control->dial_wait_ms *= 2;
    if (control->dial_wait_ms > STAGE_DIAL_MS_MAX) control->dial_wait_ms = STAGE_DIAL_MS_MAX;
}

static void keep_time(struct control *control) {
    uint64_t now_ms = clock_now_ms(&control->clock);
    if (control->call == NULL) {
        if (now_ms >= control->dial_at_ms) dial(control);
        return;
    }
    bool has_many_steps =
        step_log_count(worker_step_log(control->worker)) >= HEARTBEAT_STEP_COUNT_MAX / 2;
    if (now_ms - control->heartbeat_ms >= HEARTBEAT_MS || has_many_steps) {
        control->heartbeat_ms = now_ms;
        control_send_progress(control);
        control_send_heartbeat(control);
    }
    if (now_ms - control->heard_ms > HEARTBEAT_LOST_MS) {
        control->heard_ms = now_ms;
        rpc_call_cancel(control->call);
    }
}

static void on_connected(struct control *control, const struct worker_connected *report) {
    if (report->epoch == control->epoch) control->is_connected = true;
    control_send_connected(control, report);
}

static void on_failed(struct control *control, const struct worker_failed *report) {
    if (report->epoch == control->epoch) {
        control->is_connected = false;
        if (report->failure == WORKER_FAILED_LOAD) control->has_layers = false;
    }
    control_send_failed(control, report);
}

static void handle_event(struct control *control, const struct event *event) {
    switch (event->kind) {
    case CONTROL_WORKER + WORKER_LOADED:
        control_send_loaded(control, event->subject);
        break;
    case CONTROL_WORKER + WORKER_CONNECTED:
        on_connected(control, event->subject);
        break;
    case CONTROL_WORKER + WORKER_FAILED:
        on_failed(control, event->subject);
        break;
    case CONTROL_MESSAGE:
        on_message(control, (const Stagecoach__V1__CoordinatorMessage *)event->message);
        break;
    case CONTROL_CLOSED:
        on_closed(control, event->subject);
        break;
    }
    free(event->subject);
}

// -- life -----------------------------------------------------------------------------------------

static void log_compute(const struct backend *backend) {
    uint32_t thread_count = backend_thread_count(backend);
    const char *cores = backend_cores(backend);
    log_info("computing with %" PRIu32 " thread%s, %s%s, kernels %s", thread_count,
             thread_count == 1 ? "" : "s", cores != NULL ? "pinned to cores " : "not pinned",
             cores != NULL ? cores : "", backend_variant(backend));
}

static enum status open_worker(struct control *control, struct error *error) {
    const struct settings *s = control->settings;
    struct address listen, coordinator;
    enum status status = address_parse(s->data_listen, &listen, error);
    if (status == STATUS_OK) status = address_parse(s->coordinator, &coordinator, error);
    if (status != STATUS_OK) return status;
    memcpy(control->coordinator_host, coordinator.host, sizeof(coordinator.host));
    struct backend_config backend = {
        .thread_count = (uint32_t)s->thread_count, .cores = &s->cores, .variant = s->kernel};
    status = backend_cpu_open(&backend, &control->backend, error);
    if (status != STATUS_OK) return status;
    log_compute(control->backend);
    struct worker_config worker = {
        .backend = control->backend,
        .clock = control->clock,
        .reports = &control->inbox,
        .report_base = CONTROL_WORKER,
        .data_host = listen.host[0] != '\0' ? listen.host : "0.0.0.0",
        .data_port = listen.port,
    };
    return worker_open(&worker, &control->worker, error);
}

static enum status open_all(struct control *control, struct error *error) {
    enum status status = wake_init(&control->wake);
    if (status == STATUS_OK) status = signals_listen(&control->wake);
    if (status == STATUS_OK) status = inbox_init(&control->inbox, EVENT_COUNT_MAX, &control->wake);
    if (status != STATUS_OK) return error_set(error, status, "cannot set up the main thread");
    status = open_worker(control, error);
    if (status != STATUS_OK) return status;
    const struct settings *settings = control->settings;
    status = rpc_access_open(&settings->access, &control->access, error);
    if (status == STATUS_OK)
        status = rpc_access_check_dial(control->access, settings->coordinator, error);
    if (status != STATUS_OK) return status;
    status = rpc_open(&(struct rpc_config){.access = control->access}, &control->rpc);
    if (status == STATUS_OK)
        status = rpc_channel_open(control->rpc, settings->coordinator, &control->channel);
    if (status != STATUS_OK) return error_set(error, status, "cannot start the rpc thread");
    return service_open(settings, control->clock, control->rpc, &control->service, error);
}

static void make_name(struct control *control) {
    char host[40] = "stage";
    gethostname(host, sizeof(host) - 1);
    if (control->settings->name != NULL)
        snprintf(control->name, sizeof(control->name), "%s", control->settings->name);
    else
        snprintf(control->name, sizeof(control->name), "%.39s-%d", host, (int)getpid());
}

// After SIGTERM: a stage whose layers are in use stays until no answer is being computed.
static bool may_leave(struct control *control) {
    uint64_t now_ms = clock_now_ms(&control->clock);
    if (!control->is_leaving) {
        control->is_leaving = true;
        control->leave_by_ms = now_ms + (uint64_t)(control->settings->drain_seconds * 1000);
        control->sequence_count = UINT32_MAX; // not known
        control->heartbeat_ms = 0;            // ask now
        log_info("stopping");
    }
    return control->call == NULL || !control->has_layers || control->sequence_count == 0 ||
           now_ms >= control->leave_by_ms || signals_stop_now_asked();
}

static void serve(struct control *control) {
    while (control->final_status == STATUS_OK) {
        struct event *event;
        while ((event = inbox_take(&control->inbox)) != NULL) {
            handle_event(control, event);
            event_close(event);
        }
        if (signals_stop_asked() && may_leave(control)) return;
        keep_time(control);
        service_tick(control->service, control->is_connected && !control->is_leaving,
                     control->worker);
        wake_wait(&control->wake, control->call == NULL ? (int)STAGE_DIAL_MS_MIN : TICK_MS);
    }
}

static void close_all(struct control *control) {
    if (control->call != NULL) rpc_call_cancel(control->call);
    service_stop(control->service);
    rpc_channel_close(control->channel);
    rpc_close(control->rpc, 200);
    service_close(control->service);
    rpc_access_close(control->access);
    worker_close(control->worker);
    backend_close(control->backend);
    struct event *event;
    while (control->inbox.ring != NULL && (event = inbox_take(&control->inbox)) != NULL) {
        free(event->subject);
        event_close(event);
    }
    if (control->call != NULL) rpc_call_release(control->call);
    inbox_fini(&control->inbox);
}

enum status control_run(const struct settings *settings, struct error *error) {
    static struct control control; // one a process; its wake outlives signal handlers
    control.settings = settings;
    control.clock = clock_system();
    clock_system_id(control.clock_id);
    control.dial_wait_ms = STAGE_DIAL_MS_MIN;
    control.final_error = error;
    make_name(&control);
    enum status status = open_all(&control, error);
    if (status == STATUS_OK) {
        serve(&control);
        status = control.final_status;
    }
    close_all(&control);
    return status;
}
