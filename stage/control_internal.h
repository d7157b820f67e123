// What control.c keeps, for control_send.c too: what a stage says on its Join stream.
#pragma once

#include "base/address.h"
#include "base/limits.h"
#include "stage/control.h"
#include "stage/worker.h"
#include "stagecoach/v1/control.pb-c.h"
#include "transport/rpc.h"

// The steps of one heartbeat.
struct heartbeat_steps {
    struct step_record records[HEARTBEAT_STEP_COUNT_MAX];
    Stagecoach__V1__StepTimes messages[HEARTBEAT_STEP_COUNT_MAX];
    Stagecoach__V1__StepTimes *pointers[HEARTBEAT_STEP_COUNT_MAX];
};

struct control {
    const struct settings *settings;
    struct clock clock;
    struct wake wake;
    struct inbox inbox;
    struct backend *backend;
    struct worker *worker;
    struct rpc *rpc;
    struct rpc_access *access;
    struct rpc_channel *channel;
    struct service *service; // NULL: no --listen
    struct rpc_call *call;   // the Join stream, or NULL
    char name[65];
    char coordinator_host[ADDRESS_HOST_BYTES_MAX + 1];
    bool is_joined;    // the coordinator has said something on this stream
    bool has_layers;   // this stream gave it an assignment that it can serve
    bool is_connected; // the links of the epoch are up
    uint64_t epoch;
    struct assignment assignment; // of the epoch
    bool is_leaving;              // asked to stop
    uint64_t leave_by_ms;
    uint32_t sequence_count; // that the coordinator has said since it is leaving
    uint64_t dial_at_ms, dial_wait_ms;
    uint64_t heard_ms, heartbeat_ms;
    uint64_t heard_sent_ns, heard_ns; // the coordinator's last heartbeat: its stamp, our time
    char clock_id[CLOCK_ID_BYTES_MAX + 1];
    struct heartbeat_steps steps;
    enum status final_status; // not OK: refused for good
    struct error *final_error;
};

// Each sends one message, or nothing when there is no stream; the main thread's.
void control_send_hello(struct control *control);
void control_send_progress(struct control *control); // while layers are loaded
void control_send_heartbeat(struct control *control);
void control_send_loaded(struct control *control, const struct worker_loaded *report);
void control_send_connected(struct control *control, const struct worker_connected *report);
void control_send_failed(struct control *control, const struct worker_failed *report);
