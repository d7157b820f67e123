#include "coordinator/cluster_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"

enum status cluster_open(const struct cluster_config *config, const struct cluster_outside *outside,
                         struct cluster **cluster_out) {
    struct cluster *cluster = calloc(1, sizeof(*cluster));
    if (cluster == NULL) return STATUS_NO_MEMORY;
    cluster->config = *config;
    cluster->outside = *outside;
    *cluster_out = cluster;
    return STATUS_OK;
}

static void wipe_keys(struct cluster *cluster) {
    memory_wipe(cluster->link_keys, sizeof(cluster->link_keys));
}

void cluster_close(struct cluster *cluster) {
    if (cluster != NULL) wipe_keys(cluster);
    free(cluster);
}

static void enter(struct cluster *cluster, enum cluster_state state) {
    cluster->state = state;
    cluster->state_since_ms = clock_now_ms(&cluster->config.clock);
}

static void set_slot_states(struct cluster *cluster, enum member_state state) {
    for (uint32_t i = 0; i < cluster->config.plan.stage_count; i++)
        cluster->slots[i]->state = state;
}

// The epoch is over: frames of it are worthless. Members keep what they have loaded.
static void fail_epoch(struct cluster *cluster, const char *reason) {
    if (cluster->state == CLUSTER_WAITING) return;
    log_warn("epoch %" PRIu64 " ends: %s", cluster->epoch, reason);
    enter(cluster, CLUSTER_WAITING);
    wipe_keys(cluster);
    cluster->links_up = false;
    cluster->retry_at_ms = cluster->state_since_ms + CLUSTER_RETRY_MS;
}

static void vacate(struct cluster *cluster, struct member *member) {
    if (!member->has_layers) return;
    CHECK(cluster->slots[member->stage_index] == member);
    cluster->slots[member->stage_index] = NULL;
    member->has_layers = false;
}

// -- messages of stages ---------------------------------------------------------------------------

bool cluster_join(struct cluster *cluster, struct member *member) {
    if (cluster->member_count == CLUSTER_MEMBER_COUNT_MAX) {
        cluster->outside.drop(cluster->outside.ctx, member, false,
                              "too many stages have joined this coordinator");
        return false;
    }
    member->stage_id = ++cluster->stage_id_next;
    member->state = MEMBER_SILENT;
    member->heard_ms = clock_now_ms(&cluster->config.clock);
    cluster->members[cluster->member_count++] = member;
    return true;
}

static bool copy_text(char *out, size_t capacity_bytes, const char *text) {
    size_t size_bytes = strlen(text);
    if (size_bytes >= capacity_bytes) return false;
    memcpy(out, text, size_bytes + 1);
    return true;
}

// "host:port" as the stage gave it, or the host its call came from before ":port".
static bool read_data_address(struct member *member, const char *address) {
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon[1] == '\0') return false;
    if (colon != address)
        return copy_text(member->data_address, sizeof(member->data_address), address);
    bool is_ipv6 = strchr(member->peer_host, ':') != NULL;
    int size = snprintf(member->data_address, sizeof(member->data_address),
                        is_ipv6 ? "[%s]%s" : "%s%s", member->peer_host, address);
    return size > 0 && (size_t)size < sizeof(member->data_address) && member->peer_host[0] != '\0';
}

static bool is_name_taken(const struct cluster *cluster, const struct member *member) {
    for (uint32_t i = 0; i < cluster->member_count; i++) {
        const struct member *other = cluster->members[i];
        if (other != member && other->state != MEMBER_SILENT &&
            strcmp(other->name, member->name) == 0)
            return true;
    }
    return false;
}

static void on_hello(struct cluster *cluster, struct member *member,
                     const Stagecoach__V1__Hello *hello) {
    char text[256] = "";
    bool is_refusal = true;
    if (hello->protocol_version != CONTROL_PROTOCOL_VERSION) {
        snprintf(text, sizeof(text), "protocol_version is %" PRIu32 ", this coordinator speaks %d",
                 hello->protocol_version, CONTROL_PROTOCOL_VERSION);
    } else if (hello->name[0] == '\0' ||
               !copy_text(member->name, sizeof(member->name), hello->name)) {
        snprintf(text, sizeof(text), "name must have 1 to %zu bytes", sizeof(member->name) - 1);
    } else if (is_name_taken(cluster, member)) {
        // A restarted stage may come back before its old stream is known to be dead.
        is_refusal = false;
        snprintf(text, sizeof(text), "a stage named '%s' has joined already", member->name);
    } else if (!read_data_address(member, hello->data_address)) {
        snprintf(text, sizeof(text), "data_address '%.100s' is not host:port", hello->data_address);
    } else if (!copy_text(member->kernel_variant, sizeof(member->kernel_variant),
                          hello->kernel_variant)) {
        snprintf(text, sizeof(text), "kernel_variant is too long");
    }
    if (text[0] != '\0') {
        cluster->outside.drop(cluster->outside.ctx, member, is_refusal, text);
        return;
    }
    member->thread_count = hello->thread_count;
    const char *clock_id = cluster->config.clock_id;
    member->clock_offset.is_same_clock =
        clock_id != NULL && clock_id[0] != '\0' && strcmp(clock_id, hello->clock_id) == 0;
    member->state = MEMBER_JOINED;
    log_info("stage '%s' (id %" PRIu32 ") joined from %s, data at %s, %s kernels, %" PRIu32
             " threads",
             member->name, member->stage_id, member->peer_host, member->data_address,
             member->kernel_variant, member->thread_count);
    Stagecoach__V1__Welcome welcome = STAGECOACH__V1__WELCOME__INIT;
    welcome.stage_id = member->stage_id;
    welcome.version = (char *)STAGECOACH_VERSION;
    Stagecoach__V1__CoordinatorMessage message = STAGECOACH__V1__COORDINATOR_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_WELCOME;
    message.welcome = &welcome;
    cluster->outside.send(cluster->outside.ctx, member, &message);
}

static void on_loaded(struct cluster *cluster, struct member *member,
                      const Stagecoach__V1__Loaded *loaded) {
    if (loaded->epoch != cluster->epoch || member->state != MEMBER_LOADING) return;
    member->state = MEMBER_LOADED;
    member->weight_bytes = loaded->weight_bytes;
    member->mapped_bytes = loaded->mapped_bytes;
    member->kv_bytes = loaded->kv_bytes;
    member->load_ms = loaded->load_ms;
    log_info("stage %" PRIu32 " '%s' loaded %.1f MB of weights in %" PRIu64
             " ms, KV memory %.1f MB",
             member->stage_index, member->name, (double)loaded->weight_bytes / 1e6, loaded->load_ms,
             (double)loaded->kv_bytes / 1e6);
}

static void on_failed(struct cluster *cluster, struct member *member,
                      const Stagecoach__V1__Failed *failed) {
    if (failed->epoch != cluster->epoch || !member->has_layers) return;
    snprintf(member->error, sizeof(member->error), "%s", failed->message);
    char reason[640];
    snprintf(reason, sizeof(reason), "stage %" PRIu32 " '%s': %.500s", member->stage_index,
             member->name, failed->message);
    if (failed->kind == STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_LOAD) {
        log_error("%s", reason);
        vacate(cluster, member);
        member->state = MEMBER_FAILED;
    }
    fail_epoch(cluster, reason);
}

// Tells the timeline, with times on our clock.
static void record_steps(struct cluster *cluster, const struct member *member,
                         const Stagecoach__V1__Heartbeat *heartbeat) {
    const struct clock_offset *offset = &member->clock_offset;
    if (cluster->config.timeline == NULL || !member->has_layers || !clock_offset_is_known(offset))
        return;
    for (size_t i = 0; i < heartbeat->n_steps; i++) {
        const Stagecoach__V1__StepTimes *step = heartbeat->steps[i];
        struct timeline_record record = {
            .step = step->step,
            .received_ns = clock_offset_to_ours(offset, step->received_ns),
            .begin_ns = clock_offset_to_ours(offset, step->begin_ns),
            .end_ns = clock_offset_to_ours(offset, step->end_ns),
        };
        timeline_record(cluster->config.timeline, member->stage_index, &record);
    }
}

static void on_heartbeat(struct cluster *cluster, struct member *member,
                         const Stagecoach__V1__Heartbeat *heartbeat) {
    uint64_t now_ns = clock_now_ns(&cluster->config.clock);
    if (heartbeat->heard_sent_ns != 0)
        clock_offset_observe(&member->clock_offset, heartbeat->heard_sent_ns, heartbeat->heard_ns,
                             heartbeat->sent_ns, now_ns);
    if (heartbeat->epoch == cluster->epoch) {
        record_steps(cluster, member, heartbeat);
        member->step_count = heartbeat->step_count;
        member->busy_ns = heartbeat->busy_ns;
        member->row_count = heartbeat->row_count;
        member->progress_count = heartbeat->progress_count;
    }
    member->refused_count = heartbeat->refused_count;
    Stagecoach__V1__Heartbeat reply = STAGECOACH__V1__HEARTBEAT__INIT;
    reply.epoch = cluster->epoch;
    reply.sent_ns = clock_now_ns(&cluster->config.clock);
    reply.sequence_count = cluster->sequence_count;
    Stagecoach__V1__CoordinatorMessage message = STAGECOACH__V1__COORDINATOR_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_HEARTBEAT;
    message.heartbeat = &reply;
    cluster->outside.send(cluster->outside.ctx, member, &message);
}

void cluster_message(struct cluster *cluster, struct member *member,
                     const Stagecoach__V1__StageMessage *message) {
    member->heard_ms = clock_now_ms(&cluster->config.clock);
    bool is_hello = message->kind_case == STAGECOACH__V1__STAGE_MESSAGE__KIND_HELLO;
    if (is_hello != (member->state == MEMBER_SILENT)) {
        cluster->outside.drop(cluster->outside.ctx, member, true,
                              "the first message, and no other, must be hello");
        return;
    }
    switch (message->kind_case) {
    case STAGECOACH__V1__STAGE_MESSAGE__KIND_HELLO:
        on_hello(cluster, member, message->hello);
        break;
    case STAGECOACH__V1__STAGE_MESSAGE__KIND_LOAD_PROGRESS:
        if (message->load_progress->epoch != cluster->epoch) break;
        member->load_bytes_done = message->load_progress->bytes_done;
        member->load_bytes_total = message->load_progress->bytes_total;
        break;
    case STAGECOACH__V1__STAGE_MESSAGE__KIND_LOADED:
        on_loaded(cluster, member, message->loaded);
        break;
    case STAGECOACH__V1__STAGE_MESSAGE__KIND_CONNECTED:
        if (message->connected->epoch == cluster->epoch && member->state == MEMBER_CONNECTING)
            member->state = MEMBER_RUNNING;
        break;
    case STAGECOACH__V1__STAGE_MESSAGE__KIND_FAILED:
        on_failed(cluster, member, message->failed);
        break;
    case STAGECOACH__V1__STAGE_MESSAGE__KIND_HEARTBEAT:
        on_heartbeat(cluster, member, message->heartbeat);
        break;
    default:
        break; // of a newer version: not for us
    }
}

void cluster_leave(struct cluster *cluster, struct member *member) {
    for (uint32_t i = 0; i < cluster->member_count; i++) {
        if (cluster->members[i] != member) continue;
        memmove(&cluster->members[i], &cluster->members[i + 1],
                (cluster->member_count - i - 1) * sizeof(cluster->members[0]));
        cluster->member_count--;
        break;
    }
    if (member->state != MEMBER_SILENT) log_info("stage '%s' left", member->name);
    if (!member->has_layers) return;
    char reason[128];
    snprintf(reason, sizeof(reason), "stage %" PRIu32 " '%s' is gone", member->stage_index,
             member->name);
    vacate(cluster, member);
    fail_epoch(cluster, reason);
}

void cluster_links_up(struct cluster *cluster, uint64_t epoch) {
    if (epoch == cluster->epoch && cluster->state == CLUSTER_CONNECTING) cluster->links_up = true;
}

void cluster_links_lost(struct cluster *cluster, uint64_t epoch, const char *reason) {
    if (epoch == cluster->epoch) fail_epoch(cluster, reason);
}

void cluster_set_sequence_count(struct cluster *cluster, uint32_t sequence_count) {
    cluster->sequence_count = sequence_count;
}

// -- transitions ----------------------------------------------------------------------------------

static void send_assignment(struct cluster *cluster, struct member *member) {
    Stagecoach__V1__Assignment assignment = cluster->config.assignment;
    assignment.epoch = cluster->epoch;
    assignment.stage_index = member->stage_index;
    assignment.stage_count = cluster->config.plan.stage_count;
    assignment.layer_first = cluster->config.plan.layer_firsts[member->stage_index];
    assignment.layer_count = cluster->config.plan.layer_counts[member->stage_index];
    Stagecoach__V1__CoordinatorMessage message = STAGECOACH__V1__COORDINATOR_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_ASSIGNMENT;
    message.assignment = &assignment;
    cluster->outside.send(cluster->outside.ctx, member, &message);
}

static ProtobufCBinaryData key_of(struct cluster *cluster, uint32_t link_id) {
    return (ProtobufCBinaryData){.len = LINK_KEY_BYTES, .data = cluster->link_keys[link_id]};
}

static void send_start(struct cluster *cluster, struct member *member) {
    uint32_t stage_count = cluster->config.plan.stage_count;
    bool is_last = member->stage_index + 1 == stage_count;
    bool has_feedback = stage_count > 1 && cluster->config.assignment.token_lag_max > 0;
    Stagecoach__V1__Start start = STAGECOACH__V1__START__INIT;
    start.epoch = cluster->epoch;
    start.in_key = key_of(cluster, member->stage_index);
    start.next_key = key_of(cluster, member->stage_index + 1);
    if (has_feedback && (is_last || member->stage_index == 0))
        start.feedback_key = key_of(cluster, stage_count + 1);
    start.encrypts = cluster->config.encrypts;
    start.next_address = is_last ? (char *)cluster->config.data_address
                                 : cluster->slots[member->stage_index + 1]->data_address;
    if (has_feedback && is_last) start.feedback_address = cluster->slots[0]->data_address;
    Stagecoach__V1__CoordinatorMessage message = STAGECOACH__V1__COORDINATOR_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_START;
    message.start = &start;
    cluster->outside.send(cluster->outside.ctx, member, &message);
}

// Gives vacant stages to members without layers, in order of joining. Whether none is vacant.
static bool fill_slots(struct cluster *cluster) {
    bool is_full = true;
    for (uint32_t i = 0; i < cluster->config.plan.stage_count; i++) {
        for (uint32_t m = 0; m < cluster->member_count && cluster->slots[i] == NULL; m++) {
            struct member *member = cluster->members[m];
            if (member->state != MEMBER_JOINED || member->has_layers) continue;
            cluster->slots[i] = member;
            member->has_layers = true;
            member->stage_index = i;
        }
        is_full = is_full && cluster->slots[i] != NULL;
    }
    return is_full;
}

static void begin_epoch(struct cluster *cluster) {
    cluster->epoch++;
    log_info("epoch %" PRIu64 " begins: %" PRIu32 " stages", cluster->epoch,
             cluster->config.plan.stage_count);
    enter(cluster, CLUSTER_LOADING);
    set_slot_states(cluster, MEMBER_LOADING);
    for (uint32_t i = 0; i < cluster->config.plan.stage_count; i++) {
        struct member *member = cluster->slots[i];
        member->step_count = member->busy_ns = member->row_count = 0;
        member->error[0] = '\0';
        send_assignment(cluster, member);
    }
}

static bool all_slots_are(const struct cluster *cluster, enum member_state state) {
    for (uint32_t i = 0; i < cluster->config.plan.stage_count; i++)
        if (cluster->slots[i] == NULL || cluster->slots[i]->state != state) return false;
    return true;
}

static void warn_of_mixed_kernels(const struct cluster *cluster) {
    for (uint32_t i = 1; i < cluster->config.plan.stage_count; i++) {
        if (strcmp(cluster->slots[i]->kernel_variant, cluster->slots[0]->kernel_variant) == 0)
            continue;
        log_warn("stages use different kernels (%s and %s): tokens may depend on the layer split",
                 cluster->slots[0]->kernel_variant, cluster->slots[i]->kernel_variant);
        return;
    }
}

static void drop_silent_members(struct cluster *cluster, uint64_t now_ms) {
    for (uint32_t i = 0; i < cluster->member_count; i++) {
        struct member *member = cluster->members[i];
        if (now_ms - member->heard_ms <= HEARTBEAT_LOST_MS) continue;
        char text[128];
        snprintf(text, sizeof(text), "nothing heard for %" PRIu64 " ms", now_ms - member->heard_ms);
        log_warn("stage '%s': %s", member->name, text);
        cluster->outside.drop(cluster->outside.ctx, member, false, text);
        member->heard_ms = now_ms;     // say it once
        member->state = MEMBER_SILENT; // its name is free for the stage that comes back
        if (!member->has_layers) continue;
        vacate(cluster, member);
        fail_epoch(cluster, "a stage is silent");
    }
}

void cluster_tick(struct cluster *cluster) {
    uint64_t now_ms = clock_now_ms(&cluster->config.clock);
    drop_silent_members(cluster, now_ms);
    switch (cluster->state) {
    case CLUSTER_WAITING:
        if (fill_slots(cluster) && now_ms >= cluster->retry_at_ms) begin_epoch(cluster);
        break;
    case CLUSTER_LOADING:
        if (!all_slots_are(cluster, MEMBER_LOADED)) break;
        enter(cluster, CLUSTER_CONNECTING);
        set_slot_states(cluster, MEMBER_CONNECTING);
        cluster->outside.draw(cluster->outside.ctx, cluster->link_keys, sizeof(cluster->link_keys));
        for (uint32_t i = 0; i < cluster->config.plan.stage_count; i++)
            send_start(cluster, cluster->slots[i]);
        break;
    case CLUSTER_CONNECTING:
        if (now_ms - cluster->state_since_ms > CLUSTER_CONNECT_MS)
            fail_epoch(cluster, "links did not come up");
        else if (cluster->links_up && all_slots_are(cluster, MEMBER_RUNNING)) {
            enter(cluster, CLUSTER_RUNNING);
            warn_of_mixed_kernels(cluster);
            log_info("epoch %" PRIu64 " runs", cluster->epoch);
        }
        break;
    case CLUSTER_RUNNING:
        break;
    }
}

// -- what is so -----------------------------------------------------------------------------------

enum cluster_state cluster_state(const struct cluster *cluster) {
    return cluster->state;
}

uint64_t cluster_epoch(const struct cluster *cluster) {
    return cluster->epoch;
}

const char *cluster_first_address(const struct cluster *cluster) {
    return cluster->slots[0]->data_address;
}

const uint8_t *cluster_link_key(const struct cluster *cluster, uint32_t link_id) {
    CHECK(link_id < PIPELINE_STAGE_COUNT_MAX + 2);
    return cluster->link_keys[link_id];
}

bool cluster_encrypts(const struct cluster *cluster) {
    return cluster->config.encrypts;
}

uint64_t cluster_progress_count(const struct cluster *cluster) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < cluster->config.plan.stage_count; i++)
        if (cluster->slots[i] != NULL) count += cluster->slots[i]->progress_count;
    return count;
}
