// link_ucx between processes: peers that are killed, stopped, or gone quietly.
#include "link_world.h"

#include "carriers.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

// The child is this program again: it connects to argv[2] as the sender, sends 1 MB frames whenever
// it may when argv[3] is "send", and goes on until it is killed or loses its link.
static int child_main(const char *address, bool sends) {
    struct world world;
    struct end sender;
    world_open(&world, true);
    struct port *port = world_add_port(&world);
    struct link_config config = world_config(4, 2 << 20);
    (void)world_text(); // takes long enough with sanitizers to be missed
    world_connect(port, address, &config, &sender);
    for (int i = 0; i < 5; i++) {
        struct frame *frame = world_frame(1 << 20);
        world_fill(frame, 0, 1 << 20);
        sender.returned[sender.returned_count++] = frame;
    }
    while (sender.lost_count == 0) {
        if (!port_poll(port)) port_wait(port, -1, 1000);
        while (sends && sender.lost_count == 0 && sender.returned_count > 0) {
            sender.returned_count--;
            struct frame *frame = sender.returned[sender.returned_count];
            if (link_send(sender.link, frame)) continue;
            sender.returned_count++;
            break;
        }
    }
    world_close(&world);
    return 0;
}

static pid_t child_start(const char *address, bool sends) {
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) return pid;
    execl("/proc/self/exe", "link_test", "child", address, sends ? "send" : "idle", (char *)NULL);
    _exit(127);
}

static void child_end(pid_t pid) {
    (void)kill(pid, SIGCONT);
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}

static void check_child_lost(int signal, bool sends, uint64_t limit_ms) {
    struct world world;
    struct end receiver;
    world_open(&world, true);
    struct port *port = world_add_port(&world);
    struct link_config config = world_config(4, 2 << 20);
    world_expect(port, &config, &receiver);
    pid_t pid = child_start(port_address(port), sends);
    assert_true(world_until(&world, &receiver.up_count, 1, 5000));
    struct clock real = clock_system();
    uint64_t end_ms = clock_now_ms(&real) + 200, limit_end_ms = end_ms + 20000;
    while (clock_now_ms(&real) < end_ms || (sends && receiver.received_count == 0)) {
        if (receiver.lost_count > 0) fail_msg("%s", receiver.error.text);
        assert_true(clock_now_ms(&real) < limit_end_ms);
        if (!world_poll(&world)) port_wait(port, -1, 5);
        while (receiver.held_count > 0)
            link_release(receiver.link, receiver.held[--receiver.held_count]);
    }
    assert_true(sends == (receiver.received_count > 0));
    uint64_t begin_ms = clock_now_ms(&real);
    assert_int_equal(kill(pid, signal), 0);
    bool lost = world_until(&world, &receiver.lost_count, 1, limit_ms);
    uint64_t took_ms = clock_now_ms(&real) - begin_ms;
    child_end(pid);
    if (!lost) fail_msg("not lost after %u ms", (unsigned)took_ms);
    print_message("lost %u ms after signal %d\n", (unsigned)took_ms, signal);
    link_close(receiver.link);
    world_close(&world);
}

static void link_is_lost_soon_after_its_peer_is_killed(void **state) {
    (void)is_ucx(state);
    check_child_lost(SIGKILL, false, 1000);
}

static void link_is_lost_soon_after_its_peer_is_killed_while_sending(void **state) {
    (void)is_ucx(state);
    check_child_lost(SIGKILL, true, 1000);
}

static void link_is_lost_when_its_peer_is_stopped(void **state) {
    (void)is_ucx(state);
    check_child_lost(SIGSTOP, false, LINK_LOST_MS + 1000);
}

static void link_is_lost_when_its_peer_is_stopped_while_sending(void **state) {
    (void)is_ucx(state);
    check_child_lost(SIGSTOP, true, LINK_LOST_MS + 1000);
}

static void frames_come_back_when_the_receiver_is_stopped(void **state) {
    (void)is_ucx(state);
    // The receiver is the child here, in the shape of a second sender's port that never polls
    // again: the parent sends by rendezvous into a port that nobody progresses.
    struct world world, half;
    struct end receiver, sender;
    world_open(&world, true);
    struct link_config config = world_config(4, 2 << 20);
    world_link(&world, &config, &receiver, &sender);
    struct frame *frame = world_frame(1 << 20);
    world_fill(frame, 0, 1 << 20);
    assert_true(link_send(sender.link, frame));
    half = world;
    half.ports[0] = world.ports[1];
    half.port_count = 1;
    world_push(&half, LINK_LOST_MS + 200);
    assert_true(world_until(&half, &sender.lost_count, 1, 3000));
    assert_int_equal(sender.sent_count, 1);
    link_close(sender.link);
    world_close(&world);
    frame_close(frame);
}

// In a process of its own, since cmocka has handlers too. Exits with the number of handlers found.
static int signals_main(void) {
    static const int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};
    struct world world;
    int count = 0;
    world_open(&world, true);
    (void)world_add_port(&world);
    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
        struct sigaction action;
        if (sigaction(signals[i], NULL, &action) != 0 || action.sa_handler != SIG_DFL) count++;
    }
    world_close(&world);
    return count;
}

static void ucx_leaves_the_signals_of_crashes_alone(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); // the sanitizers have handlers of their own
#endif
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "link_test", "signals", (char *)NULL);
        _exit(127);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static const struct CMUnitTest tests[] = {
    OVER("ucx", CARRIER_UCX, link_is_lost_soon_after_its_peer_is_killed),
    OVER("tcp", CARRIER_TCP, link_is_lost_soon_after_its_peer_is_killed),
    OVER("ucx", CARRIER_UCX, link_is_lost_soon_after_its_peer_is_killed_while_sending),
    OVER("tcp", CARRIER_TCP, link_is_lost_soon_after_its_peer_is_killed_while_sending),
    OVER("ucx", CARRIER_UCX, link_is_lost_when_its_peer_is_stopped),
    OVER("tcp", CARRIER_TCP, link_is_lost_when_its_peer_is_stopped),
    OVER("ucx", CARRIER_UCX, link_is_lost_when_its_peer_is_stopped_while_sending),
    OVER("tcp", CARRIER_TCP, link_is_lost_when_its_peer_is_stopped_while_sending),
    OVER("ucx", CARRIER_UCX, frames_come_back_when_the_receiver_is_stopped),
    OVER("tcp", CARRIER_TCP, frames_come_back_when_the_receiver_is_stopped),
    cmocka_unit_test(ucx_leaves_the_signals_of_crashes_alone),
};

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "child") == 0)
        return child_main(argv[2], strcmp(argv[3], "send") == 0);
    if (argc == 2 && strcmp(argv[1], "signals") == 0) return signals_main();
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
