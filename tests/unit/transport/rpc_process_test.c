// A server in another process that dies, stops, is flooded, or is just quiet.
#include "rpc_world.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "base/limits.h"

// What this program does when it is started as "rpc_process_test serve": prints its port, then
// waits.
static int serve_until_killed(void) {
    static struct world world;
    const struct rpc_config config = {.receive_bytes_max = 1 << 20};
    struct error error = {0};
    seen_init(&world.server);
    bool serves = rpc_open(&config, &world.server_rpc) == STATUS_OK &&
                  rpc_add_service(world.server_rpc, INFERENCE, world_inference(), 3, &world,
                                  RPC_ROLE_CLIENT, &error) == STATUS_OK &&
                  rpc_serve(world.server_rpc, "127.0.0.1:0", &world.port, &error) == STATUS_OK;
    if (!serves) return 1;
    (void)printf("%u\n", world.port);
    (void)fflush(stdout);
    sleep(60);
    return 1;
}

static pid_t spawn_server(uint16_t *port_out) {
    int out[2];
    assert_int_equal(pipe(out), 0);
    posix_spawn_file_actions_t actions;
    assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, out[0]);
    char program[] = "/proc/self/exe", role[] = "serve";
    char *arguments[] = {program, role, NULL};
    pid_t pid;
    assert_int_equal(posix_spawn(&pid, program, &actions, NULL, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    FILE *file = fdopen(out[0], "r");
    assert_non_null(file);
    unsigned port = 0;
    assert_int_equal(fscanf(file, "%u", &port), 1);
    (void)fclose(file);
    *port_out = (uint16_t)port;
    return pid;
}

static size_t peak_memory_bytes(pid_t pid) {
    char path[64], line[256];
    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    size_t peak_kib = 0;
    while (fgets(line, sizeof(line), file) != NULL) {
        (void)sscanf(line, "VmHWM: %zu", &peak_kib);
    }
    (void)fclose(file);
    assert_true(peak_kib > 0);
    return peak_kib << 10;
}

static void huge_message_does_not_grow_the_server(void **state) {
    (void)state;
    enum { TEXT_BYTES = 200 << 20 };
    const struct rpc_config config = {0};
    struct world world = {0};
    pid_t pid = spawn_server(&world.port);
    char target[64];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world.port);
    world_dial(&world, &config, target);
    char *text = malloc(TEXT_BYTES + 1);
    assert_non_null(text);
    memset(text, 'x', TEXT_BYTES);
    text[TEXT_BYTES] = '\0';
    struct error error = {0};
    assert_int_equal(tokenize(&world, text, WAIT_MS, NULL, &error), RPC_RESOURCE_EXHAUSTED);
    free(text);
    size_t peak_bytes = peak_memory_bytes(pid);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)peak_bytes; // sanitizers keep freed memory and shadows of it
#else
    assert_true(peak_bytes < TEXT_BYTES * 3 / 4);
#endif
    assert_int_equal(tokenize(&world, "alive", WAIT_MS, NULL, &error), RPC_OK);
    rpc_channel_close(world.channel);
    rpc_close(world.client_rpc, 0);
    (void)kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

// Sends the signal to a server in the middle of a call; how long the client took to notice.
static uint64_t notice_ms(int signal_number) {
    const struct rpc_config config = {0};
    struct world world = {0};
    pid_t pid = spawn_server(&world.port);
    char target[64];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world.port);
    world_dial(&world, &config, target);
    assert_int_equal(tokenize(&world, "alive", 10000, NULL, NULL), RPC_OK);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_generate(&world, &seen, "hang", 0, 0);
    usleep(100000);
    uint64_t start_ms = now_ms();
    assert_int_equal(kill(pid, signal_number), 0);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    uint64_t spent_ms = now_ms() - start_ms;
    assert_int_equal(seen_code(&seen), RPC_UNAVAILABLE);
    rpc_call_release(call);
    rpc_channel_close(world.channel);
    rpc_close(world.client_rpc, 0);
    seen_fini(&seen);
    (void)kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    return spent_ms;
}

static void killed_server_is_noticed_at_once(void **state) {
    (void)state;
    assert_true(notice_ms(SIGKILL) < 1000);
}

static void stopped_server_is_noticed_by_keepalive(void **state) {
    (void)state;
    assert_true(notice_ms(SIGSTOP) < 2 * (RPC_KEEPALIVE_MS + RPC_KEEPALIVE_TIMEOUT_MS));
}

static void quiet_call_and_quiet_channel_survive_keepalive(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct rpc_channel *quiet;
    assert_int_equal(rpc_channel_open(world.client_rpc, world.address, &quiet), STATUS_OK);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_join(&world, &seen);
    assert_true(send_heartbeat(call, 1));
    usleep(5 * RPC_KEEPALIVE_MS * 1000); // a server that finds fault with our pings says so in 3 s
    assert_true(send_heartbeat(call, 2));
    assert_true(seen_wait(&seen, &seen.message_count, 2, WAIT_MS));
    assert_int_equal(seen.closed_count, 0);
    rpc_call_send_end(call);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_OK);
    rpc_call_release(call);
    rpc_channel_close(quiet);
    world_close(&world);
    seen_fini(&seen);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "serve") == 0) return serve_until_killed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(huge_message_does_not_grow_the_server),
        cmocka_unit_test(killed_server_is_noticed_at_once),
        cmocka_unit_test(stopped_server_is_noticed_by_keepalive),
        cmocka_unit_test(quiet_call_and_quiet_channel_survive_keepalive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
