// What cluster.c keeps, for cluster_describe.c too.
#pragma once

#include "coordinator/cluster.h"
#include "proto/link_wire.h"

struct cluster {
    struct cluster_config config;
    struct cluster_outside outside;
    enum cluster_state state;
    uint64_t epoch;
    uint64_t state_since_ms;
    uint64_t retry_at_ms; // no new epoch before
    bool links_up;        // the coordinator's own
    uint32_t stage_id_next;
    uint32_t sequence_count; // of the flow
    struct member *members[CLUSTER_MEMBER_COUNT_MAX];
    uint32_t member_count;
    struct member *slots[PIPELINE_STAGE_COUNT_MAX]; // who owns the layers of stage i, or NULL
    // By link id, of the epoch; zero outside of CONNECTING and RUNNING.
    uint8_t link_keys[PIPELINE_STAGE_COUNT_MAX + 2][LINK_KEY_BYTES];
    char explanation[640];
};
