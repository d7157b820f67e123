// interop_client: the cases of the gRPC interoperability tests against a server. Prints a line for
// each case; ends with status 1 when one failed. See --help.
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/options.h"
#include "base/signals.h"
#include "cases.h"
#include "descriptors.h"
#include "transport/rpc_access.h"

struct settings {
    const char *server;
    const char *case_name; // "all": every interop case
    struct rpc_access_config access;
};

static enum options_result parse(int argc, char **argv, struct settings *s) {
    const struct option_spec specs[] = {
        {"server", OPTION_TEXT, &s->server, "HOST:PORT", "the server to call (required)", 0, 0},
        {"case", OPTION_TEXT, &s->case_name, "NAME",
         "the case to run, or all for every one that needs no broken server (default all)", 0, 0},
        RPC_ACCESS_OPTIONS_TLS(&s->access),
        RPC_ACCESS_OPTIONS_DIAL(&s->access),
    };
    const struct options options = {
        .program = "interop_client",
        .purpose = "runs cases of the gRPC interoperability tests against a server",
        .usage = "--server HOST:PORT [options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN || s->server != NULL) return result;
    (void)fprintf(stderr, "interop_client: --server is required, see --help\n");
    return OPTIONS_EXIT_USAGE;
}

// Returns how many cases of the list had the name; *has_failed becomes true when one failed.
static size_t run_cases(const struct interop_case *cases, size_t count, const char *name,
                        struct rpc_channel *channel, bool *has_failed) {
    size_t run_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (name != NULL && strcmp(name, cases[i].name) != 0) continue;
        struct case_context context = {.channel = channel};
        cases[i].run(&context);
        (void)printf("%s: %s\n", cases[i].name, context.has_failed ? "failed" : "ok");
        (void)fflush(stdout);
        if (context.has_failed) *has_failed = true;
        run_count++;
    }
    return run_count;
}

static bool run(const struct settings *s, struct rpc_channel *channel) {
    bool is_all = strcmp(s->case_name, "all") == 0, has_failed = false;
    size_t run_count = run_cases(interop_cases, interop_case_count, is_all ? NULL : s->case_name,
                                 channel, &has_failed);
    if (!is_all)
        run_count +=
            run_cases(negative_cases, negative_case_count, s->case_name, channel, &has_failed);
    if (run_count == 0) (void)fprintf(stderr, "interop_client: no case '%s'\n", s->case_name);
    return run_count > 0 && !has_failed;
}

int main(int argc, char **argv) {
    signals_block();
    struct settings settings = {.case_name = "all"};
    enum options_result result = parse(argc, argv, &settings);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? 0 : 2;
    log_init("interop_client", LOG_INFO);
    struct error error;
    struct rpc_access *access;
    if (rpc_access_open(&settings.access, &access, &error) != STATUS_OK) {
        log_error("%s", error.text);
        return 1;
    }
    const struct rpc_config config = {
        .descriptor_set = interop_descriptors_begin,
        .descriptor_set_bytes = interop_descriptors_size_bytes(),
        .access = access,
    };
    struct rpc *rpc;
    struct rpc_channel *channel;
    if (rpc_open(&config, &rpc) != STATUS_OK ||
        rpc_channel_open(rpc, settings.server, &channel) != STATUS_OK) {
        log_error("gRPC cannot be started");
        return 1;
    }
    bool is_good = run(&settings, channel);
    rpc_channel_close(channel);
    rpc_close(rpc, 0);
    rpc_access_close(access);
    return is_good ? 0 : 1;
}
