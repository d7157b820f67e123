#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "stage/control_internal.h"

enum { PROTOCOL_VERSION = 4 };

static void send_message(struct control *control, const Stagecoach__V1__StageMessage *message) {
    if (control->call == NULL) return;
    // The coordinator takes everything at once; a queue that is full is a lost coordinator.
    if (!rpc_call_send(control->call, &message->base)) rpc_call_cancel(control->call);
}

static uint64_t memory_bytes(void) {
    long page_count = sysconf(_SC_AVPHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    return page_count > 0 && page_bytes > 0 ? (uint64_t)page_count * (uint64_t)page_bytes : 0;
}

void control_send_hello(struct control *control) {
    const char *address = worker_data_address(control->worker);
    struct address listen;
    bool is_wildcard =
        address_parse(address, &listen, NULL) == STATUS_OK && address_is_wildcard(listen.host);
    Stagecoach__V1__Hello hello = STAGECOACH__V1__HELLO__INIT;
    hello.protocol_version = PROTOCOL_VERSION;
    hello.name = control->name;
    hello.version = (char *)STAGECOACH_VERSION;
    // On every interface: the coordinator puts in the host that our call comes from.
    hello.data_address = (char *)(is_wildcard ? strrchr(address, ':') : address);
    hello.thread_count = backend_thread_count(control->backend);
    hello.kernel_variant = (char *)backend_variant(control->backend);
    hello.memory_bytes = memory_bytes();
    hello.clock_id = control->clock_id;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HELLO;
    message.hello = &hello;
    send_message(control, &message);
}

void control_send_progress(struct control *control) {
    const struct worker_stats *stats = worker_stats(control->worker);
    Stagecoach__V1__LoadProgress progress = STAGECOACH__V1__LOAD_PROGRESS__INIT;
    progress.epoch = atomic_load(&stats->load_epoch);
    progress.bytes_done = atomic_load(&stats->load_bytes_done);
    progress.bytes_total = atomic_load(&stats->load_bytes_total);
    if (progress.epoch == 0 || progress.bytes_total == 0) return;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_LOAD_PROGRESS;
    message.load_progress = &progress;
    send_message(control, &message);
    log_info("loading: %.0f of %.0f MB", (double)progress.bytes_done / 1e6,
             (double)progress.bytes_total / 1e6);
}

// Those of former epochs are dropped. They stay valid until the next call.
static void add_steps(struct control *control, Stagecoach__V1__Heartbeat *heartbeat) {
    struct heartbeat_steps *steps = &control->steps;
    uint32_t count =
        step_log_take(worker_step_log(control->worker), steps->records, HEARTBEAT_STEP_COUNT_MAX);
    for (uint32_t i = 0; i < count; i++) {
        const struct step_record *record = &steps->records[i];
        if (record->epoch != heartbeat->epoch) continue;
        Stagecoach__V1__StepTimes *message = &steps->messages[i];
        stagecoach__v1__step_times__init(message);
        message->step = record->step;
        message->received_ns = record->received_ns;
        message->begin_ns = record->begin_ns;
        message->end_ns = record->end_ns;
        steps->pointers[heartbeat->n_steps++] = message;
    }
    heartbeat->steps = steps->pointers;
}

void control_send_heartbeat(struct control *control) {
    const struct worker_stats *stats = worker_stats(control->worker);
    Stagecoach__V1__Heartbeat heartbeat = STAGECOACH__V1__HEARTBEAT__INIT;
    heartbeat.epoch = control->epoch;
    heartbeat.step_count = atomic_load(&stats->step_count);
    heartbeat.busy_ns = atomic_load(&stats->busy_ns);
    heartbeat.row_count = atomic_load(&stats->row_count);
    heartbeat.refused_count = worker_refused_count(control->worker);
    heartbeat.progress_count = worker_progress_count(control->worker);
    add_steps(control, &heartbeat);
    heartbeat.heard_sent_ns = control->heard_sent_ns;
    heartbeat.heard_ns = control->heard_ns;
    heartbeat.sent_ns = clock_now_ns(&control->clock);
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HEARTBEAT;
    message.heartbeat = &heartbeat;
    send_message(control, &message);
}

void control_send_loaded(struct control *control, const struct worker_loaded *report) {
    Stagecoach__V1__Loaded loaded = STAGECOACH__V1__LOADED__INIT;
    loaded.epoch = report->epoch;
    loaded.weight_bytes = report->sizes.weight_bytes;
    loaded.mapped_bytes = report->sizes.mapped_bytes;
    loaded.kv_bytes = report->sizes.kv_bytes;
    loaded.load_ms = report->load_ms;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_LOADED;
    message.loaded = &loaded;
    send_message(control, &message);
}

void control_send_connected(struct control *control, const struct worker_connected *report) {
    Stagecoach__V1__Connected connected = STAGECOACH__V1__CONNECTED__INIT;
    connected.epoch = report->epoch;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_CONNECTED;
    message.connected = &connected;
    send_message(control, &message);
}

void control_send_failed(struct control *control, const struct worker_failed *report) {
    static const Stagecoach__V1__FailureKind kinds[] = {
        [WORKER_FAILED_LOAD] = STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_LOAD,
        [WORKER_FAILED_LINK] = STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_LINK,
        [WORKER_FAILED_FRAME] = STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_FRAME,
    };
    Stagecoach__V1__Failed failed = STAGECOACH__V1__FAILED__INIT;
    failed.epoch = report->epoch;
    failed.kind = kinds[report->failure];
    failed.message = (char *)report->error.text;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_FAILED;
    message.failed = &failed;
    send_message(control, &message);
}
