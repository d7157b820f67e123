// world: everything of one simulation.
#pragma once

#include "client/simulate/service.h"
#include "client/simulate/simulation.h"
#include "coordinator/flow.h"

enum client_state { CLIENT_COMING, CLIENT_WAITING, CLIENT_ENDED };

// A client and its only request.
struct client {
    struct sequence sequence;
    enum client_state state;
    uint32_t index;
    uint32_t *expected; // tokens of the request alone: the prompt and all that may follow
    uint32_t expected_count;
    uint32_t issued_end;    // first position that this run has not sent yet
    uint64_t issued_run_id; // that issued_end is about
    uint64_t come_ns, first_token_ns;
};

struct world {
    struct simulation_settings settings; // drawn
    struct simulation_report *report;
    uint64_t now_ns;
    uint64_t draw_count, key_draw_count;
    struct agenda agenda;
    struct parcel *parcels; // all
    struct parcel *parcels_free;

    struct actor coordinator;
    struct flow *flow;
    struct dock dock; // the coordinator's
    uint8_t digest[8];
    struct frame_limits limits; // of STEP frames; epoch and payload are each stage's
    struct plan plan;
    uint32_t credit_count;
    uint32_t in_flight_count; // steps sent, whose result has not come
    uint64_t sending_epoch;   // 0: none

    struct service *services;
    uint32_t service_count;
    struct wire *wires;
    struct stream *streams;

    struct client *clients;
    uint32_t client_count, ended_count;
    uint32_t begun_count; // that have a token
    bool is_prompt_drawn, is_token_count_drawn;
    uint64_t *scratch;       // of toy_alone
    uint64_t *row_values;    // of a microbatch on its first stage
    uint32_t stop_modulus;   // tokens that are 0 modulo this end a request; 0: none does
    uint32_t *holder_counts; // of each block, for the checks
    uint64_t fault_end_ns;   // none comes after
};

// A rule is broken; the first one is kept and ends the simulation.
void world_fail(struct world *world, const char *format, ...) PRINTF_LIKE(2, 3);
static inline bool world_has_failed(const struct world *world) {
    return world->report->failure[0] != '\0';
}

// From 0 to limit - 1.
uint64_t world_draw(struct world *world, uint64_t limit);
// Whether, so many times in a thousand.
bool world_chance(struct world *world, uint32_t permille);
static inline uint64_t world_number(const struct world *world, enum simulation_number number) {
    return world->settings.numbers[number];
}
static inline bool world_has(const struct world *world, enum simulation_fault fault) {
    return (world->settings.faults & fault) != 0;
}
// How long something takes from one machine to another, this time.
uint64_t world_hop_ns(struct world *world);

void world_put(struct world *world, uint64_t after_ns, struct actor *actor, happening_fn *run,
               void *subject, uint64_t tag);

// All requests have their first token; the first one has ended.
void world_begin_steady(struct world *world);
void world_end_steady(struct world *world);

// Around the coordinator's code; world_leave lets it act on what happened.
void world_enter(struct world *world);
void world_leave(struct world *world);
