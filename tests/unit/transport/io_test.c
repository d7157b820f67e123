// io: processes in a ring, each with its io thread; here three of them in one process.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "carriers.h"
#include "transport/io.h"

enum { NODE_COUNT = 3, PAYLOAD_BYTES = 300000, WAIT_MS = 5000 };

struct node {
    struct wake wake;
    struct io *io;
    char address[300];
};

struct ring_world {
    struct local_hub *hub;
    struct node nodes[NODE_COUNT];
};

static void node_open(struct ring_world *world, struct node *node) {
    struct port *port;
    struct error error = {0};
    assert_int_equal(wake_init(&node->wake), STATUS_OK);
    assert_int_equal(io_open(&(struct io_config){.owner_wake = &node->wake}, &node->io), STATUS_OK);
    struct port_config config = io_port_config(node->io);
    enum status status = world->hub != NULL ? port_open_local(world->hub, &config, &port)
                                            : port_open_ucx("127.0.0.1", 0, &config, &port, &error);
    if (status != STATUS_OK) fail_msg("%s", error.text);
    snprintf(node->address, sizeof(node->address), "%s", port_address(port));
    assert_int_equal(io_start(node->io, port), STATUS_OK);
}

static void node_close(struct node *node) {
    io_close(node->io);
    node->io = NULL;
    wake_fini(&node->wake);
}

static void ring_world_open(struct ring_world *world, bool ucx) {
    memset(world, 0, sizeof(*world));
    if (!ucx) assert_int_equal(local_hub_open(&world->hub), STATUS_OK);
    for (int i = 0; i < NODE_COUNT; i++)
        node_open(world, &world->nodes[i]);
}

static void ring_world_close(struct ring_world *world) {
    for (int i = 0; i < NODE_COUNT; i++)
        if (world->nodes[i].io != NULL) node_close(&world->nodes[i]);
    local_hub_close(world->hub);
}

// A key for each link and epoch, the same at both ends. Every other epoch encrypts.
static void set_keys(struct io_ring_position *position) {
    position->encrypts = position->epoch % 2 == 0;
    for (uint32_t i = 0; i < IO_LINK_COUNT_MAX; i++) {
        memset(position->ins[i].key, (int)(position->ins[i].link_id + position->epoch * 16),
               LINK_KEY_BYTES);
        memset(position->outs[i].key, (int)(position->outs[i].link_id + position->epoch * 16),
               LINK_KEY_BYTES);
    }
}

static void node_connect(struct ring_world *world, int node, uint64_t epoch) {
    struct io_ring_position position = {.epoch = epoch,
                                        .in_count = 1,
                                        .out_count = 1,
                                        .ins = {{.link_id = (uint32_t)((node + 2) % NODE_COUNT)}},
                                        .outs = {{.link_id = (uint32_t)node}},
                                        .credit_count = 4,
                                        .frame_bytes_max = PAYLOAD_BYTES + 128};
    snprintf(position.outs[0].address, sizeof(position.outs[0].address), "%.200s",
             world->nodes[(node + 1) % NODE_COUNT].address);
    set_keys(&position);
    assert_true(io_connect(world->nodes[node].io, &position));
}

static uint64_t now_ms(void) {
    struct clock real = clock_system();
    return clock_now_ms(&real);
}

// The next event of a node, whatever it is; fails when none comes.
static struct io_event node_take(struct node *node, uint64_t limit_ms) {
    struct io_event event;
    uint64_t end_ms = now_ms() + limit_ms;
    while (!io_take(node->io, &event)) {
        if (now_ms() >= end_ms) fail_msg("no event within %u ms", (unsigned)limit_ms);
        wake_wait(&node->wake, 10);
    }
    return event;
}

static struct io_event node_take_kind(struct node *node, enum io_event_kind kind,
                                      uint64_t limit_ms) {
    struct io_event event = node_take(node, limit_ms);
    if (event.kind != kind)
        fail_msg("event %d instead of %d: %s", event.kind, kind,
                 event.kind == IO_LOST ? event.error.text : "");
    return event;
}

static void ring_connect(struct ring_world *world, uint64_t epoch) {
    for (int i = 0; i < NODE_COUNT; i++)
        node_connect(world, i, epoch);
    for (int i = 0; i < NODE_COUNT; i++) {
        struct io_event event = node_take_kind(&world->nodes[i], IO_UP, WAIT_MS);
        assert_int_equal(event.epoch, epoch);
    }
}

static struct frame *make_frame(uint64_t epoch, uint64_t step, size_t payload_bytes) {
    struct frame *frame;
    assert_int_equal(frame_open(sizeof(struct frame_header) + PAYLOAD_BYTES, &frame), STATUS_OK);
    struct frame_header *header = (struct frame_header *)frame->data;
    memset(header, 0, sizeof(*header));
    header->magic = FRAME_MAGIC;
    header->version = FRAME_VERSION;
    header->epoch = epoch;
    header->step = step;
    header->payload_offset = sizeof(*header);
    header->payload_bytes = payload_bytes;
    memset(frame->data + sizeof(*header), (int)(step & 0xff), payload_bytes);
    frame->size_bytes = sizeof(*header) + payload_bytes;
    return frame;
}

static void io_passes_frames_round_the_ring(void **state) {
    enum { LAP_COUNT = 300 };
    struct ring_world world;
    ring_world_open(&world, is_ucx(state));
    ring_connect(&world, 1);
    // Node 0 sends; 1 and 2 copy what they get into a frame of their own and pass it on.
    struct frame *own[NODE_COUNT];
    bool own_is_out[NODE_COUNT] = {0};
    for (int i = 0; i < NODE_COUNT; i++)
        own[i] = make_frame(1, 0, 0);
    for (uint64_t lap = 0; lap < LAP_COUNT; lap++) {
        size_t payload_bytes = lap % 3 == 0 ? PAYLOAD_BYTES : (size_t)lap;
        frame_close(own[0]);
        own[0] = make_frame(1, lap, payload_bytes);
        assert_true(io_send(world.nodes[0].io, 0, own[0]));
        own_is_out[0] = true;
        for (int hop = 1; hop <= NODE_COUNT; hop++) {
            int at = hop % NODE_COUNT;
            struct node *node = &world.nodes[at];
            struct io_event event;
            while ((event = node_take(node, WAIT_MS)).kind == IO_SENT)
                own_is_out[at] = false;
            assert_int_equal(event.kind, IO_RECEIVED);
            assert_int_equal(event.frame->size_bytes, sizeof(struct frame_header) + payload_bytes);
            assert_int_equal(((struct frame_header *)event.frame->data)->step, lap);
            if (payload_bytes > 0)
                assert_int_equal(event.frame->data[event.frame->size_bytes - 1], lap & 0xff);
            while (own_is_out[at])
                if (node_take_kind(node, IO_SENT, WAIT_MS).frame == own[at]) own_is_out[at] = false;
            if (at != 0) {
                memcpy(own[at]->data, event.frame->data, event.frame->size_bytes);
                own[at]->size_bytes = event.frame->size_bytes;
                assert_true(io_send(node->io, 0, own[at]));
                own_is_out[at] = true;
            }
            io_release(node->io, event.frame);
        }
    }
    ring_world_close(&world);
    for (int i = 0; i < NODE_COUNT; i++)
        frame_close(own[i]);
}

static void io_holds_frames_until_there_is_a_credit(void **state) {
    struct ring_world world;
    struct frame *frames[LINK_CREDIT_COUNT_MAX + 1];
    ring_world_open(&world, is_ucx(state));
    ring_connect(&world, 1);
    for (uint64_t i = 0; i <= LINK_CREDIT_COUNT_MAX; i++) {
        frames[i] = make_frame(1, i, 1000);
        assert_true(io_send(world.nodes[0].io, 0, frames[i]) == (i < LINK_CREDIT_COUNT_MAX));
    }
    for (uint64_t i = 0; i < LINK_CREDIT_COUNT_MAX; i++) {
        struct io_event event = node_take_kind(&world.nodes[1], IO_RECEIVED, WAIT_MS);
        assert_int_equal(((struct frame_header *)event.frame->data)->step, i);
        io_release(world.nodes[1].io, event.frame);
        (void)node_take_kind(&world.nodes[0], IO_SENT, WAIT_MS);
    }
    assert_true(io_send(world.nodes[0].io, 0, frames[LINK_CREDIT_COUNT_MAX]));
    (void)node_take_kind(&world.nodes[1], IO_RECEIVED, WAIT_MS);
    ring_world_close(&world);
    for (int i = 0; i <= LINK_CREDIT_COUNT_MAX; i++)
        frame_close(frames[i]);
}

static void io_gives_all_frames_back_before_it_is_lost(void **state) {
    struct ring_world world;
    struct frame *frames[10];
    ring_world_open(&world, is_ucx(state));
    ring_connect(&world, 1);
    for (uint64_t i = 0; i < 10; i++) {
        frames[i] = make_frame(1, i, PAYLOAD_BYTES);
        assert_true(io_send(world.nodes[0].io, 0, frames[i]));
    }
    (void)node_take_kind(&world.nodes[1], IO_RECEIVED, WAIT_MS); // never released
    node_close(&world.nodes[1]);
    for (int i = 0; i < 10; i++)
        (void)node_take_kind(&world.nodes[0], IO_SENT, WAIT_MS);
    struct io_event event = node_take_kind(&world.nodes[0], IO_LOST, WAIT_MS);
    assert_int_equal(event.epoch, 1);
    assert_true(strlen(event.error.text) > 0);
    // A frame that is sent now comes straight back.
    assert_true(io_send(world.nodes[0].io, 0, frames[0]));
    assert_ptr_equal(node_take_kind(&world.nodes[0], IO_SENT, WAIT_MS).frame, frames[0]);
    (void)node_take_kind(&world.nodes[2], IO_LOST, WAIT_MS);
    ring_world_close(&world);
    for (int i = 0; i < 10; i++)
        frame_close(frames[i]);
}

static void io_moves_to_the_next_epoch_without_traces_of_the_last(void **state) {
    struct ring_world world;
    struct frame *frames[6];
    ring_world_open(&world, is_ucx(state));
    ring_connect(&world, 1);
    for (uint64_t i = 0; i < 6; i++) {
        frames[i] = make_frame(1, i, 1000);
        assert_true(io_send(world.nodes[0].io, 0, frames[i]));
    }
    struct io_event held = node_take_kind(&world.nodes[1], IO_RECEIVED, WAIT_MS);
    for (int i = 0; i < 3; i++) // the others of the credits arrive and are not taken
        (void)node_take_kind(&world.nodes[0], IO_SENT, WAIT_MS);
    for (int i = 0; i < NODE_COUNT; i++)
        node_connect(&world, i, 2);
    int sent_count = 3;
    struct io_event event;
    while ((event = node_take(&world.nodes[0], WAIT_MS)).kind == IO_SENT)
        sent_count++;
    assert_int_equal(event.kind, IO_UP);
    assert_int_equal(event.epoch, 2);
    assert_int_equal(sent_count, 6);
    for (int i = 1; i < NODE_COUNT; i++) {
        event = node_take_kind(&world.nodes[i], IO_UP, WAIT_MS);
        assert_int_equal(event.epoch, 2);
    }
    // The frame held over the change is still readable, and goes back to where it came from.
    assert_int_equal(((struct frame_header *)held.frame->data)->step, 0);
    io_release(world.nodes[1].io, held.frame);
    struct frame *next = make_frame(2, 77, 10);
    assert_true(io_send(world.nodes[0].io, 0, next));
    event = node_take_kind(&world.nodes[1], IO_RECEIVED, WAIT_MS);
    assert_int_equal(((struct frame_header *)event.frame->data)->step, 77);
    ring_world_close(&world);
    frame_close(next);
    for (int i = 0; i < 6; i++)
        frame_close(frames[i]);
}

// -- tokens straight back: 0 is the coordinator, 1 the first stage, 2 the last --------------------

enum { COORDINATOR, FIRST, LAST, TO_COORDINATOR = 0, TO_FIRST = 1, FROM_LAST = 1 };

static void triangle_connect_node(struct ring_world *world, int node, uint64_t epoch,
                                  bool has_feedback) {
    struct io_ring_position position = {
        .epoch = epoch,
        .in_count = node == FIRST ? 2 : 1,
        .out_count = node == LAST && has_feedback ? 2 : 1,
        .ins = {{.link_id = (uint32_t)(node + 2) % NODE_COUNT}, {.link_id = 3}},
        .outs = {{.link_id = (uint32_t)node}, {.link_id = 3}},
        .credit_count = 4,
        .frame_bytes_max = PAYLOAD_BYTES + 128};
    snprintf(position.outs[0].address, sizeof(position.outs[0].address), "%.200s",
             world->nodes[(node + 1) % NODE_COUNT].address);
    snprintf(position.outs[1].address, sizeof(position.outs[1].address), "%.200s",
             world->nodes[FIRST].address);
    set_keys(&position);
    assert_true(io_connect(world->nodes[node].io, &position));
}

static void triangle_connect(struct ring_world *world, uint64_t epoch) {
    for (int i = 0; i < NODE_COUNT; i++)
        triangle_connect_node(world, i, epoch, true);
    for (int i = 0; i < NODE_COUNT; i++)
        assert_int_equal(node_take_kind(&world->nodes[i], IO_UP, WAIT_MS).epoch, epoch);
}

static uint64_t step_of(const struct io_event *event) {
    return ((const struct frame_header *)event->frame->data)->step;
}

// Takes a frame that must be of this link and step, and gives it back.
static void expect_frame(struct node *node, uint32_t link_index, uint64_t step) {
    struct io_event event = node_take_kind(node, IO_RECEIVED, WAIT_MS);
    assert_int_equal(event.link_index, link_index);
    assert_int_equal(step_of(&event), step);
    io_release(node->io, event.frame);
}

static void io_sends_over_two_links_and_says_which(void **state) {
    struct ring_world world;
    ring_world_open(&world, is_ucx(state));
    triangle_connect(&world, 1);
    struct node *nodes = world.nodes;
    struct frame *result = make_frame(1, 0, 100), *copy = make_frame(1, 0, 100);
    struct frame *step = make_frame(1, 0, 200);
    for (uint64_t i = 1; i <= 200; i++) {
        ((struct frame_header *)result->data)->step = i;
        ((struct frame_header *)copy->data)->step = i;
        ((struct frame_header *)step->data)->step = 1000 + i;
        assert_true(io_send(nodes[LAST].io, TO_FIRST, copy));
        assert_true(io_send(nodes[LAST].io, TO_COORDINATOR, result));
        expect_frame(&nodes[COORDINATOR], 0, i);
        expect_frame(&nodes[FIRST], FROM_LAST, i);
        assert_true(io_send(nodes[COORDINATOR].io, 0, step));
        expect_frame(&nodes[FIRST], 0, 1000 + i);
        assert_ptr_equal(node_take_kind(&nodes[COORDINATOR], IO_SENT, WAIT_MS).frame, step);
        for (int sent = 0; sent < 2; sent++) {
            struct io_event event = node_take_kind(&nodes[LAST], IO_SENT, WAIT_MS);
            assert_ptr_equal(event.frame, event.link_index == TO_FIRST ? copy : result);
        }
    }
    ring_world_close(&world);
    frame_close(result);
    frame_close(copy);
    frame_close(step);
}

// The credits of one are used up; the other goes on.
static void io_keeps_two_links_apart(void **state) {
    struct ring_world world;
    struct frame *results[LINK_CREDIT_COUNT_MAX + 1];
    ring_world_open(&world, is_ucx(state));
    triangle_connect(&world, 1);
    struct node *nodes = world.nodes;
    for (uint64_t i = 0; i <= LINK_CREDIT_COUNT_MAX; i++) {
        results[i] = make_frame(1, i, 10);
        assert_true(io_send(nodes[LAST].io, TO_COORDINATOR, results[i]) ==
                    (i < LINK_CREDIT_COUNT_MAX));
    }
    struct frame *held[4];
    for (uint64_t i = 0; i < 4; i++) {
        held[i] = node_take_kind(&nodes[COORDINATOR], IO_RECEIVED, WAIT_MS).frame;
        assert_int_equal(node_take_kind(&nodes[LAST], IO_SENT, WAIT_MS).link_index, TO_COORDINATOR);
    }
    struct frame *copy = make_frame(1, 0, 10);
    for (uint64_t i = 1; i <= 20; i++) {
        ((struct frame_header *)copy->data)->step = i;
        assert_true(io_send(nodes[LAST].io, TO_FIRST, copy));
        expect_frame(&nodes[FIRST], FROM_LAST, i);
        assert_int_equal(node_take_kind(&nodes[LAST], IO_SENT, WAIT_MS).link_index, TO_FIRST);
    }
    for (int i = 0; i < 4; i++)
        io_release(nodes[COORDINATOR].io, held[i]);
    for (uint64_t i = 4; i < LINK_CREDIT_COUNT_MAX; i++)
        expect_frame(&nodes[COORDINATOR], 0, i);
    ring_world_close(&world);
    for (int i = 0; i <= LINK_CREDIT_COUNT_MAX; i++)
        frame_close(results[i]);
    frame_close(copy);
}

static void io_is_up_only_with_every_link(void **state) {
    struct ring_world world;
    ring_world_open(&world, is_ucx(state));
    struct node *nodes = world.nodes;
    struct frame *frame = make_frame(1, 5, 10), *next = make_frame(2, 6, 10);
    for (int i = 0; i < NODE_COUNT; i++)
        triangle_connect_node(&world, i, 1, false);
    (void)node_take_kind(&nodes[COORDINATOR], IO_UP, WAIT_MS);
    (void)node_take_kind(&nodes[LAST], IO_UP, WAIT_MS);
    // The first stage still waits for the last one; what comes to it meanwhile is not shown.
    assert_true(io_send(nodes[COORDINATOR].io, 0, frame));
    (void)node_take_kind(&nodes[COORDINATOR], IO_SENT, WAIT_MS);
    struct timespec pause = {.tv_nsec = 200000000};
    nanosleep(&pause, NULL);
    struct io_event event;
    assert_false(io_take(nodes[FIRST].io, &event));
    // The next epoch is as if there had been no other.
    triangle_connect(&world, 2);
    assert_true(io_send(nodes[LAST].io, TO_FIRST, next));
    expect_frame(&nodes[FIRST], FROM_LAST, 6);
    ring_world_close(&world);
    frame_close(frame);
    frame_close(next);
}

static void io_gives_back_the_frames_of_both_links_when_one_is_lost(void **state) {
    struct ring_world world;
    struct frame *frames[20];
    ring_world_open(&world, is_ucx(state));
    triangle_connect(&world, 1);
    struct node *nodes = world.nodes;
    for (uint64_t i = 0; i < 20; i++) {
        frames[i] = make_frame(1, i, 1000);
        assert_true(io_send(nodes[LAST].io, i % 2 == 0 ? TO_COORDINATOR : TO_FIRST, frames[i]));
    }
    (void)node_take_kind(&nodes[FIRST], IO_RECEIVED, WAIT_MS); // never released
    node_close(&nodes[FIRST]);
    uint32_t counts[2] = {0};
    struct io_event event;
    while ((event = node_take(&nodes[LAST], WAIT_MS)).kind == IO_SENT)
        counts[event.link_index]++;
    assert_int_equal(event.kind, IO_LOST);
    assert_int_equal(counts[TO_COORDINATOR], 10);
    assert_int_equal(counts[TO_FIRST], 10);
    ring_world_close(&world);
    for (int i = 0; i < 20; i++)
        frame_close(frames[i]);
}

// -- life -----------------------------------------------------------------------------------------

static void io_changes_epoch_many_times(void **state) {
    struct ring_world world;
    ring_world_open(&world, is_ucx(state));
    for (uint64_t epoch = 1; epoch <= 20; epoch++) {
        struct frame *frame = make_frame(epoch, 1, epoch % 2 ? PAYLOAD_BYTES : 5);
        ring_connect(&world, epoch);
        assert_true(io_send(world.nodes[0].io, 0, frame));
        struct io_event event = node_take_kind(&world.nodes[1], IO_RECEIVED, WAIT_MS);
        assert_int_equal(event.epoch, epoch);
        io_release(world.nodes[1].io, event.frame);
        (void)node_take_kind(&world.nodes[0], IO_SENT, WAIT_MS);
        if (epoch % 5 == 0)
            for (int i = 0; i < NODE_COUNT; i++)
                assert_true(io_disconnect(world.nodes[i].io));
        frame_close(frame);
    }
    ring_world_close(&world);
}

static void io_reports_an_address_that_is_none(void **state) {
    struct ring_world world;
    ring_world_open(&world, is_ucx(state));
    struct io_ring_position position = {.epoch = 3,
                                        .in_count = 1,
                                        .out_count = 1,
                                        .outs = {{.link_id = 1, .address = "nowhere"}},
                                        .credit_count = 1,
                                        .frame_bytes_max = 4096};
    assert_true(io_connect(world.nodes[0].io, &position));
    struct io_event event = node_take_kind(&world.nodes[0], IO_LOST, WAIT_MS);
    assert_int_equal(event.epoch, 3);
    assert_non_null(strstr(event.error.text, "nowhere"));
    ring_world_close(&world);
}

static void io_closes_in_every_state(void **state) {
    struct ring_world world;
    // Without a start, without links, on its way, and up with frames under way.
    struct io *io;
    struct wake wake;
    assert_int_equal(wake_init(&wake), STATUS_OK);
    assert_int_equal(io_open(&(struct io_config){.owner_wake = &wake}, &io), STATUS_OK);
    io_close(io);
    wake_fini(&wake);
    for (int stage = 0; stage < 3; stage++) {
        struct frame *frame = make_frame(1, 1, PAYLOAD_BYTES);
        ring_world_open(&world, is_ucx(state));
        if (stage == 1) node_connect(&world, 0, 1);
        if (stage == 2) ring_connect(&world, 1);
        if (stage == 2) assert_true(io_send(world.nodes[0].io, 0, frame));
        ring_world_close(&world);
        frame_close(frame);
    }
}

static uint64_t cpu_us(void) {
    struct timespec time;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time), 0);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

static void io_sleeps_while_nothing_happens(void **state) {
    struct ring_world world;
    ring_world_open(&world, is_ucx(state));
    ring_connect(&world, 1);
    uint64_t begin_us = cpu_us();
    struct timespec pause = {.tv_sec = 2};
    nanosleep(&pause, NULL);
    uint64_t used_us = cpu_us() - begin_us;
    print_message("three idle io threads used %u us of CPU in 2 s\n", (unsigned)used_us);
    assert_in_range(used_us, 0, 100000);
    for (int i = 0; i < NODE_COUNT; i++) {
        struct io_event event;
        assert_false(io_take(world.nodes[i].io, &event)); // neither lost nor anything else
    }
    ring_world_close(&world);
}

static const struct CMUnitTest tests[] = {
    OVER_ALL(io_passes_frames_round_the_ring),
    OVER_ALL(io_holds_frames_until_there_is_a_credit),
    OVER_ALL(io_gives_all_frames_back_before_it_is_lost),
    OVER_ALL(io_moves_to_the_next_epoch_without_traces_of_the_last),
    OVER_ALL(io_sends_over_two_links_and_says_which),
    OVER_ALL(io_keeps_two_links_apart),
    OVER_ALL(io_is_up_only_with_every_link),
    OVER_ALL(io_gives_back_the_frames_of_both_links_when_one_is_lost),
    OVER_ALL(io_changes_epoch_many_times),
    OVER_ALL(io_reports_an_address_that_is_none),
    OVER_ALL(io_closes_in_every_state),
    OVER_ALL(io_sleeps_while_nothing_happens),
};

int main(int argc, char **argv) {
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
