// What operators are told of a cluster.
#include "coordinator/cluster_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"

static const struct member *failed_member(const struct cluster *cluster) {
    for (uint32_t i = 0; i < cluster->member_count; i++)
        if (cluster->members[i]->state == MEMBER_FAILED) return cluster->members[i];
    return NULL;
}

static void explain_waiting(struct cluster *cluster) {
    uint32_t wanted = cluster->config.plan.stage_count, have = 0;
    for (uint32_t i = 0; i < cluster->member_count; i++) {
        enum member_state state = cluster->members[i]->state;
        have += state != MEMBER_SILENT && state != MEMBER_FAILED ? 1 : 0;
    }
    const struct member *failed = failed_member(cluster);
    if (failed != NULL)
        snprintf(cluster->explanation, sizeof(cluster->explanation),
                 "waiting for %" PRIu32 " stages, %" PRIu32
                 " have joined; stage '%s' failed: %.500s",
                 wanted, have, failed->name, failed->error);
    else
        snprintf(cluster->explanation, sizeof(cluster->explanation),
                 "waiting for %" PRIu32 " stages, %" PRIu32 " have joined", wanted, have);
}

const char *cluster_explanation(const struct cluster *cluster) {
    switch (cluster->state) {
    case CLUSTER_WAITING:
        explain_waiting((struct cluster *)cluster);
        return cluster->explanation;
    case CLUSTER_LOADING:
        return "stages load their layers";
    case CLUSTER_CONNECTING:
        return "links between stages are being made";
    case CLUSTER_RUNNING:
        break;
    }
    return "running";
}

static Stagecoach__V1__StageState describe_state(enum member_state state) {
    switch (state) {
    case MEMBER_LOADING:
        return STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADING;
    case MEMBER_LOADED:
        return STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADED;
    case MEMBER_CONNECTING:
        return STAGECOACH__V1__STAGE_STATE__STAGE_STATE_CONNECTING;
    case MEMBER_RUNNING:
        return STAGECOACH__V1__STAGE_STATE__STAGE_STATE_RUNNING;
    case MEMBER_FAILED:
        return STAGECOACH__V1__STAGE_STATE__STAGE_STATE_FAILED;
    case MEMBER_SILENT:
    case MEMBER_JOINED:
        break;
    }
    return STAGECOACH__V1__STAGE_STATE__STAGE_STATE_JOINED;
}

static void describe_member(const struct cluster *cluster, struct member *member,
                            Stagecoach__V1__Stage *out) {
    stagecoach__v1__stage__init(out);
    out->stage_id = member->stage_id;
    out->name = member->name;
    out->state = describe_state(member->state);
    if (member->has_layers) {
        out->stage_index = member->stage_index;
        out->layer_first = cluster->config.plan.layer_firsts[member->stage_index];
        out->layer_count = cluster->config.plan.layer_counts[member->stage_index];
    }
    out->data_address = member->data_address;
    out->kernel_variant = member->kernel_variant;
    out->thread_count = member->thread_count;
    out->weight_bytes = member->weight_bytes;
    out->mapped_bytes = member->mapped_bytes;
    out->kv_bytes = member->kv_bytes;
    out->load_ms = member->load_ms;
    out->load_bytes_done = member->load_bytes_done;
    out->load_bytes_total = member->load_bytes_total;
    out->error = member->error;
    out->step_count = member->step_count;
    out->busy_ns = member->busy_ns;
    out->row_count = member->row_count;
    out->refused_count = member->refused_count;
    if (!member->clock_offset.is_same_clock) {
        out->clock_offset_ns = member->clock_offset.best.offset_ns;
        out->clock_round_trip_ns = member->clock_offset.best.round_trip_ns;
    }
    out->heartbeat_age_ms = clock_now_ms(&cluster->config.clock) - member->heard_ms;
}

static enum status append_stage(const struct cluster *cluster, struct member *member,
                                Stagecoach__V1__Pipeline *pipeline) {
    Stagecoach__V1__Stage *stage = malloc(sizeof(*stage));
    if (stage == NULL) return STATUS_NO_MEMORY;
    describe_member(cluster, member, stage);
    pipeline->stages[pipeline->n_stages++] = stage;
    return STATUS_OK;
}

enum status cluster_describe(struct cluster *cluster, Stagecoach__V1__Pipeline *pipeline) {
    static const Stagecoach__V1__PipelineState states[] = {
        [CLUSTER_WAITING] = STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_WAITING,
        [CLUSTER_LOADING] = STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_LOADING,
        [CLUSTER_CONNECTING] = STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_CONNECTING,
        [CLUSTER_RUNNING] = STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING,
    };
    pipeline->state = states[cluster->state];
    pipeline->explanation = (char *)cluster_explanation(cluster);
    pipeline->epoch = cluster->epoch;
    pipeline->encrypts = cluster->config.encrypts;
    pipeline->stage_count = cluster->config.plan.stage_count;
    pipeline->stages = memory_array(cluster->member_count, sizeof(*pipeline->stages));
    if (pipeline->stages == NULL) return STATUS_NO_MEMORY;
    for (uint32_t i = 0; i < cluster->config.plan.stage_count; i++) {
        if (cluster->slots[i] == NULL) continue;
        if (append_stage(cluster, cluster->slots[i], pipeline) != STATUS_OK)
            return STATUS_NO_MEMORY;
    }
    for (uint32_t i = 0; i < cluster->member_count; i++) {
        struct member *member = cluster->members[i];
        if (member->has_layers || member->state == MEMBER_SILENT) continue;
        if (append_stage(cluster, member, pipeline) != STATUS_OK) return STATUS_NO_MEMORY;
    }
    return STATUS_OK;
}
