// Who may call, and calls that go on while certificates change.
#include "transport/rpc_access.h"

#include "base/log.h"
#include "rpc_world.h"

// -- files ---------------------------------------------------------------------------------------

struct files {
    char folder[64];
    char *paths[12]; // made so far
    size_t path_count;
};

PRINTF_LIKE(1, 2) static void run(const char *format, ...) {
    char command[1024];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(command, sizeof(command), format, arguments);
    va_end(arguments);
    if (system(command) != 0) fail_msg("failed: %s", command);
}

static void make_files(struct files *files, const char *options) {
    *files = (struct files){.folder = "/tmp/rpc-access-XXXXXX"};
    assert_non_null(mkdtemp(files->folder));
    run(STAGECOACH_SOURCE_DIR "/deploy/certificates %s %s", files->folder, options);
}

static void remove_files(const struct files *files) {
    run("rm -r %s", files->folder);
    for (size_t i = 0; i < files->path_count; i++)
        free(files->paths[i]);
}

static const char *path_of(struct files *files, const char *name) {
    assert_true(files->path_count < 12);
    char **path = &files->paths[files->path_count++];
    assert_true(asprintf(path, "%s/%s", files->folder, name) > 0);
    return *path;
}

static struct rpc_access *open_access(const struct rpc_access_config *config) {
    struct rpc_access *access;
    struct error error = {0};
    if (rpc_access_open(config, &access, &error) != STATUS_OK) fail_msg("%s", error.text);
    return access;
}

static struct rpc_access *open_pair(struct files *files, const char *cert, const char *key) {
    const struct rpc_access_config config = {
        .cert = path_of(files, cert), .key = path_of(files, key), .ca = path_of(files, "ca.pem")};
    return open_access(&config);
}

static void wait_generation(struct rpc_access *access, uint32_t wanted) {
    uint64_t end_ms = now_ms() + WAIT_MS;
    while (rpc_access_generation(access) != wanted) {
        assert_true(now_ms() < end_ms);
        usleep(10000);
    }
}

// -- rules ---------------------------------------------------------------------------------------

static void roles_are_uris_written_exactly(void **state) {
    (void)state;
    static const struct {
        const char *uri;
        uint32_t role;
    } cases[] = {
        {"stagecoach://role/client", RPC_ROLE_CLIENT},
        {"stagecoach://role/operator", RPC_ROLE_OPERATOR},
        {"stagecoach://role/stage", RPC_ROLE_STAGE},
        {"stagecoach://role/", 0},
        {"stagecoach://role/clients", 0},
        {"stagecoach://role/clien", 0},
        {"stagecoach://role/Client", 0},
        {"stagecoach://role/client/", 0},
        {"https://stagecoach://role/client", 0},
        {"client", 0},
        {"", 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(rpc_role_of_uri(cases[i].uri, strlen(cases[i].uri)), cases[i].role);
    assert_int_equal(rpc_role_of_uri("stagecoach://role/client\0x", 26), 0);
}

static enum rpc_code decide(struct rpc_access *access, uint32_t certificate_roles,
                            bool has_certificate, const char *authorization, uint32_t roles) {
    struct rpc_caller caller = {
        .name = "name", .roles = certificate_roles, .has_certificate = has_certificate};
    struct error error = {0};
    enum rpc_code code = rpc_access_decide(access, &caller, authorization, "S", roles, &error);
    assert_int_equal(code == RPC_OK, error.text[0] == '\0');
    return code;
}

static void callers_need_a_certificate_or_token_with_the_role(void **state) {
    (void)state;
    struct files files;
    make_files(&files, "");
    run("echo client-token-0000 web > %s/tokens", files.folder);
    const struct rpc_access_config config = {.cert = path_of(&files, "coordinator.pem"),
                                             .key = path_of(&files, "coordinator.key"),
                                             .ca = path_of(&files, "ca.pem"),
                                             .tokens = path_of(&files, "tokens")};
    const struct rpc_access_config plain_config = {.tokens = config.tokens};
    struct rpc_access *tls = open_pair(&files, "coordinator.pem", "coordinator.key");
    struct rpc_access *both = open_access(&config);
    struct rpc_access *plain = open_access(&plain_config);
    const char *good = "Bearer client-token-0000", *bad = "Bearer client-token-0001";
    const uint32_t client = RPC_ROLE_CLIENT, stage = RPC_ROLE_STAGE;

    assert_int_equal(decide(NULL, 0, false, NULL, stage), RPC_OK); // nobody is known

    assert_int_equal(decide(tls, client, true, NULL, client), RPC_OK);
    assert_int_equal(decide(tls, client | stage, true, NULL, stage), RPC_OK);
    assert_int_equal(decide(tls, client, true, NULL, client | stage), RPC_OK);
    assert_int_equal(decide(tls, client, true, NULL, stage), RPC_PERMISSION_DENIED);
    assert_int_equal(decide(tls, 0, true, NULL, client), RPC_PERMISSION_DENIED);
    assert_int_equal(decide(tls, 0, true, NULL, RPC_ROLES_ANY), RPC_OK);
    assert_int_equal(decide(tls, 0, false, NULL, RPC_ROLES_ANY), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(tls, 0, false, good, client), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(tls, client, true, bad, client), RPC_OK); // not a server with tokens

    assert_int_equal(decide(both, 0, false, good, client), RPC_OK);
    assert_int_equal(decide(both, stage, true, good, client), RPC_OK);
    assert_int_equal(decide(both, 0, false, good, RPC_ROLES_ANY), RPC_OK);
    assert_int_equal(decide(both, 0, false, good, stage), RPC_PERMISSION_DENIED);
    assert_int_equal(decide(both, 0, false, bad, client), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(both, client, true, bad, client), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(both, 0, false, NULL, client), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(both, 0, false, NULL, RPC_ROLES_ANY), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(both, 0, false, "Bearer", client), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(both, 0, false, "", client), RPC_UNAUTHENTICATED);

    assert_int_equal(decide(plain, 0, false, good, client), RPC_OK);
    assert_int_equal(decide(plain, 0, false, NULL, client), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(plain, 0, false, NULL, stage), RPC_UNAUTHENTICATED);
    assert_int_equal(decide(plain, 0, false, NULL, RPC_ROLES_ANY), RPC_OK);
    rpc_access_close(tls);
    rpc_access_close(both);
    rpc_access_close(plain);
    remove_files(&files);
}

static void plaintext_stays_on_this_machine(void **state) {
    (void)state;
    static const char *const inside[] = {"127.0.0.1:0",          "127.9.9.9:1", "[::1]:0",
                                         "[::ffff:127.0.0.1]:0", "localhost:1", "unix:/tmp/x"};
    static const char *const outside[] = {
        ":0",           "0.0.0.0:0",           "[::]:0", "192.0.2.1:1", "[2001:db8::1]:1",
        "no.invalid:1", "[::ffff:192.0.2.1]:0"};
    const struct rpc_access_config config = {.insecure = true};
    struct rpc_access *insecure = open_access(&config);
    struct error error;
    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++)
        assert_int_equal(rpc_access_check_listen(NULL, inside[i], &error), STATUS_OK);
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        assert_int_equal(rpc_access_check_listen(NULL, outside[i], &error), STATUS_INVALID);
        assert_non_null(strstr(error.text, outside[i]));
        assert_int_equal(rpc_access_check_listen(insecure, outside[i], &error), STATUS_OK);
    }
    rpc_access_close(insecure);
    // The server itself keeps to it.
    struct rpc *rpc;
    uint16_t port;
    assert_int_equal(rpc_open(&(struct rpc_config){0}, &rpc), STATUS_OK);
    assert_int_equal(rpc_serve(rpc, "0.0.0.0:0", &port, &error), STATUS_INVALID);
    rpc_close(rpc, 0);
}

// -- calls ---------------------------------------------------------------------------------------

// The caller of the last Detokenize call.
static pthread_mutex_t caller_mutex = PTHREAD_MUTEX_INITIALIZER;
static char last_caller[64];

static void *caller_begin(struct rpc_call *call, void *service_ctx) {
    pthread_mutex_lock(&caller_mutex);
    (void)snprintf(last_caller, sizeof(last_caller), "%s", rpc_call_caller(call));
    pthread_mutex_unlock(&caller_mutex);
    return server_begin(call, service_ctx);
}

static void assert_caller(struct world *world, const char *name) {
    Stagecoach__V1__DetokenizeRequest request = STAGECOACH__V1__DETOKENIZE_REQUEST__INIT;
    const struct rpc_call_options options = {.deadline_ms = WAIT_MS};
    ProtobufCMessage *response = NULL;
    struct error error = {0};
    enum rpc_code code = rpc_call_wait(world->channel, INFERENCE, "Detokenize", &request.base,
                                       &options, &response, &error);
    if (code != RPC_OK) fail_msg("%s: %s", rpc_code_name(code), error.text);
    protobuf_c_message_free_unpacked(response, NULL);
    pthread_mutex_lock(&caller_mutex);
    assert_string_equal(last_caller, name);
    pthread_mutex_unlock(&caller_mutex);
}

// The world's services, with mutual TLS; Detokenize keeps its caller.
static void open_world(struct world *world, struct rpc_access *server, struct rpc_access *client,
                       const char *address) {
    static struct rpc_method methods[3];
    memcpy(methods, world_inference(), sizeof(methods));
    methods[1].handler.begin = caller_begin;
    *world = (struct world){0};
    seen_init(&world->server);
    struct error error = {0};
    const struct rpc_config config = {.access = server}, client_config = {.access = client};
    assert_int_equal(rpc_open(&config, &world->server_rpc), STATUS_OK);
    assert_int_equal(
        rpc_add_service(world->server_rpc, INFERENCE, methods, 3, world, RPC_ROLE_CLIENT, &error),
        STATUS_OK);
    assert_int_equal(rpc_add_service(world->server_rpc, CONTROL, world_control(), 1, world,
                                     RPC_ROLES_ANY, &error),
                     STATUS_OK);
    if (rpc_serve(world->server_rpc, address, &world->port, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    char target[128];
    (void)snprintf(target, sizeof(target), "%s", address);
    if (world->port != 0) (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world->port);
    world_dial(world, &client_config, target);
}

static void streams_go_on_and_new_calls_show_the_new_certificate(void **state) {
    (void)state;
    struct files files;
    make_files(&files, "");
    struct rpc_access *server = open_pair(&files, "coordinator.pem", "coordinator.key");
    struct rpc_access *client = open_pair(&files, "client.pem", "client.key");
    struct world world;
    open_world(&world, server, client, "127.0.0.1:0");
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *stream = start_join(&world, &seen);
    assert_true(send_heartbeat(stream, 1));
    assert_true(seen_wait(&seen, &seen.message_count, 1, WAIT_MS));
    assert_caller(&world, "client");

    // Both sides get new certificates, twice; the client another name each time.
    static const char *const names[] = {"second", "third"};
    for (uint32_t i = 0; i < 2; i++) {
        run(STAGECOACH_SOURCE_DIR "/deploy/certificates %s --only %s && cd %s && mv %s.key "
                                  "client.key && mv %s.pem client.pem",
            files.folder, names[i], files.folder, names[i], names[i]);
        run(STAGECOACH_SOURCE_DIR "/deploy/certificates %s --only coordinator", files.folder);
        wait_generation(client, i + 2);
        wait_generation(server, i + 2);
        assert_caller(&world, names[i]);
        assert_true(send_heartbeat(stream, i + 2));
        assert_true(seen_wait(&seen, &seen.message_count, i + 2, WAIT_MS));
        assert_int_equal(seen.closed_count, 0);
    }
    rpc_call_send_end(stream);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_OK);
    rpc_call_release(stream);
    seen_fini(&seen);
    world_close(&world);
    rpc_access_close(client);
    rpc_access_close(server);
    remove_files(&files);
}

static void bad_files_change_nothing(void **state) {
    (void)state;
    struct files files;
    make_files(&files, "");
    struct rpc_access *server = open_pair(&files, "coordinator.pem", "coordinator.key");
    struct rpc_access *client = open_pair(&files, "client.pem", "client.key");
    struct world world;
    open_world(&world, server, client, "127.0.0.1:0");
    run("cd %s && cp stage.key coordinator.key && rm client.pem && echo nothing > ca.pem",
        files.folder);
    usleep(2500000); // longer than the files are given to settle
    assert_int_equal(rpc_access_generation(server), 1);
    assert_int_equal(rpc_access_generation(client), 1);
    struct rpc_channel *other; // a new connection
    assert_int_equal(rpc_channel_open(world.client_rpc, world.address, &other), STATUS_OK);
    rpc_channel_close(world.channel);
    world.channel = other;
    assert_caller(&world, "client");
    world_close(&world);
    rpc_access_close(client);
    rpc_access_close(server);
    remove_files(&files);
}

static void unix_sockets_speak_tls_too(void **state) {
    (void)state;
    struct files files;
    make_files(&files, "");
    char address[128];
    (void)snprintf(address, sizeof(address), "unix:%s/socket", files.folder);
    struct rpc_access *server = open_pair(&files, "coordinator.pem", "coordinator.key");
    struct rpc_access *client = open_pair(&files, "client.pem", "client.key");
    struct world world;
    open_world(&world, server, client, address);
    assert_caller(&world, "client");
    world_close(&world);
    rpc_access_close(client);
    rpc_access_close(server);
    remove_files(&files);
}

static void refused_calls_leave_nothing_behind(void **state) {
    (void)state;
    struct files files;
    make_files(&files, "");
    struct rpc_access *server = open_pair(&files, "coordinator.pem", "coordinator.key");
    struct rpc_access *client = open_pair(&files, "operator.pem", "operator.key");
    struct world world;
    open_world(&world, server, client, "127.0.0.1:0");
    struct error error = {0};
    for (int i = 0; i < 200; i++)
        assert_int_equal(tokenize(&world, "text", WAIT_MS, NULL, &error), RPC_PERMISSION_DENIED);
    assert_string_equal(error.text, "stagecoach.v1.Inference needs the role client, 'operator' has "
                                    "operator");
    assert_int_equal(world.server.begun_count, 0);
    world_close(&world);
    rpc_access_close(client);
    rpc_access_close(server);
    remove_files(&files);
}

int main(void) {
    log_init("test", LOG_NONE);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(roles_are_uris_written_exactly),
        cmocka_unit_test(callers_need_a_certificate_or_token_with_the_role),
        cmocka_unit_test(plaintext_stays_on_this_machine),
        cmocka_unit_test(streams_go_on_and_new_calls_show_the_new_certificate),
        cmocka_unit_test(bad_files_change_nothing),
        cmocka_unit_test(unix_sockets_speak_tls_too),
        cmocka_unit_test(refused_calls_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
