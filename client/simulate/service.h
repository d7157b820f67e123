// service: a simulated stage service: what stage/control and stage/worker do, with a toy for a
// model and a virtual clock. Tokens come back through the stage's own stage/feedback.
#pragma once

#include "client/simulate/stream.h"
#include "client/simulate/wire.h"
#include "stage/feedback.h"

enum { SERVICE_ORDER_COUNT_MAX = 64 };

// What its main thread has told its compute thread.
struct order {
    enum { ORDER_LOAD, ORDER_START, ORDER_STOP } kind;
    uint64_t epoch;
    uint32_t stage_index, stage_count, layer_first, layer_count, credit_count;
    uint32_t token_lag_max;
    char address[32];          // ORDER_START: of the next one
    char feedback_address[32]; // ORDER_START: of stage 0, for the last of several
    uint8_t in_key[LINK_KEY_BYTES], next_key[LINK_KEY_BYTES], feedback_key[LINK_KEY_BYTES];
};

struct service {
    struct world *world;
    struct actor actor;
    uint32_t index;
    char name[16];
    bool is_alive;
    bool fails_load; // the next one
    // The main thread.
    struct stream *stream;
    uint64_t control_epoch;
    uint64_t heard_ns, heartbeat_ns;
    uint64_t dial_wait_ms;
    // The compute thread.
    struct order orders[SERVICE_ORDER_COUNT_MAX];
    uint32_t order_first, order_count;
    bool is_busy; // loading or computing
    bool is_loaded;
    struct order assignment; // in force when is_loaded
    uint64_t epoch;
    uint32_t kept_first, kept_count; // layers that lie in memory
    uint64_t *cells;                 // [layer][block * 32 + position]
    struct dock dock;
    struct parcels in;
    struct wire *in_wire; // that `in` came over
    bool owes_credit;     // for the frame being computed
    struct parcel *out;   // being computed
    uint32_t out_count;   // handed to the dock, not sent yet
    uint32_t copy_count;  // the same of RESULTs for stage 0
    uint64_t step_last;
    struct feedback *feedback; // NULL: no tokens come back to this stage
    uint64_t busy_since_ns, busy_ns, step_count, row_count;
};

void service_open(struct world *world, struct service *service, uint32_t index);
void service_close(struct world *world, struct service *service);
// The process starts, or dies; peers notice its death after notice_ns.
void service_start(struct world *world, struct service *service);
void service_kill(struct world *world, struct service *service, uint64_t notice_ns);

// -- from its stream and its dock -----------------------------------------------------------------
void service_on_message(struct world *world, struct service *service,
                        const Stagecoach__V1__CoordinatorMessage *message);
void service_on_end(struct world *world, struct service *service, bool is_refusal);

// The compute thread does what there is to do.
void service_work(struct world *world, struct service *service);
void service_fail(struct world *world, struct service *service, Stagecoach__V1__FailureKind kind,
                  const char *reason);

// -- a step ---------------------------------------------------------------------------------------
// What a step of `in` comes to.
struct service_cost {
    uint32_t row_count;
    uint64_t attended_count;
    uint64_t compute_ns;
};
// Computes `in`; *out_out is the frame for the next one. STATUS_UNAVAILABLE: stale, drop it.
// STATUS_INVALID: the frame is wrong.
MUST_USE enum status service_step(struct world *world, struct service *service, struct parcel *in,
                                  struct parcel **out_out, struct service_cost *cost_out,
                                  struct error *error);
// Stage 0 has the tokens that this frame waits for, or the frame is wrong.
bool service_has_tokens(const struct service *service, const struct parcel *in);
// A RESULT came to stage 0: taken. An error: it is wrong.
MUST_USE enum status service_keep_result(struct world *world, struct service *service,
                                         struct parcel *parcel, struct error *error);

// Computing until now, the step in hand included.
uint64_t service_busy_ns(const struct world *world, const struct service *service);
