// cluster: the stages that have joined, who owns which layers, and the epoch in force. A state
// machine without I/O: it is told what happened and what time it is, and sends control messages
// through the functions it was given.
//
//   WAITING    -> LOADING     every stage of the plan has a member: a new epoch begins
//   LOADING    -> CONNECTING  every member has loaded its layers
//   CONNECTING -> RUNNING     every member and the coordinator have both links up
//   any        -> WAITING     a member is lost or failed, or a link of the epoch is lost
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "coordinator/clock_offset.h"
#include "coordinator/plan.h"
#include "coordinator/timeline.h"
#include "stagecoach/v1/admin.pb-c.h"
#include "stagecoach/v1/control.pb-c.h"

enum { CONTROL_PROTOCOL_VERSION = 4 };

enum cluster_state { CLUSTER_WAITING, CLUSTER_LOADING, CLUSTER_CONNECTING, CLUSTER_RUNNING };

enum member_state {
    MEMBER_SILENT, // the stream is open, hello has not come
    MEMBER_JOINED, // no layers
    MEMBER_LOADING,
    MEMBER_LOADED,
    MEMBER_CONNECTING,
    MEMBER_RUNNING,
    MEMBER_FAILED, // cannot serve this model
};

// One Join stream. Made by the owner of the stream, who also frees it after cluster_leave().
struct member {
    void *stream;       // the owner's; passed back to the functions below
    char peer_host[64]; // where the call came from
    uint32_t stage_id;
    enum member_state state;
    bool has_layers;
    uint32_t stage_index; // when has_layers
    char name[65];
    char data_address[256];
    char kernel_variant[17];
    uint32_t thread_count;
    uint64_t heard_ms;
    uint64_t weight_bytes, mapped_bytes, kv_bytes, load_ms;
    uint64_t load_bytes_done, load_bytes_total;
    uint64_t step_count, busy_ns, row_count, progress_count;
    uint64_t refused_count; // by its data plane
    struct clock_offset clock_offset;
    char error[512];
};

struct cluster_outside {
    // Sends a message; losing it is the same as losing the member.
    void (*send)(void *ctx, struct member *member,
                 const Stagecoach__V1__CoordinatorMessage *message);
    // Ends the stream with a sentence; cluster_leave() follows from the owner. is_refusal: the
    // stage should not try again as it is.
    void (*drop)(void *ctx, struct member *member, bool is_refusal, const char *message);
    // Random bytes, fit for keys.
    void (*draw)(void *ctx, void *out, size_t size_bytes);
    void *ctx;
};

struct cluster_config {
    struct clock clock;
    struct plan plan;
    // Everything of Assignment but epoch, stage_index, layer_first and layer_count.
    Stagecoach__V1__Assignment assignment;
    const char *data_address;  // where the last stage reaches the coordinator
    const char *clock_id;      // of `clock`, as in Hello; NULL: shared with no stage
    bool encrypts;             // links encrypt
    struct timeline *timeline; // borrowed; gets what stages report of their steps; NULL: nobody
};

struct cluster;

MUST_USE enum status cluster_open(const struct cluster_config *config,
                                  const struct cluster_outside *outside,
                                  struct cluster **cluster_out);
void cluster_close(struct cluster *cluster); // NULL allowed

// -- what happened --------------------------------------------------------------------------------

// A stream was opened. False when CLUSTER_MEMBER_COUNT_MAX is reached (the member was dropped and
// is not kept).
bool cluster_join(struct cluster *cluster, struct member *member);
void cluster_message(struct cluster *cluster, struct member *member,
                     const Stagecoach__V1__StageMessage *message);
// The stream is over; the member is the owner's alone afterwards.
void cluster_leave(struct cluster *cluster, struct member *member);
// The coordinator's own links.
void cluster_links_up(struct cluster *cluster, uint64_t epoch);
void cluster_links_lost(struct cluster *cluster, uint64_t epoch, const char *reason);

// Answers that are computed or wait: what stages are told that want to stop.
void cluster_set_sequence_count(struct cluster *cluster, uint32_t sequence_count);

// Acts on all of it and on the time that has passed. Call after each of the above and every 100 ms.
void cluster_tick(struct cluster *cluster);

// -- what is so -----------------------------------------------------------------------------------

enum cluster_state cluster_state(const struct cluster *cluster);
// The epoch that is being made or is in force; 0 before the first.
uint64_t cluster_epoch(const struct cluster *cluster);
// One sentence: what it waits for, or that it runs.
const char *cluster_explanation(const struct cluster *cluster);
// Where stage 0 listens; valid in CONNECTING and RUNNING.
const char *cluster_first_address(const struct cluster *cluster);
// The key of a link of the epoch, LINK_KEY_BYTES; valid in CONNECTING and RUNNING. docs/protocol.md
// numbers the links.
const uint8_t *cluster_link_key(const struct cluster *cluster, uint32_t link_id);
bool cluster_encrypts(const struct cluster *cluster);
// Moves when any stage of the epoch tells that it has computed something.
uint64_t cluster_progress_count(const struct cluster *cluster);
// Fills state, explanation, epoch and stages of `pipeline`. The stage messages are the caller's to
// free with free() each, and the array.
MUST_USE enum status cluster_describe(struct cluster *cluster, Stagecoach__V1__Pipeline *pipeline);
