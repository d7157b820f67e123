#include "coordinator/cluster.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "proto/link_wire.h"

// A world without I/O: what the cluster sends to each member is written down.
struct recorded {
    uint32_t welcome_count, heartbeat_count, drop_count, sequence_count;
    bool was_refused;
    char drop_text[256];
    uint64_t assignment_epoch, start_epoch, heartbeat_sent_ns;
    uint32_t layer_first, layer_count;
    char next_address[64], feedback_address[64];
    uint8_t in_key[LINK_KEY_BYTES], next_key[LINK_KEY_BYTES], feedback_key[LINK_KEY_BYTES];
    bool encrypts;
};
struct world {
    uint64_t now_ns;
    uint8_t drawn; // the last byte that was drawn
    struct cluster *cluster;
    struct member members[8];
    struct recorded recorded[8];
    uint32_t member_count;
};

static uint64_t world_now(void *ctx) {
    return ((struct world *)ctx)->now_ns;
}

static struct recorded *recorded_of(struct world *world, const struct member *member) {
    return &world->recorded[member - world->members];
}

// Zeroes: there is none.
static void keep_key(uint8_t *out, const ProtobufCBinaryData *key) {
    memset(out, 0, LINK_KEY_BYTES);
    if (key->len == 0) return;
    assert_int_equal(key->len, LINK_KEY_BYTES);
    memcpy(out, key->data, LINK_KEY_BYTES);
}

// Different for every 32 bytes, and never zero.
static void world_draw(void *ctx, void *out, size_t size_bytes) {
    struct world *world = ctx;
    for (size_t i = 0; i < size_bytes; i++)
        ((uint8_t *)out)[i] = (uint8_t)(i % 32 == 0 ? 0x80 | (++world->drawn & 0x7f) : 0xff);
}

static void world_send(void *ctx, struct member *member,
                       const Stagecoach__V1__CoordinatorMessage *message) {
    struct recorded *r = recorded_of(ctx, member);
    switch (message->kind_case) {
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_WELCOME:
        r->welcome_count++;
        break;
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_HEARTBEAT:
        r->heartbeat_count++;
        r->heartbeat_sent_ns = message->heartbeat->sent_ns;
        r->sequence_count = message->heartbeat->sequence_count;
        break;
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_ASSIGNMENT:
        r->assignment_epoch = message->assignment->epoch;
        r->layer_first = message->assignment->layer_first;
        r->layer_count = message->assignment->layer_count;
        break;
    case STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_START:
        r->start_epoch = message->start->epoch;
        snprintf(r->next_address, sizeof(r->next_address), "%s", message->start->next_address);
        snprintf(r->feedback_address, sizeof(r->feedback_address), "%s",
                 message->start->feedback_address);
        keep_key(r->in_key, &message->start->in_key);
        keep_key(r->next_key, &message->start->next_key);
        keep_key(r->feedback_key, &message->start->feedback_key);
        r->encrypts = message->start->encrypts;
        break;
    default:
        fail_msg("unknown message");
    }
}

static void world_drop(void *ctx, struct member *member, bool is_refusal, const char *message) {
    struct recorded *r = recorded_of(ctx, member);
    r->drop_count++;
    r->was_refused = is_refusal;
    snprintf(r->drop_text, sizeof(r->drop_text), "%s", message);
}

static void open_world_with(struct world *world, const char *layers, uint32_t token_lag_max,
                            struct timeline *timeline) {
    memset(world, 0, sizeof(*world));
    world->now_ns = 1000000000;
    log_init("test", LOG_ERROR);
    struct cluster_config config = {.clock = {.now_ns = world_now, .ctx = world},
                                    .data_address = "10.0.0.1:99",
                                    .timeline = timeline};
    stagecoach__v1__assignment__init(&config.assignment);
    config.assignment.token_lag_max = token_lag_max;
    assert_int_equal(plan_parse(layers, 8, &config.plan, NULL), STATUS_OK);
    struct cluster_outside outside = {world_send, world_drop, world_draw, world};
    assert_int_equal(cluster_open(&config, &outside, &world->cluster), STATUS_OK);
}

static void open_world(struct world *world, const char *layers) {
    open_world_with(world, layers, 0, NULL);
}

static void tell(struct world *world, uint32_t index, Stagecoach__V1__StageMessage *message) {
    cluster_message(world->cluster, &world->members[index], message);
    cluster_tick(world->cluster);
}

static uint32_t join_as(struct world *world, const char *name, uint32_t version,
                        const char *address) {
    uint32_t index = world->member_count++;
    snprintf(world->members[index].peer_host, sizeof(world->members[index].peer_host), "10.0.0.%u",
             10 + index);
    assert_true(cluster_join(world->cluster, &world->members[index]));
    Stagecoach__V1__Hello hello = STAGECOACH__V1__HELLO__INIT;
    hello.protocol_version = version;
    hello.name = (char *)name;
    hello.data_address = (char *)address;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HELLO;
    message.hello = &hello;
    tell(world, index, &message);
    return index;
}

static uint32_t join(struct world *world, const char *name) {
    return join_as(world, name, CONTROL_PROTOCOL_VERSION, ":7000");
}

static void leave(struct world *world, uint32_t index) {
    cluster_leave(world->cluster, &world->members[index]);
    cluster_tick(world->cluster);
}

static void say_loaded(struct world *world, uint32_t index, uint64_t epoch) {
    Stagecoach__V1__Loaded loaded = STAGECOACH__V1__LOADED__INIT;
    loaded.epoch = epoch;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_LOADED;
    message.loaded = &loaded;
    tell(world, index, &message);
}

static void say_connected(struct world *world, uint32_t index, uint64_t epoch) {
    Stagecoach__V1__Connected connected = STAGECOACH__V1__CONNECTED__INIT;
    connected.epoch = epoch;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_CONNECTED;
    message.connected = &connected;
    tell(world, index, &message);
}

static void say_failed(struct world *world, uint32_t index, uint64_t epoch,
                       Stagecoach__V1__FailureKind kind, const char *text) {
    Stagecoach__V1__Failed failed = STAGECOACH__V1__FAILED__INIT;
    failed.epoch = epoch;
    failed.kind = kind;
    failed.message = (char *)text;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_FAILED;
    message.failed = &failed;
    tell(world, index, &message);
}

static void pass_ms(struct world *world, uint64_t ms) {
    world->now_ns += ms * 1000000;
    cluster_tick(world->cluster);
}

static void run_epoch(struct world *world, const uint32_t *indices, uint32_t count,
                      uint64_t epoch) {
    assert_int_equal(cluster_state(world->cluster), CLUSTER_LOADING);
    assert_int_equal(cluster_epoch(world->cluster), epoch);
    for (uint32_t i = 0; i < count; i++)
        say_loaded(world, indices[i], epoch);
    assert_int_equal(cluster_state(world->cluster), CLUSTER_CONNECTING);
    for (uint32_t i = 0; i < count; i++)
        say_connected(world, indices[i], epoch);
    assert_int_equal(cluster_state(world->cluster), CLUSTER_CONNECTING);
    cluster_links_up(world->cluster, epoch);
    cluster_tick(world->cluster);
    assert_int_equal(cluster_state(world->cluster), CLUSTER_RUNNING);
}

static void cluster_runs_when_all_have_loaded_and_connected(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "5,3");
    uint32_t indices[2] = {join(&world, "a"), 0};
    assert_int_equal(cluster_state(world.cluster), CLUSTER_WAITING);
    assert_non_null(strstr(cluster_explanation(world.cluster), "waiting for 2 stages, 1"));
    indices[1] = join(&world, "b");
    run_epoch(&world, indices, 2, 1);
    assert_int_equal(world.recorded[0].layer_count, 5);
    assert_int_equal(world.recorded[1].layer_first, 5);
    assert_string_equal(world.recorded[0].next_address, "10.0.0.11:7000");
    assert_string_equal(world.recorded[1].next_address, "10.0.0.1:99");
    assert_string_equal(cluster_first_address(world.cluster), "10.0.0.10:7000");
    cluster_close(world.cluster);
}

static void cluster_tells_the_last_stage_where_tokens_go_back_to(void **state) {
    (void)state;
    for (uint32_t token_lag_max = 0; token_lag_max < 3; token_lag_max++) {
        struct world world;
        open_world_with(&world, "4,2,2", token_lag_max, NULL);
        uint32_t indices[3] = {join(&world, "a"), join(&world, "b"), join(&world, "c")};
        run_epoch(&world, indices, 3, 1);
        assert_string_equal(world.recorded[0].feedback_address, "");
        assert_string_equal(world.recorded[1].feedback_address, "");
        assert_string_equal(world.recorded[2].feedback_address,
                            token_lag_max > 0 ? "10.0.0.10:7000" : "");
        cluster_close(world.cluster);
    }
    struct world world;
    open_world_with(&world, "8", 1, NULL);
    uint32_t index = join(&world, "alone");
    run_epoch(&world, &index, 1, 1);
    assert_string_equal(world.recorded[0].feedback_address, "");
    cluster_close(world.cluster);
}

static const uint8_t no_key[LINK_KEY_BYTES];

static void assert_keys_of_epoch(struct world *world, bool has_feedback) {
    const struct recorded *r = world->recorded;
    const uint8_t *const keys[] = {cluster_link_key(world->cluster, 0), r[0].next_key,
                                   r[1].next_key, cluster_link_key(world->cluster, 3),
                                   cluster_link_key(world->cluster, 4)};
    assert_memory_equal(r[0].in_key, keys[0], LINK_KEY_BYTES);
    assert_memory_equal(r[1].in_key, keys[1], LINK_KEY_BYTES);
    assert_memory_equal(r[2].in_key, keys[2], LINK_KEY_BYTES);
    assert_memory_equal(r[2].next_key, keys[3], LINK_KEY_BYTES);
    const uint8_t *feedback_key = has_feedback ? keys[4] : no_key;
    assert_memory_equal(r[0].feedback_key, feedback_key, LINK_KEY_BYTES);
    assert_memory_equal(r[1].feedback_key, no_key, LINK_KEY_BYTES);
    assert_memory_equal(r[2].feedback_key, feedback_key, LINK_KEY_BYTES);
    for (int i = 0; i < 5; i++) {
        assert_memory_not_equal(keys[i], no_key, LINK_KEY_BYTES);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(keys[i], keys[j], LINK_KEY_BYTES);
    }
}

static void cluster_gives_both_ends_of_a_link_a_key_of_its_own(void **state) {
    (void)state;
    for (uint32_t token_lag_max = 0; token_lag_max < 2; token_lag_max++) {
        struct world world;
        open_world_with(&world, "4,2,2", token_lag_max, NULL);
        uint32_t indices[3] = {join(&world, "a"), join(&world, "b"), join(&world, "c")};
        run_epoch(&world, indices, 3, 1);
        assert_keys_of_epoch(&world, token_lag_max > 0);
        assert_false(world.recorded[0].encrypts);
        cluster_close(world.cluster);
    }
}

static void cluster_draws_new_keys_in_every_epoch_and_keeps_none(void **state) {
    (void)state;
    struct world world;
    uint8_t former[LINK_KEY_BYTES];
    open_world_with(&world, "4,2,2", 1, NULL);
    uint32_t indices[3] = {join(&world, "a"), join(&world, "b"), join(&world, "c")};
    run_epoch(&world, indices, 3, 1);
    memcpy(former, world.recorded[1].in_key, sizeof(former));
    cluster_links_lost(world.cluster, 1, "a test");
    for (uint32_t id = 0; id <= 4; id++)
        assert_memory_equal(cluster_link_key(world.cluster, id), no_key, LINK_KEY_BYTES);
    pass_ms(&world, CLUSTER_RETRY_MS);
    run_epoch(&world, indices, 3, 2);
    assert_keys_of_epoch(&world, true);
    assert_memory_not_equal(world.recorded[1].in_key, former, LINK_KEY_BYTES);
    cluster_close(world.cluster);
}

static void cluster_gives_the_layers_of_a_lost_stage_to_a_spare(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "5,3");
    uint32_t indices[2] = {join(&world, "a"), join(&world, "b")};
    run_epoch(&world, indices, 2, 1);
    uint32_t spare = join(&world, "spare");
    assert_int_equal(world.recorded[spare].assignment_epoch, 0);
    leave(&world, indices[0]);
    assert_int_equal(cluster_state(world.cluster), CLUSTER_WAITING);
    pass_ms(&world, CLUSTER_RETRY_MS);
    assert_int_equal(world.recorded[spare].assignment_epoch, 2);
    assert_int_equal(world.recorded[spare].layer_first, 0);
    assert_int_equal(world.recorded[indices[1]].layer_first, 5);
    indices[0] = spare;
    run_epoch(&world, indices, 2, 2);
    cluster_close(world.cluster);
}

static void cluster_ignores_what_is_said_of_another_epoch(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "8");
    uint32_t index = join(&world, "a");
    run_epoch(&world, &index, 1, 1);
    cluster_links_lost(world.cluster, 1, "cut");
    pass_ms(&world, CLUSTER_RETRY_MS);
    assert_int_equal(cluster_epoch(world.cluster), 2);
    say_loaded(&world, index, 1);
    assert_int_equal(cluster_state(world.cluster), CLUSTER_LOADING);
    cluster_links_lost(world.cluster, 1, "cut, said late");
    say_failed(&world, index, 1, STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_LINK, "late");
    assert_int_equal(cluster_state(world.cluster), CLUSTER_LOADING);
    say_loaded(&world, index, 2);
    say_connected(&world, index, 1);
    cluster_links_up(world.cluster, 1);
    cluster_tick(world.cluster);
    assert_int_equal(cluster_state(world.cluster), CLUSTER_CONNECTING);
    cluster_close(world.cluster);
}

static void cluster_shows_why_a_stage_cannot_load_and_takes_another(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "8");
    uint32_t broken = join(&world, "broken");
    say_failed(&world, broken, 1, STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_LOAD,
               "model.safetensors: truncated");
    pass_ms(&world, CLUSTER_RETRY_MS);
    assert_int_equal(cluster_state(world.cluster), CLUSTER_WAITING);
    assert_non_null(strstr(cluster_explanation(world.cluster), "truncated"));
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    assert_int_equal(cluster_describe(world.cluster, &pipeline), STATUS_OK);
    assert_int_equal(pipeline.n_stages, 1);
    assert_string_equal(pipeline.stages[0]->error, "model.safetensors: truncated");
    assert_int_equal(pipeline.stages[0]->state, STAGECOACH__V1__STAGE_STATE__STAGE_STATE_FAILED);
    free(pipeline.stages[0]);
    free(pipeline.stages);
    uint32_t good = join(&world, "good");
    run_epoch(&world, &good, 1, 2);
    cluster_close(world.cluster);
}

static void cluster_drops_a_silent_stage(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "8");
    uint32_t index = join(&world, "a");
    run_epoch(&world, &index, 1, 1);
    pass_ms(&world, HEARTBEAT_LOST_MS);
    assert_int_equal(cluster_state(world.cluster), CLUSTER_RUNNING);
    pass_ms(&world, 1);
    assert_int_equal(cluster_state(world.cluster), CLUSTER_WAITING);
    assert_int_equal(world.recorded[index].drop_count, 1);
    assert_false(world.recorded[index].was_refused);
    // It may come back under its name before its old stream is known to be over.
    uint32_t again = join(&world, "a");
    assert_int_equal(world.recorded[again].drop_count, 0);
    leave(&world, index);
    pass_ms(&world, CLUSTER_RETRY_MS);
    run_epoch(&world, &again, 1, 2);
    cluster_close(world.cluster);
}

static void cluster_tries_again_when_links_do_not_come_up(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "8");
    uint32_t index = join(&world, "a");
    say_loaded(&world, index, 1);
    assert_int_equal(cluster_state(world.cluster), CLUSTER_CONNECTING);
    for (uint64_t ms = 0; ms <= CLUSTER_CONNECT_MS; ms += 500) {
        world.members[index].heard_ms = world.now_ns / 1000000;
        pass_ms(&world, 500);
    }
    assert_int_equal(cluster_state(world.cluster), CLUSTER_WAITING);
    pass_ms(&world, CLUSTER_RETRY_MS);
    assert_int_equal(cluster_epoch(world.cluster), 2);
    cluster_close(world.cluster);
}

static void cluster_refuses_a_wrong_hello_by_name(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t version;
        const char *address, *text;
        bool is_refusal;
    } cases[] = {
        {"x", CONTROL_PROTOCOL_VERSION + 1, ":1", "protocol_version", true},
        {"", CONTROL_PROTOCOL_VERSION, ":1", "name", true},
        {"x", CONTROL_PROTOCOL_VERSION, "nowhere", "data_address", true},
        {"x", CONTROL_PROTOCOL_VERSION, "", "data_address", true},
        {"twin", CONTROL_PROTOCOL_VERSION, ":1", "'twin' has joined", false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct world world;
        open_world(&world, "4,4");
        join(&world, "twin");
        uint32_t index = join_as(&world, cases[i].name, cases[i].version, cases[i].address);
        assert_int_equal(world.recorded[index].drop_count, 1);
        assert_int_equal(world.recorded[index].was_refused, cases[i].is_refusal);
        assert_non_null(strstr(world.recorded[index].drop_text, cases[i].text));
        assert_int_equal(cluster_state(world.cluster), CLUSTER_WAITING);
        cluster_close(world.cluster);
    }
}

static void cluster_refuses_messages_before_hello_and_a_second_hello(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "8");
    assert_true(cluster_join(world.cluster, &world.members[world.member_count++]));
    say_loaded(&world, 0, 0);
    assert_int_equal(world.recorded[0].drop_count, 1);
    uint32_t index = join(&world, "a");
    Stagecoach__V1__Hello hello = STAGECOACH__V1__HELLO__INIT;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HELLO;
    message.hello = &hello;
    tell(&world, index, &message);
    assert_int_equal(world.recorded[index].drop_count, 1);
    cluster_close(world.cluster);
}

static void cluster_answers_heartbeats(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "8");
    uint32_t index = join(&world, "a");
    Stagecoach__V1__Heartbeat heartbeat = STAGECOACH__V1__HEARTBEAT__INIT;
    heartbeat.epoch = 1;
    heartbeat.step_count = 42;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HEARTBEAT;
    message.heartbeat = &heartbeat;
    tell(&world, index, &message);
    assert_int_equal(world.recorded[index].heartbeat_count, 1);
    assert_int_equal(world.members[index].step_count, 42);
    cluster_close(world.cluster);
}

static void say_heartbeat(struct world *world, uint32_t index,
                          Stagecoach__V1__Heartbeat *heartbeat) {
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HEARTBEAT;
    message.heartbeat = heartbeat;
    tell(world, index, &message);
}

// What a stage that is to stop needs to know, and what tells that none of them stands still.
static void heartbeats_tell_of_sequences_and_of_progress(void **state) {
    (void)state;
    struct world world;
    open_world(&world, "4,4");
    const uint32_t indices[] = {join(&world, "a"), join(&world, "b")};
    uint32_t spare = join(&world, "spare");
    run_epoch(&world, indices, 2, 1);
    assert_int_equal(cluster_progress_count(world.cluster), 0);
    Stagecoach__V1__Heartbeat heartbeat = STAGECOACH__V1__HEARTBEAT__INIT;
    heartbeat.epoch = 1;
    heartbeat.progress_count = 30;
    cluster_set_sequence_count(world.cluster, 7);
    say_heartbeat(&world, indices[0], &heartbeat);
    assert_int_equal(world.recorded[indices[0]].sequence_count, 7);
    assert_int_equal(cluster_progress_count(world.cluster), 30);
    cluster_set_sequence_count(world.cluster, 0);
    say_heartbeat(&world, indices[1], &heartbeat);
    assert_int_equal(world.recorded[indices[1]].sequence_count, 0);
    assert_int_equal(cluster_progress_count(world.cluster), 60);
    heartbeat.progress_count = 31;
    say_heartbeat(&world, spare, &heartbeat); // computes nothing for this pipeline
    assert_int_equal(cluster_progress_count(world.cluster), 60);
    heartbeat.epoch = 2;
    say_heartbeat(&world, indices[0], &heartbeat); // of another epoch
    assert_int_equal(cluster_progress_count(world.cluster), 60);
    cluster_close(world.cluster);
}

static void steps_of_heartbeats_reach_the_timeline_on_our_clock(void **state) {
    (void)state;
    struct timeline *timeline;
    assert_int_equal(timeline_open(1, 0, &timeline), STATUS_OK);
    struct world world;
    open_world_with(&world, "8", 0, timeline);
    uint32_t index = join(&world, "a"); // epoch 1: it has the layers
    timeline_begin_epoch(timeline, 1);
    timeline_sent(timeline, &(struct timeline_send){.sent_ns = world.now_ns});
    timeline_result(timeline, world.now_ns + 5000);
    // The clock of the stage is 7 s ahead; messages take 1000 ns each way.
    const uint64_t ahead_ns = 7000000000;
    Stagecoach__V1__Heartbeat heartbeat = STAGECOACH__V1__HEARTBEAT__INIT;
    heartbeat.epoch = 1;
    say_heartbeat(&world, index, &heartbeat);
    uint64_t asked_ns = world.recorded[index].heartbeat_sent_ns;
    assert_int_equal(asked_ns, world.now_ns);
    world.now_ns += 502000;
    Stagecoach__V1__StepTimes step = STAGECOACH__V1__STEP_TIMES__INIT;
    step.step = 1;
    step.received_ns = step.begin_ns = asked_ns + 1000 + ahead_ns;
    step.end_ns = asked_ns + 4000 + ahead_ns;
    Stagecoach__V1__StepTimes *steps[] = {&step};
    heartbeat.heard_sent_ns = asked_ns;
    heartbeat.heard_ns = asked_ns + 1000 + ahead_ns;
    heartbeat.sent_ns = world.now_ns - 1000 + ahead_ns;
    heartbeat.steps = steps;
    heartbeat.n_steps = 1;
    uint64_t cursor = timeline_cursor(timeline);
    say_heartbeat(&world, index, &heartbeat);
    const struct timeline_stage_step *stages;
    const struct timeline_step *told = timeline_next(timeline, &cursor, &stages);
    assert_true(told != NULL && told->is_whole);
    assert_int_equal(stages[0].begin_ns, asked_ns + 1000);
    assert_int_equal(stages[0].end_ns, asked_ns + 4000);
    // Of a former epoch: ignored.
    timeline_sent(timeline, &(struct timeline_send){.sent_ns = world.now_ns});
    timeline_result(timeline, world.now_ns);
    heartbeat.epoch = 0;
    step.step = 2;
    say_heartbeat(&world, index, &heartbeat);
    assert_null(timeline_next(timeline, &cursor, &stages));
    cluster_close(world.cluster);
    timeline_close(timeline);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cluster_runs_when_all_have_loaded_and_connected),
        cmocka_unit_test(cluster_tells_the_last_stage_where_tokens_go_back_to),
        cmocka_unit_test(cluster_gives_both_ends_of_a_link_a_key_of_its_own),
        cmocka_unit_test(cluster_draws_new_keys_in_every_epoch_and_keeps_none),
        cmocka_unit_test(cluster_gives_the_layers_of_a_lost_stage_to_a_spare),
        cmocka_unit_test(cluster_ignores_what_is_said_of_another_epoch),
        cmocka_unit_test(cluster_shows_why_a_stage_cannot_load_and_takes_another),
        cmocka_unit_test(cluster_drops_a_silent_stage),
        cmocka_unit_test(cluster_tries_again_when_links_do_not_come_up),
        cmocka_unit_test(cluster_refuses_a_wrong_hello_by_name),
        cmocka_unit_test(cluster_refuses_messages_before_hello_and_a_second_hello),
        cmocka_unit_test(cluster_answers_heartbeats),
        cmocka_unit_test(heartbeats_tell_of_sequences_and_of_progress),
        cmocka_unit_test(steps_of_heartbeats_reach_the_timeline_on_our_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
