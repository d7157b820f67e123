// interop_server: grpc.testing.TestService on transport/rpc, for tests. Prints the port, then
// serves until SIGTERM. See --help.
#include <stdio.h>

#include "base/log.h"
#include "base/options.h"
#include "base/signals.h"
#include "descriptors.h"
#include "service.h"
#include "transport/rpc_access.h"
#include "transport/rpc_health.h"
#include "transport/rpc_reflection.h"

enum { GRACE_MS = 1000 };

struct settings {
    const char *listen;
    uint64_t receive_bytes_max, call_count_max;
    struct rpc_access_config access;
};

static enum options_result parse(int argc, char **argv, struct settings *s) {
    const struct option_spec specs[] = {
        {"listen", OPTION_TEXT, &s->listen, "HOST:PORT",
         "where clients call; port 0: any (default 127.0.0.1:0)", 0, 0},
        {"message-bytes", OPTION_COUNT, &s->receive_bytes_max, "N",
         "bytes of the largest message that is taken (default 4194304)", 1, INT32_MAX},
        {"calls", OPTION_COUNT, &s->call_count_max, "N", "calls in progress (default 4096)", 1,
         1 << 20},
        RPC_ACCESS_OPTIONS_TLS(&s->access),
        {"tokens", OPTION_TEXT, &s->access.tokens, "FILE",
         "bearer tokens of callers (default: none)", 0, 0},
    };
    const struct options options = {
        .program = "interop_server",
        .purpose = "serves grpc.testing.TestService for tests",
        .usage = "[options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    return options_parse(&options, argc, argv, &positional_count);
}

static enum status add_services(struct rpc *rpc, struct service *service, struct rpc_health *health,
                                struct error *error) {
    enum status status = service_add(service, rpc, error);
    if (status == STATUS_OK) status = rpc_health_add(health, rpc, error);
    if (status == STATUS_OK) status = rpc_reflection_add(rpc, error);
    rpc_health_set(health, "", RPC_HEALTH_SERVING);
    rpc_health_set(health, "grpc.testing.TestService", RPC_HEALTH_SERVING);
    return status;
}

// Serves until a signal comes, so that what is left at the end can be looked at.
static enum status serve(const struct settings *s, struct rpc *rpc, struct error *error) {
    struct wake wake;
    enum status status = wake_init(&wake);
    if (status != STATUS_OK) return error_set(error, status, "no eventfd");
    uint16_t port;
    status = signals_listen(&wake);
    if (status == STATUS_OK) status = rpc_serve(rpc, s->listen, &port, error);
    if (status == STATUS_OK) {
        (void)printf("%u\n", (unsigned)port);
        (void)fflush(stdout);
        while (!signals_stop_asked()) {
            wake_wait(&wake, -1);
        }
    }
    wake_fini(&wake);
    return status;
}

static enum status run_with(const struct settings *s, struct service *service,
                            struct rpc_health *health, struct rpc_access *access,
                            struct error *error) {
    const struct rpc_config config = {
        .receive_bytes_max = s->receive_bytes_max,
        .call_count_max = (uint32_t)s->call_count_max,
        .descriptor_set = interop_descriptors_begin,
        .descriptor_set_bytes = interop_descriptors_size_bytes(),
        .access = access,
    };
    struct rpc *rpc;
    enum status status = rpc_open(&config, &rpc);
    if (status != STATUS_OK) return error_set(error, status, "gRPC cannot be started");
    status = add_services(rpc, service, health, error);
    if (status == STATUS_OK) status = serve(s, rpc, error);
    rpc_health_end_watches(health);
    rpc_close(rpc, GRACE_MS);
    return status;
}

static enum status run(const struct settings *s, struct error *error) {
    struct service *service;
    struct rpc_health *health;
    struct rpc_access *access;
    enum status status = rpc_access_open(&s->access, &access, error);
    if (status != STATUS_OK) return status;
    (void)error_set(error, STATUS_OK, "a service cannot be opened");
    status = service_open(&service);
    if (status != STATUS_OK) goto close_access;
    status = rpc_health_open(&health);
    if (status != STATUS_OK) goto close_service;
    status = run_with(s, service, health, access, error);
    rpc_health_close(health);
close_service:
    service_close(service);
close_access:
    rpc_access_close(access);
    return status;
}

int main(int argc, char **argv) {
    signals_block();
    struct settings settings = {.listen = "127.0.0.1:0"};
    enum options_result result = parse(argc, argv, &settings);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? 0 : 2;
    log_init("interop_server", LOG_INFO);
    struct error error = {0};
    if (run(&settings, &error) == STATUS_OK) return 0;
    log_error("%s", error.text);
    return 1;
}
