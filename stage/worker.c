#include "stage/worker.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/memory.h"
#include "proto/frame_pool.h"
#include "stage/feedback.h"

enum {
    ORDER_COUNT_MAX = 64,
    FEEDBACK_LINK_INDEX = 1, // of the links in at the first stage, and out at the last
};

struct worker {
    struct worker_config config;
    struct engine *engine;
    struct io *io;
    struct wake wake; // orders and io events
    struct inbox orders;
    struct worker_stats stats;
    struct step_log step_log;
    atomic_bool is_closing;
    char data_address[300];
    pthread_t thread;

    // The rest belongs to the thread.
    bool is_loaded;  // the engine holds the layers of `epoch`
    bool is_running; // both links of `epoch` are up
    uint64_t epoch;
    uint32_t credit_count;
    struct frame *frames_in[LINK_CREDIT_COUNT_MAX]; // a queue of frames not computed yet
    uint32_t frame_in_first, frame_in_count;
    bool is_checked;         // the oldest of them
    struct frame_view check; // of it, when is_checked
    uint64_t step_last;      // computed last in this epoch
    uint32_t link_out_count;
    // Of each link out; NULL before the first load, and for a link that was never needed.
    struct frame_pool *frames_out[IO_LINK_COUNT_MAX];
    struct feedback *feedback; // NULL: no tokens come back to this stage
};

// -- reports --------------------------------------------------------------------------------------

static void report(struct worker *worker, enum worker_report kind, const void *subject,
                   size_t size_bytes) {
    void *copy = malloc(size_bytes);
    CHECK(copy != NULL);
    memcpy(copy, subject, size_bytes);
    inbox_put(worker->config.reports, worker->config.report_base + (int)kind, copy, NULL);
}

static void report_failure(struct worker *worker, enum worker_failure failure,
                           const struct error *error) {
    struct worker_failed failed = {.epoch = worker->epoch, .failure = failure, .error = *error};
    report(worker, WORKER_FAILED, &failed, sizeof(failed));
}

// -- frames ---------------------------------------------------------------------------------------

static void take_io_events(struct worker *worker);

static void drop_frames_in(struct worker *worker) {
    for (; worker->frame_in_count > 0; worker->frame_in_count--) {
        io_release(worker->io, worker->frames_in[worker->frame_in_first]);
        worker->frame_in_first = (worker->frame_in_first + 1) % LINK_CREDIT_COUNT_MAX;
    }
    worker->is_checked = false;
    atomic_store(&worker->stats.frame_count, 0);
}

// Waits until io has given back all frames of a closed epoch: it does so at once.
static enum status collect_frames_out(struct worker *worker, const struct frame_pool *frames,
                                      struct error *error) {
    uint64_t end_ms = clock_now_ms(&worker->config.clock) + LINK_LOST_MS;
    while (frame_pool_free_count(frames) < frame_pool_count(frames)) {
        take_io_events(worker);
        if (clock_now_ms(&worker->config.clock) > end_ms)
            return error_set(error, STATUS_TIMEOUT, "the data plane keeps frames of a lost link");
        wake_wait(&worker->wake, 10);
    }
    return STATUS_OK;
}

static enum status open_frames_out(struct worker *worker, struct frame_pool **frames,
                                   uint32_t credit_count, struct error *error) {
    size_t capacity_bytes = engine_frame_bytes(worker->engine);
    // One to compute into while all credits are used; io takes no more than it has credits for.
    uint32_t frame_count =
        credit_count < LINK_CREDIT_COUNT_MAX ? credit_count + 1 : LINK_CREDIT_COUNT_MAX;
    if (*frames != NULL) {
        if (frame_pool_count(*frames) == frame_count &&
            frame_pool_capacity_bytes(*frames) == capacity_bytes)
            return STATUS_OK;
        enum status status = collect_frames_out(worker, *frames, error);
        if (status != STATUS_OK) return status;
        frame_pool_close(*frames);
        *frames = NULL;
    }
    enum status status = frame_pool_open(frame_count, capacity_bytes, frames);
    if (status == STATUS_OK) return STATUS_OK;
    return error_set(error, status, "no memory for frames of %zu bytes", capacity_bytes);
}

// What frames need, in and out.
static enum status prepare_frames(struct worker *worker, const struct assignment *assignment,
                                  struct error *error) {
    worker->link_out_count = assignment_sends_tokens(assignment) ? 2 : 1;
    for (uint32_t i = 0; i < worker->link_out_count; i++) {
        enum status status =
            open_frames_out(worker, &worker->frames_out[i], assignment->credit_count, error);
        if (status != STATUS_OK) return status;
    }
    feedback_close(worker->feedback);
    worker->feedback = NULL;
    if (!assignment_takes_tokens(assignment)) return STATUS_OK;
    enum status status = feedback_open(assignment->sequence_count_max, &worker->feedback);
    return status == STATUS_OK ? status : error_set(error, status, "no memory for tokens");
}

// -- orders ---------------------------------------------------------------------------------------

static void stop_links(struct worker *worker) {
    worker->is_running = false;
    drop_frames_in(worker);
    bool is_ordered = io_disconnect(worker->io);
    CHECK(is_ordered);
}

static bool on_progress(void *ctx, uint64_t bytes_done, uint64_t bytes_total) {
    struct worker *worker = ctx;
    atomic_store(&worker->stats.load_bytes_total, bytes_total);
    atomic_store(&worker->stats.load_bytes_done, bytes_done);
    atomic_fetch_add(&worker->stats.load_step_count, 1);
    return !atomic_load(&worker->is_closing);
}

static void load(struct worker *worker, const struct assignment *assignment) {
    stop_links(worker);
    worker->is_loaded = false;
    worker->epoch = assignment->epoch;
    worker->step_last = 0;
    atomic_store(&worker->stats.step_count, 0);
    atomic_store(&worker->stats.busy_ns, 0);
    atomic_store(&worker->stats.row_count, 0);
    atomic_store(&worker->stats.load_bytes_done, 0);
    atomic_store(&worker->stats.load_bytes_total, 0);
    atomic_store(&worker->stats.load_epoch, assignment->epoch);
    uint64_t begin_ms = clock_now_ms(&worker->config.clock);
    struct worker_loaded loaded = {.epoch = assignment->epoch};
    struct error error;
    enum status status =
        engine_load(worker->engine, assignment, on_progress, worker, &loaded.sizes, &error);
    if (status == STATUS_OK) status = prepare_frames(worker, assignment, &error);
    atomic_store(&worker->stats.load_epoch, 0);
    if (status == STATUS_CANCELLED) return;
    if (status != STATUS_OK) {
        log_error("cannot load layers %" PRIu32 "..%" PRIu32 " of %s: %s", assignment->layer_first,
                  assignment->layer_first + assignment->layer_count - 1, assignment->model_path,
                  error.text);
        report_failure(worker, WORKER_FAILED_LOAD, &error);
        return;
    }
    loaded.load_ms = clock_now_ms(&worker->config.clock) - begin_ms;
    worker->credit_count = assignment->credit_count;
    worker->is_loaded = true;
    log_info("epoch %" PRIu64 ": stage %" PRIu32 " of %" PRIu32 ", layers %" PRIu32 "..%" PRIu32
             ": %" PRIu64 " bytes of weights (%" PRIu64
             " bytes mapped and read), KV memory %" PRIu64 " bytes, %" PRIu64 " ms",
             assignment->epoch, assignment->stage_index, assignment->stage_count,
             assignment->layer_first, assignment->layer_first + assignment->layer_count - 1,
             loaded.sizes.weight_bytes, loaded.sizes.mapped_bytes, loaded.sizes.kv_bytes,
             loaded.load_ms);
    report(worker, WORKER_LOADED, &loaded, sizeof(loaded));
}

static void start(struct worker *worker, struct io_ring_position *position) {
    if (!worker->is_loaded || position->epoch != worker->epoch)
        return; // overtaken by a newer epoch
    position->credit_count = worker->credit_count;
    position->frame_bytes_max = engine_frame_bytes(worker->engine);
    bool is_ordered = io_connect(worker->io, position);
    CHECK(is_ordered);
}

// Returns false when the thread must end.
static bool take_orders(struct worker *worker) {
    struct event *event;
    bool goes_on = true;
    while (goes_on && (event = inbox_take(&worker->orders)) != NULL) {
        switch ((enum worker_order)event->kind) {
        case WORKER_LOAD:
            load(worker, event->subject);
            break;
        case WORKER_START:
            start(worker, event->subject);
            memory_wipe(event->subject, sizeof(struct io_ring_position));
            break;
        case WORKER_STOP:
            stop_links(worker);
            break;
        case WORKER_QUIT:
            goes_on = false;
            break;
        }
        free(event->subject);
        event_close(event);
    }
    return goes_on;
}

// -- io events ------------------------------------------------------------------------------------

// A frame was refused: the epoch cannot go on.
static void refuse(struct worker *worker, const struct error *error) {
    log_error("%s", error->text);
    stop_links(worker);
    report_failure(worker, WORKER_FAILED_FRAME, error);
}

// Tokens came back from the last stage.
static void on_result(struct worker *worker, struct frame *frame) {
    struct frame_view result;
    struct error error;
    enum status status = engine_check_result(worker->engine, frame, &result, &error);
    if (status == STATUS_OK) status = feedback_keep(worker->feedback, &result, &error);
    io_release(worker->io, frame);
    if (status != STATUS_OK) refuse(worker, &error);
}

static void on_received(struct worker *worker, const struct io_event *event) {
    bool is_current = event->epoch == worker->epoch && worker->is_loaded;
    if (is_current && event->link_index == FEEDBACK_LINK_INDEX) {
        on_result(worker, event->frame);
        return;
    }
    if (!is_current || worker->frame_in_count == LINK_CREDIT_COUNT_MAX) {
        atomic_fetch_add(&worker->stats.stale_frame_count, 1);
        io_release(worker->io, event->frame);
        return;
    }
    uint32_t at = (worker->frame_in_first + worker->frame_in_count) % LINK_CREDIT_COUNT_MAX;
    worker->frames_in[at] = event->frame;
    worker->frame_in_count++;
    atomic_store(&worker->stats.frame_count, worker->frame_in_count);
}

static void take_io_events(struct worker *worker) {
    struct io_event event;
    while (io_take(worker->io, &event)) {
        bool is_current = event.epoch == worker->epoch;
        switch (event.kind) {
        case IO_UP:
            if (!is_current) break;
            worker->is_running = true;
            report(worker, WORKER_CONNECTED, &(struct worker_connected){event.epoch},
                   sizeof(struct worker_connected));
            break;
        case IO_RECEIVED:
            on_received(worker, &event);
            break;
        case IO_SENT:
            frame_pool_give(worker->frames_out[event.link_index], event.frame);
            break;
        case IO_LOST:
            if (!is_current) break;
            worker->is_running = false;
            drop_frames_in(worker);
            report_failure(worker, WORKER_FAILED_LINK, &event.error);
            break;
        }
    }
}

// -- the thread -----------------------------------------------------------------------------------

static void count_step(struct worker *worker, const struct frame *out, uint64_t received_ns,
                       uint64_t begin_ns) {
    uint64_t end_ns = clock_now_ns(&worker->config.clock);
    const struct frame_header *header = (const struct frame_header *)out->data;
    step_log_write(&worker->step_log, &(struct step_record){.epoch = header->epoch,
                                                            .step = header->step,
                                                            .received_ns = received_ns,
                                                            .begin_ns = begin_ns,
                                                            .end_ns = end_ns});
    atomic_fetch_add(&worker->stats.busy_ns, end_ns - begin_ns);
    atomic_fetch_add(&worker->stats.step_count, 1);
    atomic_fetch_add(&worker->stats.row_count, engine_row_count(worker->engine));
}

static struct frame *take_frame_in(struct worker *worker) {
    struct frame *frame = worker->frames_in[worker->frame_in_first];
    worker->frame_in_first = (worker->frame_in_first + 1) % LINK_CREDIT_COUNT_MAX;
    worker->frame_in_count--;
    atomic_store(&worker->stats.frame_count, worker->frame_in_count);
    worker->is_checked = false;
    return frame;
}

// Checks the oldest frame, once.
static enum status check_frame_in(struct worker *worker, struct error *error) {
    if (worker->is_checked) return STATUS_OK;
    struct frame *frame = worker->frames_in[worker->frame_in_first];
    enum status status = engine_check(worker->engine, frame, &worker->check, error);
    if (status != STATUS_OK) return status;
    uint64_t step = worker->check.header->step;
    // A token that comes back is of an earlier step: it comes, if none is left out.
    if (step != worker->step_last + 1)
        return error_set(error, STATUS_INVALID,
                         "frame is of step %" PRIu64 ", step %" PRIu64 " is next", step,
                         worker->step_last + 1);
    worker->is_checked = true;
    return STATUS_OK;
}

static bool has_frames_out(const struct worker *worker) {
    for (uint32_t i = 0; i < worker->link_out_count; i++)
        if (frame_pool_free_count(worker->frames_out[i]) == 0) return false;
    return true;
}

static void send(struct worker *worker, uint32_t link_index, struct frame *frame) {
    bool is_taken = io_send(worker->io, link_index, frame);
    CHECK(is_taken); // io holds as many as there are frames out
}

// Tokens first go where the next step waits for them.
static void send_out(struct worker *worker, struct frame *out, const struct frame_view *view) {
    if (worker->link_out_count > 1) {
        struct frame *copy = frame_pool_take(worker->frames_out[FEEDBACK_LINK_INDEX]);
        memcpy(copy->data, out->data, out->size_bytes);
        copy->size_bytes = out->size_bytes;
        send(worker, FEEDBACK_LINK_INDEX, copy);
    }
    if (worker->feedback != NULL && view->header->kind == FRAME_RESULT) { // the only stage
        enum status status = feedback_keep(worker->feedback, view, NULL);
        CHECK(status == STATUS_OK); // steps are computed in order
    }
    send(worker, 0, out);
}

static void compute(struct worker *worker) {
    struct frame *out = frame_pool_take(worker->frames_out[0]);
    struct frame_view in_view = worker->check, out_view;
    struct frame *in = take_frame_in(worker);
    uint64_t received_ns = in->received_ns;
    uint64_t begin_ns = clock_now_ns(&worker->config.clock);
    worker->step_last = in_view.header->step;
    engine_step(worker->engine, &in_view, out, &out_view);
    io_release(worker->io, in);
    count_step(worker, out, received_ns, begin_ns);
    send_out(worker, out, &out_view);
}

// Computes the oldest frame, if there is one, its tokens are known, and there are free frames for
// the results.
static bool run_step(struct worker *worker) {
    if (worker->frame_in_count == 0) return false;
    struct error error;
    enum status status = check_frame_in(worker, &error);
    if (status == STATUS_UNAVAILABLE) {
        atomic_fetch_add(&worker->stats.stale_frame_count, 1);
        io_release(worker->io, take_frame_in(worker));
        return true;
    }
    if (status == STATUS_OK && worker->feedback != NULL) {
        if (!feedback_has(worker->feedback, &worker->check)) return false;
        status = feedback_write(worker->feedback, &worker->check, &error);
    }
    if (status != STATUS_OK) {
        refuse(worker, &error);
        return true;
    }
    if (!has_frames_out(worker)) return false;
    compute(worker);
    return true;
}

static void *run(void *ctx) {
    struct worker *worker = ctx;
    backend_enter(worker->config.backend);
    while (take_orders(worker)) {
        take_io_events(worker);
        if (run_step(worker)) continue;
        atomic_store(&worker->stats.is_awake, false);
        wake_wait(&worker->wake, -1);
        atomic_store(&worker->stats.is_awake, true);
    }
    return NULL;
}

// -- life -----------------------------------------------------------------------------------------

static enum status open_io(struct worker *worker, struct error *error) {
    struct io_config config = {.owner_wake = &worker->wake};
    enum status status = io_open(&config, &worker->io);
    if (status != STATUS_OK) return error_set(error, status, "no memory for the io thread");
    struct port_config port_config = io_port_config(worker->io);
    struct port *port;
    status = port_open_ucx(worker->config.data_host, worker->config.data_port, &port_config, &port,
                           error);
    if (status != STATUS_OK) return status;
    snprintf(worker->data_address, sizeof(worker->data_address), "%s", port_address(port));
    status = io_start(worker->io, port);
    return status == STATUS_OK ? status : error_set(error, status, "cannot start the io thread");
}

static void free_parts(struct worker *worker) {
    io_close(worker->io);
    for (uint32_t i = 0; i < IO_LINK_COUNT_MAX; i++)
        frame_pool_close(worker->frames_out[i]);
    feedback_close(worker->feedback);
    engine_close(worker->engine);
    if (worker->orders.ring != NULL) inbox_fini(&worker->orders);
    wake_fini(&worker->wake);
    free(worker);
}

enum status worker_open(const struct worker_config *config, struct worker **worker_out,
                        struct error *error) {
    struct worker *worker = calloc(1, sizeof(*worker));
    if (worker == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    worker->config = *config;
    enum status status = wake_init(&worker->wake);
    if (status != STATUS_OK) {
        free(worker);
        return error_set(error, status, "no eventfd for the compute thread");
    }
    status = inbox_init(&worker->orders, ORDER_COUNT_MAX, &worker->wake);
    if (status == STATUS_OK) status = engine_open(config->backend, config->clock, &worker->engine);
    if (status != STATUS_OK) {
        error_set(error, status, "no memory");
        goto free_parts;
    }
    status = open_io(worker, error);
    if (status != STATUS_OK) goto free_parts;
    if (pthread_create(&worker->thread, NULL, run, worker) != 0) {
        status = error_set(error, STATUS_IO, "cannot start the compute thread");
        goto free_parts;
    }
    *worker_out = worker;
    return STATUS_OK;
free_parts:
    free_parts(worker);
    return status;
}

void worker_close(struct worker *worker) {
    if (worker == NULL) return;
    atomic_store(&worker->is_closing, true);
    worker_order(worker, WORKER_QUIT, NULL);
    pthread_join(worker->thread, NULL);
    free_parts(worker);
}

const char *worker_data_address(const struct worker *worker) {
    return worker->data_address;
}

const struct worker_stats *worker_stats(const struct worker *worker) {
    return &worker->stats;
}

uint64_t worker_refused_count(const struct worker *worker) {
    return io_refused_count(worker->io);
}

bool worker_is_working(const struct worker *worker) {
    // Awake, or told to wake up.
    return atomic_load(&worker->stats.is_awake) || wake_is_pending(&worker->wake);
}

uint64_t worker_progress_count(const struct worker *worker) {
    return engine_progress_count(worker->engine) + atomic_load(&worker->stats.load_step_count);
}

struct step_log *worker_step_log(struct worker *worker) {
    return &worker->step_log;
}

void worker_order(struct worker *worker, enum worker_order order, void *subject) {
    inbox_put(&worker->orders, (int)order, subject, NULL);
}
