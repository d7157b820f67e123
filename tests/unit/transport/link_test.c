// link: one table of behaviours, run over link_local and link_ucx.
#include "link_world.h"

#include "carriers.h"

#include <unistd.h>

// -- making links --------------------------------------------------------------------------------

static void link_comes_up_at_both_ends(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(4, 1 << 20);
    world_link(&world, &config, &receiver, &sender);
    assert_int_equal(receiver.up_count, 1);
    assert_int_equal(sender.up_count, 1);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    world_close(&world);
}

static void ucx_link_comes_up_over_ipv6(void **state) {
    struct world world = {0};
    struct end receiver, sender;
    struct port_config port_config = {.clock = world_clock(), .handler = &world_handler};
    struct link_config config = world_config(4, 1 << 20);
    (void)state;
    if (port_open_ucx("::1", 0, &port_config, &world.ports[0], NULL) != STATUS_OK) skip();
    world.port_count = 1;
    assert_memory_equal(port_address(world.ports[0]), "[::1]:", 6);
    world_link(&world, &config, &receiver, &sender);
    world_close(&world);
}

static void link_waits_for_a_late_expect(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct port *to = world_add_port(&world), *from = world_add_port(&world);
    struct link_config config = world_config(4, 4096);
    world_connect(from, port_address(to), &config, &sender);
    world_run(&world, 200);
    assert_int_equal(sender.up_count + sender.lost_count, 0);
    world_expect(to, &config, &receiver);
    assert_true(world_until(&world, &sender.up_count, 1, 3000));
    world_close(&world);
}

static void check_refused(void **state, struct link_config expected, struct link_config wanted,
                          const char *reason, bool at_once) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct port *to = world_add_port(&world), *from = world_add_port(&world);
    world_expect(to, &expected, &receiver);
    world_connect(from, port_address(to), &wanted, &sender);
    if (at_once) {
        assert_true(world_until(&world, &sender.lost_count, 1, 3000));
    } else {
        world_run(&world, 200);
        assert_int_equal(sender.lost_count, 0);
        world_push(&world, LINK_CONNECT_MS - 1000);
        world_run(&world, 200);
        world_push(&world, 1000);
        assert_true(world_until(&world, &sender.lost_count, 1, 3000));
    }
    if (strstr(sender.error.text, reason) == NULL) fail_msg("%s", sender.error.text);
    assert_int_equal(receiver.up_count, 0);
    assert_true(link_stats(receiver.link).refused_count > 0);
    link_close(sender.link);
    world_close(&world);
}

static void link_refuses_another_epoch(void **state) {
    struct link_config expected = world_config(4, 4096), wanted = expected;
    wanted.epoch = 6;
    check_refused(state, expected, wanted, "does not expect this link, of this epoch", false);
}

static void link_refuses_another_link_id(void **state) {
    struct link_config expected = world_config(4, 4096), wanted = expected;
    wanted.link_id = 3;
    check_refused(state, expected, wanted, "does not expect this link", false);
}

static void link_refuses_another_key(void **state) {
    struct link_config expected = world_config(4, 4096), wanted = expected;
    wanted.key[31] ^= 1;
    check_refused(state, expected, wanted, "does not expect this link, of this epoch", false);
}

static void link_refuses_a_sender_that_encrypts_when_it_does_not(void **state) {
    struct link_config expected = world_config(4, 4096), wanted = expected;
    wanted.encrypts = true;
    check_refused(state, expected, wanted, "one end encrypts and the other does not", true);
    check_refused(state, wanted, expected, "one end encrypts and the other does not", true);
}

static void link_refuses_larger_frames_than_it_holds(void **state) {
    struct link_config expected = world_config(4, 4096), wanted = expected;
    wanted.frame_bytes_max = 4097;
    check_refused(state, expected, wanted, "only smaller frames: 4096 bytes", true);
}

static void link_refuses_a_second_sender(void **state) {
    struct world world;
    struct end receiver, sender, second;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(4, 4096);
    world_link(&world, &config, &receiver, &sender);
    struct port *other = world_add_port(&world);
    world_connect(other, port_address(world.ports[0]), &config, &second);
    world_run(&world, 200);
    assert_int_equal(second.up_count, 0);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    assert_true(link_stats(receiver.link).refused_count > 0);
    world_close(&world);
}

static void link_gives_up_when_no_sender_comes(void **state) {
    struct world world;
    struct end receiver;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(4, 4096);
    world_expect(world_add_port(&world), &config, &receiver);
    world_push(&world, LINK_CONNECT_MS - 500);
    assert_int_equal(receiver.lost_count, 0);
    world_push(&world, 600);
    assert_int_equal(receiver.lost_count, 1);
    assert_non_null(strstr(receiver.error.text, "no sender came"));
    world_close(&world);
}

static void link_gives_up_on_an_absent_peer(void **state) {
    struct world world;
    struct end sender;
    char address[64];
    world_open(&world, is_ucx(state));
    struct port *absent = world_add_port(&world), *from = world_add_port(&world);
    snprintf(address, sizeof(address), "%s", port_address(absent));
    port_close(absent);
    world.ports[0] = from;
    world.port_count = 1;
    struct link_config config = world_config(4, 4096);
    world_connect(from, address, &config, &sender);
    world_run(&world, 200);
    assert_int_equal(sender.lost_count, 0);
    world_push(&world, LINK_CONNECT_MS);
    assert_true(world_until(&world, &sender.lost_count, 1, 3000));
    assert_non_null(strstr(sender.error.text, "not made within"));
    world_close(&world);
}

// -- frames --------------------------------------------------------------------------------------

// Log-uniform between empty and 4 MB.
static size_t random_bytes(uint64_t n) {
    double exponent = rng_uniform(11, n) * 22.0 + 1.0;
    size_t bytes = (size_t)1 << (int)exponent;
    return (bytes - 2) + (size_t)(rng_uniform(12, n) * (double)bytes / 2);
}

enum { FLOW_BYTES_MAX = (6 << 20) + 128 };

static void release_one(struct end *receiver, uint64_t draw) {
    // Any of the held frames, so that credits return out of order.
    uint32_t at = (uint32_t)(rng_uniform(13, draw) * receiver->held_count);
    struct frame *frame = receiver->held[at];
    receiver->held[at] = receiver->held[--receiver->held_count];
    link_release(receiver->link, frame);
}

static void check_flow(struct world *world, uint32_t credit_count, uint64_t frame_count) {
    struct end receiver, sender;
    struct link_config config = world_config(credit_count, FLOW_BYTES_MAX);
    world_link(world, &config, &receiver, &sender);
    for (uint32_t i = 0; i <= credit_count; i++)
        sender.returned[sender.returned_count++] = world_frame(FLOW_BYTES_MAX - 128);
    uint64_t sent = 0, verified = 0, released = 0, step = 0;
    uint32_t held_before = 0;
    struct frame *next = NULL; // filled, and not taken by the link yet
    while (released < frame_count) {
        bool full = false;
        while (sent < frame_count && (next != NULL || sender.returned_count > 0) && !full) {
            if (next == NULL) {
                next = sender.returned[--sender.returned_count];
                world_fill(next, sent, random_bytes(sent));
            }
            full = !link_send(sender.link, next);
            if (!full) {
                next = NULL;
                sent++;
            }
            assert_true(sent - released <= credit_count);
        }
        (void)world_poll(world);
        assert_int_equal(sender.lost_count + receiver.lost_count, 0);
        for (uint32_t i = held_before; i < receiver.held_count; i++, verified++)
            world_verify(receiver.held[i], verified, random_bytes(verified));
        while (receiver.held_count > 0 && rng_uniform(14, step++) < 0.7) {
            release_one(&receiver, step);
            released++;
        }
        held_before = receiver.held_count;
    }
    assert_int_equal(link_stats(receiver.link).frame_count, frame_count);
    assert_int_equal(link_stats(receiver.link).refused_count, 0);
    assert_true(world_until(world, &sender.returned_count, credit_count + 1, 1000));
    for (uint32_t i = 0; i < sender.returned_count; i++)
        frame_close(sender.returned[i]);
    link_close(sender.link);
    link_close(receiver.link);
}

static void link_carries_frames_in_order_and_intact(void **state) {
    struct world world;
    world_open(&world, is_ucx(state));
    for (uint32_t credit_count = 1; credit_count <= 8; credit_count++)
        check_flow(&world, credit_count, 1250);
    world_close(&world);
}

static void link_sends_no_more_than_the_credits(void **state) {
    struct world world;
    struct end receiver, sender;
    struct frame *frames[5];
    world_open(&world, is_ucx(state));
    while (world.port_count < 2)
        (void)world_add_port(&world);
    struct link_config granted = world_config(4, 1 << 20), wanted = world_config(8, 1 << 20);
    world_expect(world.ports[0], &granted, &receiver);
    world_connect(world.ports[1], port_address(world.ports[0]), &wanted, &sender);
    frames[0] = world_frame(100);
    world_fill(frames[0], 0, 100);
    assert_false(link_send(sender.link, frames[0])); // not up yet
    assert_true(world_until(&world, &sender.up_count, 1, 3000));
    for (int i = 0; i < 5; i++) {
        if (i > 0) frames[i] = world_frame(100);
        world_fill(frames[i], (uint64_t)i, 100);
        assert_true(link_send(sender.link, frames[i]) == (i < 4));
    }
    assert_true(world_until(&world, &receiver.received_count, 4, 3000));
    assert_true(world_until(&world, &sender.sent_count, 4, 3000));
    assert_false(link_send(sender.link, frames[4])); // arrived, but not released
    link_release(receiver.link, receiver.held[2]);
    world_run(&world, 50);
    assert_true(link_send(sender.link, frames[4]));
    assert_false(link_send(sender.link, frames[0]));
    assert_true(world_until(&world, &receiver.received_count, 5, 3000));
    world_close(&world);
    for (int i = 0; i < 5; i++)
        frame_close(frames[i]);
}

static void link_drops_frames_of_another_epoch_and_counts_them(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(1, 1 << 20);
    world_link(&world, &config, &receiver, &sender);
    struct frame *frame = world_frame(200000);
    for (uint32_t i = 0; i < 10; i++) {
        world_fill(frame, i, i % 3 == 0 ? 200000 : 10);
        ((struct frame_header *)frame->data)->epoch = i == 9 ? 7 : 6;
        uint32_t credited = 0;
        while (!link_send(sender.link, frame)) // the dropped frame's credit returns by itself
            (void)world_until(&world, &credited, 1, 5);
        assert_true(world_until(&world, &sender.sent_count, i + 1, 3000));
    }
    assert_true(world_until(&world, &receiver.received_count, 1, 3000));
    world_verify(receiver.held[0], 9, 200000);
    assert_int_equal(link_stats(receiver.link).refused_count, 9);
    assert_int_equal(receiver.received_count, 1);
    world_close(&world);
    frame_close(frame);
}

static void link_ends_on_a_frame_that_is_not_one(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(2, 1 << 20);
    world_link(&world, &config, &receiver, &sender);
    struct frame *frame = world_frame(10);
    world_fill(frame, 0, 10);
    ((struct frame_header *)frame->data)->magic = 1;
    assert_true(link_send(sender.link, frame));
    assert_true(world_until(&world, &receiver.lost_count, 1, 3000));
    assert_true(world_until(&world, &sender.lost_count, 1, 3000));
    assert_int_equal(sender.sent_count, 1);
    assert_int_equal(receiver.received_count, 0);
    assert_int_equal(link_stats(receiver.link).refused_count, 1);
    world_close(&world);
    frame_close(frame);
}

// -- closing -------------------------------------------------------------------------------------

static void link_tells_the_other_end_that_it_closed(void **state) {
    for (int closer = 0; closer < 2; closer++) {
        struct world world;
        struct end ends[2];
        world_open(&world, is_ucx(state));
        struct link_config config = world_config(4, 4096);
        world_link(&world, &config, &ends[0], &ends[1]);
        link_close(ends[closer].link);
        assert_true(world_until(&world, &ends[!closer].lost_count, 1, 1000));
        assert_int_equal(ends[closer].lost_count, 0);
        link_close(ends[!closer].link);
        // The ports are as good as new.
        world_link(&world, &config, &ends[0], &ends[1]);
        world_close(&world);
    }
}

static void link_closes_in_every_state(void **state) {
    // 0: nobody there  1: hello on its way  2: refused  3: up  4: frames on their way, both sizes
    for (int stage = 0; stage <= 4; stage++) {
        for (int closer = 0; closer < 2; closer++) {
            struct world world;
            struct end receiver = {0}, sender = {0};
            world_open(&world, is_ucx(state));
            struct port *to = world_add_port(&world), *from = world_add_port(&world);
            struct link_config config = world_config(4, 2 << 20), other = config;
            other.epoch = 8;
            struct frame *frames[2] = {world_frame(1 << 20), world_frame(1000)};
            world_expect(to, stage == 2 ? &other : &config, &receiver);
            if (stage > 0) world_connect(from, port_address(to), &config, &sender);
            if (stage == 2) world_run(&world, 30);
            if (stage >= 3) assert_true(world_until(&world, &sender.up_count, 1, 3000));
            for (int i = 0; stage == 4 && i < 2; i++) {
                world_fill(frames[i], (uint64_t)i, i == 0 ? 1 << 20 : 1000);
                assert_true(link_send(sender.link, frames[i]));
            }
            if (closer == 0)
                link_close(receiver.link);
            else
                link_close(sender.link);
            if (closer == 1) memset(frames[0]->data, 0xee, frames[0]->size_bytes);
            world_run(&world, 20);
            for (uint32_t i = 0; i < receiver.held_count; i++)
                link_release(receiver.link, receiver.held[i]);
            if (closer == 0)
                link_close(sender.link);
            else
                link_close(receiver.link);
            world_close(&world);
            frame_close(frames[0]);
            frame_close(frames[1]);
        }
    }
}

static void link_gives_frames_back_before_it_is_lost(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(4, 2 << 20);
    world_link(&world, &config, &receiver, &sender);
    struct frame *frames[4];
    for (int i = 0; i < 4; i++) {
        frames[i] = world_frame(1 << 20);
        world_fill(frames[i], (uint64_t)i, 1 << 20);
        assert_true(link_send(sender.link, frames[i]));
    }
    link_close(receiver.link); // end_sent checks that `lost` has not run
    assert_true(world_until(&world, &sender.lost_count, 1, 3000));
    assert_int_equal(sender.sent_count, 4);
    world_close(&world);
    for (int i = 0; i < 4; i++)
        frame_close(frames[i]);
}

static void link_keeps_received_frames_after_it_is_closed(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(4, 2 << 20);
    world_link(&world, &config, &receiver, &sender);
    struct frame *frame = world_frame(1 << 20);
    world_fill(frame, 5, 1 << 20);
    assert_true(link_send(sender.link, frame));
    assert_true(world_until(&world, &receiver.received_count, 1, 3000));
    struct frame *held = receiver.held[0];
    link_close(receiver.link);
    link_close(sender.link);
    world_run(&world, 20);
    world_verify(held, 5, 1 << 20);
    link_release(receiver.link, held);
    world_run(&world, 20);
    world_close(&world);
    frame_close(frame);
}

// -- silence -------------------------------------------------------------------------------------

static void link_lives_on_pings_alone(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(4, 4096);
    world_link(&world, &config, &receiver, &sender);
    for (int i = 0; i < 10; i++) {
        world_push(&world, 1000);
        world_run(&world, 5);
    }
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    world_close(&world);
}

static void link_is_lost_when_the_peer_is_silent(void **state) {
    for (int silent = 0; silent < 2; silent++) {
        struct world world, half;
        struct end ends[2];
        world_open(&world, is_ucx(state));
        struct link_config config = world_config(4, 4096);
        world_link(&world, &config, &ends[0], &ends[1]);
        half = world;
        half.ports[0] = world.ports[!silent]; // the other port does nothing any more
        half.port_count = 1;
        world_push(&half, LINK_LOST_MS - 600);
        world_run(&half, 5);
        assert_int_equal(ends[!silent].lost_count, 0);
        world_push(&half, 800);
        assert_true(world_until(&half, &ends[!silent].lost_count, 1, 3000));
        assert_non_null(strstr(ends[!silent].error.text, "silent"));
        world_close(&world);
    }
}

static void port_forgives_peers_after_its_own_pause(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(4, 4096);
    world_link(&world, &config, &receiver, &sender);
    world_pushed_ns += 60 * UINT64_C(1000000000);
    world_run(&world, 50);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    world_close(&world);
}

static void port_wakes_for_its_descriptor(void **state) {
    struct world world;
    int fds[2];
    world_open(&world, is_ucx(state));
    struct port *port = world_add_port(&world);
    assert_int_equal(pipe(fds), 0);
    struct clock real = clock_system();
    uint64_t begin_ms = clock_now_ms(&real);
    while (port_poll(port))
        continue;
    port_wait(port, fds[0], 50);
    assert_in_range(clock_now_ms(&real) - begin_ms, 40, 2000);
    assert_int_equal(write(fds[1], "x", 1), 1);
    begin_ms = clock_now_ms(&real);
    port_wait(port, fds[0], 5000);
    assert_in_range(clock_now_ms(&real) - begin_ms, 0, 1000);
    close(fds[0]);
    close(fds[1]);
    world_close(&world);
}

static void link_connect_refuses_a_malformed_address(void **state) {
    struct world world;
    struct link *link;
    struct error error;
    world_open(&world, is_ucx(state));
    struct port *port = world_add_port(&world);
    struct link_config config = world_config(1, 4096);
    assert_int_equal(link_connect(port, "nonsense", &config, NULL, &link, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "nonsense"));
    world_close(&world);
}

// -- resources -----------------------------------------------------------------------------------

static size_t resident_bytes(void) {
    long pages = 0, ignored;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%ld %ld", &ignored, &pages), 2);
    fclose(file);
    return (size_t)pages * 4096;
}

static void link_touches_only_the_buffers_it_uses(void **state) {
    struct world world;
    struct end receiver, sender;
    world_open(&world, is_ucx(state));
    struct link_config config = world_config(LINK_CREDIT_COUNT_MAX, 64 << 20);
    size_t before_bytes = resident_bytes();
    world_link(&world, &config, &receiver, &sender);
    struct frame *frame = world_frame(1000);
    for (uint32_t i = 0; i < 1000; i++) {
        world_fill(frame, i, 1000);
        while (!link_send(sender.link, frame))
            (void)world_poll(&world);
        assert_true(world_until(&world, &receiver.held_count, 1, 1000));
        assert_true(world_until(&world, &sender.sent_count, i + 1, 1000));
        link_release(receiver.link, receiver.held[--receiver.held_count]);
        sender.returned_count = 0;
    }
    assert_in_range(resident_bytes() - before_bytes, 0, 128 << 20); // of 4 GiB that were granted
    world_close(&world);
    frame_close(frame);
}

// -- the table -----------------------------------------------------------------------------------

static const struct CMUnitTest tests[] = {
    OVER_ALL(link_comes_up_at_both_ends),
    cmocka_unit_test(ucx_link_comes_up_over_ipv6),
    OVER_ALL(link_waits_for_a_late_expect),
    OVER_ALL(link_refuses_another_epoch),
    OVER_ALL(link_refuses_another_link_id),
    OVER_ALL(link_refuses_another_key),
    OVER_ALL(link_refuses_a_sender_that_encrypts_when_it_does_not),
    OVER_ALL(link_refuses_larger_frames_than_it_holds),
    OVER_ALL(link_refuses_a_second_sender),
    OVER_ALL(link_gives_up_when_no_sender_comes),
    OVER_ALL(link_gives_up_on_an_absent_peer),
    OVER_ALL(link_carries_frames_in_order_and_intact),
    OVER_ALL(link_sends_no_more_than_the_credits),
    OVER_ALL(link_drops_frames_of_another_epoch_and_counts_them),
    OVER_ALL(link_ends_on_a_frame_that_is_not_one),
    OVER_ALL(link_tells_the_other_end_that_it_closed),
    OVER_ALL(link_closes_in_every_state),
    OVER_ALL(link_gives_frames_back_before_it_is_lost),
    OVER_ALL(link_keeps_received_frames_after_it_is_closed),
    OVER_ALL(link_lives_on_pings_alone),
    OVER_ALL(link_is_lost_when_the_peer_is_silent),
    OVER_ALL(port_forgives_peers_after_its_own_pause),
    OVER_ALL(port_wakes_for_its_descriptor),
    OVER_ALL(link_connect_refuses_a_malformed_address),
    OVER_ALL(link_touches_only_the_buffers_it_uses),
};

int main(int argc, char **argv) {
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
