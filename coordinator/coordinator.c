#include "coordinator/coordinator.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/address.h"
#include "base/check.h"
#include "base/port_file.h"
#include "base/signals.h"
#include "coordinator/loop.h"
#include "coordinator/metrics_http.h"
#include "coordinator/vllm.h"
#include "proto/model_config.h"
#include "transport/rpc_reflection.h"

enum { TICK_MS = 100 };

// Everything that lives as long as the service.
struct coordinator {
    const struct settings *settings;
    struct clock clock;
    struct model_config model;
    char model_path[PATH_MAX];
    char model_name[256];
    struct tokenizer *tokenizer; // NULL: dummy weights and no tokenizer.json
    struct plan plan;
    uint32_t position_count_max; // of one sequence
    uint32_t kv_block_count;
    struct wake wake;
    struct inbox inbox;
    struct io *io;
    struct rpc_access *access;
    struct rpc_health *health;
    struct readiness *readiness;
    struct rpc *rpc;
    struct frontend frontend;
    struct vllm vllm;
    Stagecoach__V1__Model model_message;
    char clock_id[CLOCK_ID_BYTES_MAX + 1];
    char data_address[ADDRESS_HOST_BYTES_MAX + 16];
    struct loop *loop;
    struct metrics_http *metrics; // NULL: off
};

static uint64_t draw_random(void *ctx) {
    (void)ctx;
    uint64_t bits;
    // Eight bytes come whole or not at all.
    ssize_t size = getrandom(&bits, sizeof(bits), 0);
    CHECK(size == sizeof(bits));
    return bits;
}

// -- the model ------------------------------------------------------------------------------------

static enum status open_tokenizer(struct coordinator *c, struct error *error) {
    char path[PATH_MAX + 32];
    snprintf(path, sizeof(path), "%s/tokenizer.json", c->model_path);
    enum status status = tokenizer_open(path, &c->tokenizer, error);
    if (status == STATUS_NOT_FOUND && c->settings->load_format == LOAD_FORMAT_DUMMY) {
        log_info("%s does not exist: requests must have token ids in place of text", path);
        return STATUS_OK;
    }
    if (status != STATUS_OK) return status;
    if (tokenizer_vocabulary_size(c->tokenizer) > c->model.vocabulary_size)
        return error_set(error, STATUS_INVALID,
                         "%s: %" PRIu32 " tokens, but vocab_size of config.json is %" PRIu32, path,
                         tokenizer_vocabulary_size(c->tokenizer), c->model.vocabulary_size);
    return STATUS_OK;
}

static enum status read_model(struct coordinator *c, struct error *error) {
    const struct settings *s = c->settings;
    if (realpath(s->model_path, c->model_path) == NULL)
        return error_set(error, STATUS_NOT_FOUND, "--model %s: %s", s->model_path, strerror(errno));
    enum status status = model_config_read(c->model_path, &c->model, error);
    if (status != STATUS_OK) return status;
    status = open_tokenizer(c, error);
    if (status != STATUS_OK) return status;
    const char *slash = strrchr(c->model_path, '/');
    snprintf(c->model_name, sizeof(c->model_name), "%s",
             s->model_name != NULL ? s->model_name : slash + 1);
    return STATUS_OK;
}

static enum status make_plan(struct coordinator *c, struct error *error) {
    const struct settings *s = c->settings;
    if (s->context_count > c->model.position_count_max)
        return error_set(error, STATUS_INVALID,
                         "--context is %" PRIu64 ", the limit of this model is %" PRIu32,
                         s->context_count, c->model.position_count_max);
    c->kv_block_count = kv_blocks_for((uint32_t)s->kv_token_count);
    c->position_count_max =
        s->context_count != 0 ? (uint32_t)s->context_count : c->model.position_count_max;
    if (s->layers != NULL) return plan_parse(s->layers, c->model.layer_count, &c->plan, error);
    return plan_even(c->model.layer_count, (uint32_t)s->stage_count, &c->plan, error);
}

static void describe_model(struct coordinator *c) {
    stagecoach__v1__model__init(&c->model_message);
    Stagecoach__V1__Model *m = &c->model_message;
    m->name = c->model_name;
    m->architecture = c->model.architecture;
    m->layer_count = c->model.layer_count;
    m->hidden_size = c->model.hidden_size;
    m->vocabulary_size = c->model.vocabulary_size;
    m->position_count_max = c->position_count_max;
    m->n_eos_token_ids = c->model.eos_count;
    m->eos_token_ids = c->model.eos_ids;
    m->weight_dtype = (char *)dtype_name(c->model.dtype);
    m->activation_dtype = (char *)dtype_name(c->settings->activation_dtype);
    m->kv_dtype = (char *)dtype_name(c->settings->kv_dtype);
    m->load_format = (char *)load_format_name(c->settings->load_format);
    m->weight_format = (char *)weight_format_name(c->settings->weight_format);
}

// -- threads --------------------------------------------------------------------------------------

static enum status open_io(struct coordinator *c, struct error *error) {
    struct address listen;
    enum status status = address_parse(c->settings->data_listen, &listen, error);
    if (status != STATUS_OK) {
        error_prefix(error, "--data-listen");
        return status;
    }
    struct io_config config = {.owner_wake = &c->wake};
    status = io_open(&config, &c->io);
    if (status != STATUS_OK) return error_set(error, status, "no memory for the io thread");
    struct port_config port_config = io_port_config(c->io);
    struct port *port;
    status = port_open_ucx(listen.host[0] != '\0' ? listen.host : "0.0.0.0", listen.port,
                           &port_config, &port, error);
    if (status != STATUS_OK) return status;
    // On every interface: the last stage puts in the host at which it reaches us.
    const char *port_text = strrchr(port_address(port), ':');
    bool is_wildcard = address_is_wildcard(listen.host);
    snprintf(c->data_address, sizeof(c->data_address), "%s",
             is_wildcard ? port_text : port_address(port));
    status = io_start(c->io, port);
    return status == STATUS_OK ? status : error_set(error, status, "cannot start the io thread");
}

static enum status open_metrics(struct coordinator *c, struct error *error) {
    if (c->settings->metrics == NULL) return STATUS_OK;
    enum status status =
        metrics_http_open(c->settings->metrics, &c->inbox, EVENT_METRICS_ASKED, &c->metrics, error);
    if (status != STATUS_OK) {
        error_prefix(error, "--metrics");
        return status;
    }
    log_info("metrics at http://%s/metrics", metrics_http_address(c->metrics));
    return STATUS_OK;
}

static struct frame_limits result_limits(const struct coordinator *c) {
    uint32_t chunk_row_count = (uint32_t)c->settings->chunk_row_count;
    if (chunk_row_count == 0) chunk_row_count = CHUNK_ROW_COUNT_MAX;
    return (struct frame_limits){
        .row_count_max = chunk_row_count + (uint32_t)c->settings->sequence_count_max,
        .sequence_count_max = (uint32_t)c->settings->sequence_count_max,
        .position_count_max = c->position_count_max,
        .kv_block_count = c->kv_block_count,
        .vocabulary_size = c->model.vocabulary_size,
        .hidden_size = c->model.hidden_size,
        .dtype = c->settings->activation_dtype,
        .kind = FRAME_RESULT,
    };
}

// A token that is not known yet is drawn by a step in flight.
static uint32_t token_lag_max(const struct coordinator *c, uint32_t in_flight_max) {
    return c->settings->feedback == FEEDBACK_DIRECT ? in_flight_max - 1 : 0;
}

static Stagecoach__V1__Assignment common_assignment(const struct coordinator *c,
                                                    const struct frame_limits *limits,
                                                    uint32_t credit_count) {
    Stagecoach__V1__Assignment a = STAGECOACH__V1__ASSIGNMENT__INIT;
    a.model_path = (char *)c->model_path;
    a.model_digest.data = (uint8_t *)&c->model.digest;
    a.model_digest.len = sizeof(c->model.digest);
    a.activation_dtype = c->settings->activation_dtype;
    a.kv_dtype = c->settings->kv_dtype;
    a.kv_block_count = c->kv_block_count;
    a.kv_block_positions = KV_BLOCK_POSITION_COUNT;
    a.row_count_max = limits->row_count_max;
    a.sequence_count_max = limits->sequence_count_max;
    a.credit_count = credit_count;
    a.position_count_max = limits->position_count_max;
    a.load_format = c->settings->load_format;
    a.weight_format = c->settings->weight_format;
    a.token_lag_max = token_lag_max(c, credit_count);
    return a;
}

static struct scheduler_config scheduler_config(const struct coordinator *c,
                                                const struct frame_limits *limits,
                                                uint32_t in_flight_max) {
    const struct settings *s = c->settings;
    return (struct scheduler_config){
        .running_count_max = (uint32_t)s->sequence_count_max,
        // The loop refuses before that; a request comes with all its sequences.
        .waiting_count_max = (uint32_t)s->waiting_count_max + REQUEST_ANSWER_COUNT_MAX,
        .sequence_count_max = (uint32_t)s->sequence_count_max,
        .row_count_max = limits->row_count_max,
        .chunk_row_count = (uint32_t)s->chunk_row_count,
        .in_flight_max = in_flight_max,
        .stage_count = c->plan.stage_count,
        .runs_ahead = token_lag_max(c, in_flight_max) > 0,
        .is_naive = s->is_naive,
        .cost_prior = cost_prior_of(&c->model),
    };
}

// Every stage has one to compute and one more is on its way; another one waits at the first stage
// for its tokens.
static uint32_t in_flight_max(const struct coordinator *c) {
    const struct settings *s = c->settings;
    if (s->is_naive) return 1;
    if (s->in_flight_max > 0) return (uint32_t)s->in_flight_max;
    uint32_t count = c->plan.stage_count + 1 + (s->feedback == FEEDBACK_DIRECT ? 1 : 0);
    return count < LINK_CREDIT_COUNT_MAX ? count : LINK_CREDIT_COUNT_MAX;
}

static enum status open_loop(struct coordinator *c, struct error *error) {
    const struct settings *s = c->settings;
    struct frame_limits limits = result_limits(c);
    uint32_t credit_count = in_flight_max(c);
    size_t frame_bytes_max = frame_capacity_bytes(&limits);
    if (frame_bytes_max > FRAME_BYTES_MAX)
        return error_set(error, STATUS_EXHAUSTED,
                         "a frame could have %zu bytes, the limit is %d: lower --chunk or "
                         "--max-running",
                         frame_bytes_max, FRAME_BYTES_MAX);
    struct loop_config config = {
        .clock = c->clock,
        .wake = &c->wake,
        .inbox = &c->inbox,
        .io = c->io,
        .flow = {.clock = c->clock,
                 .cluster = {.clock = c->clock,
                             .plan = c->plan,
                             .assignment = common_assignment(c, &limits, credit_count),
                             .data_address = c->data_address,
                             .clock_id = c->clock_id,
                             .encrypts = s->encrypts_data},
                 .scheduler = scheduler_config(c, &limits, credit_count),
                 .limits = limits,
                 .kv_block_count = c->kv_block_count,
                 .has_prefix_cache = !s->no_prefix_cache,
                 .cache_seed = draw_random(NULL),
                 .credit_count = credit_count,
                 .frame_bytes_max = frame_bytes_max},
        .waiting_count_max = (uint32_t)s->waiting_count_max,
        .absent_ms = (uint32_t)(s->absent_seconds * 1000),
        .unread_ms = (uint32_t)(s->unread_seconds * 1000),
        .model_name = c->model_name,
        .metrics_address = c->metrics != NULL ? metrics_http_address(c->metrics) : "",
        .retry_ms = &c->frontend.retry_ms,
    };
    enum status status = loop_open(&config, &c->loop);
    return status == STATUS_OK ? status : error_set(error, status, "no memory for the loop");
}

// The services by which others learn whether and how to use the rest.
static enum status add_health(struct coordinator *c, struct error *error) {
    static const char *const services[] = {"stagecoach.v1.Inference",
                                           "vllm.grpc.engine.VllmEngine"};
    enum status status = rpc_health_add(c->health, c->rpc, error);
    if (status == STATUS_OK) status = rpc_reflection_add(c->rpc, error);
    if (status != STATUS_OK) return status;
    struct readiness_config config = {
        .clock = c->clock,
        .health = c->health,
        .services = services,
        .service_count = sizeof(services) / sizeof(services[0]),
        .stall_ms_max = (uint32_t)(c->settings->stall_seconds * 1000),
    };
    status = readiness_open(&config, &c->readiness);
    return status == STATUS_OK ? status : error_set(error, status, "cannot start a thread");
}

static void open_vllm(struct coordinator *c) {
    struct vllm_config config = {
        .frontend = &c->frontend,
        .model = {.model = &c->model,
                  .path = c->model_path,
                  .name = c->model_name,
                  .has_tokenizer = c->tokenizer != NULL,
                  .position_count_max = c->position_count_max},
        .running_count_max = (uint32_t)c->settings->sequence_count_max,
    };
    vllm_open(&c->vllm, &config);
}

static enum status open_rpc(struct coordinator *c, struct error *error) {
    struct rpc_config config = {.call_count_max = REQUEST_COUNT_MAX * 2,
                                .access = c->access,
                                .connection_count_max = (uint32_t)c->settings->connection_count_max,
                                .idle_ms = (uint32_t)(c->settings->idle_seconds * 1e3)};
    enum status status = rpc_health_open(&c->health);
    if (status == STATUS_OK) status = rpc_open(&config, &c->rpc);
    if (status != STATUS_OK) return error_set(error, status, "cannot start the rpc thread");
    c->frontend.rules = (struct request_rules){
        .model = &c->model,
        .tokenizer = c->tokenizer,
        .position_count_max = c->position_count_max,
        .kv_position_count = c->kv_block_count * KV_BLOCK_POSITION_COUNT,
        .draw = draw_random,
    };
    c->frontend.inbox = &c->inbox;
    c->frontend.clock = c->clock;
    c->frontend.model = &c->model_message;
    open_vllm(c);
    status = frontend_serve(&c->frontend, c->rpc, error);
    if (status == STATUS_OK) status = vllm_serve(&c->vllm, c->rpc, error);
    if (status == STATUS_OK) status = add_health(c, error);
    if (status != STATUS_OK) return status;
    uint16_t port;
    status = rpc_serve(c->rpc, c->settings->listen, &port, error);
    if (status != STATUS_OK) return status;
    char access[256];
    rpc_access_describe(c->access, access, sizeof(access));
    log_info("model %s: %" PRIu32 " layers over %" PRIu32
             " stages; serving on %s, port %u, %s, results at %s",
             c->model_name, c->model.layer_count, c->plan.stage_count, c->settings->listen,
             (unsigned)port, access, c->data_address);
    if (c->settings->port_file == NULL) return STATUS_OK;
    return port_file_write(c->settings->port_file, port, error);
}

// -- run ------------------------------------------------------------------------------------------

static void tick(struct coordinator *c) {
    loop_tick(c->loop);
    struct readiness_report report = loop_report(c->loop);
    readiness_tick(c->readiness, &report);
    wake_wait(&c->wake, TICK_MS);
}

static uint64_t end_after(const struct coordinator *c, double seconds) {
    return clock_now_ms(&c->clock) + (uint64_t)(seconds * 1000);
}

// Whether the time is up, or who stops us does not want to wait for it.
static bool is_past(const struct coordinator *c, uint64_t end_ms) {
    return signals_stop_now_asked() || clock_now_ms(&c->clock) >= end_ms;
}

// First those who send requests here learn that they should not, then no more are taken, then those
// that run come to their end.
static void drain(struct coordinator *c) {
    log_info("stopping: not ready any more, but requests are taken for another %g s",
             c->settings->drain_notice_seconds);
    loop_set_draining(c->loop);
    uint64_t end_ms = end_after(c, c->settings->drain_notice_seconds);
    while (!is_past(c, end_ms))
        tick(c);
    log_info("draining: %" PRIu32 " requests run", loop_request_count(c->loop));
    atomic_store(&c->frontend.is_draining, true);
    rpc_stop_serving(c->rpc);
    end_ms = end_after(c, c->settings->drain_seconds);
    while (!loop_is_idle(c->loop) && !is_past(c, end_ms))
        tick(c);
    loop_end_requests(c->loop, "the coordinator stops");
}

static void serve(struct coordinator *c) {
    while (!signals_stop_asked())
        tick(c);
    drain(c);
}

static void close_all(struct coordinator *c) {
    readiness_close(c->readiness);
    if (c->health != NULL) rpc_health_end_watches(c->health);
    rpc_close(c->rpc, 200);
    vllm_close(&c->vllm);
    rpc_access_close(c->access);
    rpc_health_close(c->health);
    io_close(c->io);
    metrics_http_stop(c->metrics);
    loop_close(c->loop);
    metrics_http_close(c->metrics);
    if (c->inbox.ring != NULL) inbox_fini(&c->inbox);
    tokenizer_close(c->tokenizer);
}

enum status coordinator_run(const struct settings *settings, struct error *error) {
    static struct coordinator coordinator; // one a process; its wake outlives signal handlers
    struct coordinator *c = &coordinator;
    c->settings = settings;
    c->clock = clock_system();
    clock_system_id(c->clock_id);
    enum status status = rpc_access_open(&settings->access, &c->access, error);
    if (status == STATUS_OK) status = read_model(c, error);
    if (status == STATUS_OK) status = make_plan(c, error);
    if (status != STATUS_OK) goto close_all;
    describe_model(c);
    status = wake_init(&c->wake);
    if (status == STATUS_OK) status = signals_listen(&c->wake);
    if (status == STATUS_OK) status = inbox_init(&c->inbox, LOOP_EVENT_COUNT_MAX, &c->wake);
    if (status != STATUS_OK) {
        error_set(error, status, "cannot set up the main thread");
        goto close_all;
    }
    status = open_io(c, error);
    if (status == STATUS_OK) status = open_metrics(c, error);
    if (status == STATUS_OK) status = open_loop(c, error);
    if (status == STATUS_OK) status = open_rpc(c, error);
    if (status == STATUS_OK) serve(c);
close_all:
    close_all(c);
    return status;
}
