// rpc_bench: what transport/rpc costs over gRPC core itself. Two servers, each a process of its
// own, answer the same client in turn: one with nothing in it but the calls that core asks for, one
// over transport/rpc. See --help.
#include <dirent.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/options.h"
#include "tests/bench/measure.h"
#include "tests/bench/report.h"
#include "tests/bench/rpc_caller.h"
#include "tests/bench/rpc_servers.h"

enum {
    CALL_COUNT = 250, // of each kind in a round
    STREAM_MESSAGE_COUNT = 10000,
    STREAM_COUNT = 1000,
    ROUND_COUNT_MAX = SAMPLE_COUNT_MAX,
    LATENCY_COUNT_MAX = CALL_COUNT * ROUND_COUNT_MAX,
};

enum side { MINIMAL, OURS, SIDE_COUNT };
static const char *const side_names[SIDE_COUNT] = {"minimal", "rpc"};

struct latencies {
    double us[LATENCY_COUNT_MAX];
    uint32_t count;
    struct samples medians;     // of the rounds
    struct samples server_cpus; // microseconds of the server's processor time a call, of the rounds
};

struct server {
    pid_t pid;
    struct caller *caller;
    struct latencies unary, ping_pong;
    struct samples stream_rates, stream_cpus;
    double idle_bytes; // of memory for STREAM_COUNT streams
};

// -- servers
// ---------------------------------------------------------------------------------------

static void server_open(struct server *server, const char *name) {
    int out[2];
    CHECK(pipe(out) == 0);
    posix_spawn_file_actions_t actions;
    CHECK(posix_spawn_file_actions_init(&actions) == 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, out[0]);
    char program[] = "/proc/self/exe", role[] = "serve", which[16];
    (void)snprintf(which, sizeof(which), "%s", name);
    char *arguments[] = {program, role, which, NULL};
    CHECK(posix_spawn(&server->pid, program, &actions, NULL, arguments, environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    FILE *file = fdopen(out[0], "r");
    unsigned port;
    CHECK(file != NULL && fscanf(file, "%u", &port) == 1);
    fclose(file);
    server->caller = caller_open((uint16_t)port);
}

static void server_close(struct server *server) {
    caller_close(server->caller);
    (void)kill(server->pid, SIGKILL);
    (void)waitpid(server->pid, NULL, 0);
}

static double resident_bytes(const struct server *server) {
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%d/statm", (int)server->pid);
    FILE *file = fopen(path, "r");
    unsigned long pages;
    CHECK(file != NULL && fscanf(file, "%*u %lu", &pages) == 1);
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

// Of all threads that live; proc(5): schedstat begins with nanoseconds on the processor.
static double cpu_us(const struct server *server) {
    char path[300];
    (void)snprintf(path, sizeof(path), "/proc/%d/task", (int)server->pid);
    DIR *folder = opendir(path);
    CHECK(folder != NULL);
    double us = 0;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (entry->d_name[0] == '.') continue;
        (void)snprintf(path, sizeof(path), "/proc/%d/task/%.20s/schedstat", (int)server->pid,
                       entry->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL) continue;
        unsigned long long ns;
        if (fscanf(file, "%llu", &ns) == 1) us += (double)ns * 1e-3;
        fclose(file);
    }
    closedir(folder);
    return us;
}

// -- measuring
// -------------------------------------------------------------------------------------

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

// Sorts them.
static double quantile(double *values, uint32_t count, double share) {
    qsort(values, count, sizeof(*values), compare);
    return count == 0 ? 0 : values[(uint32_t)((count - 1) * share)];
}

static void note(struct latencies *latencies, double *us, double server_us) {
    for (uint32_t i = 0; i < CALL_COUNT; i++)
        latencies->us[latencies->count++] = us[i];
    samples_add(&latencies->medians, quantile(us, CALL_COUNT, 0.5));
    samples_add(&latencies->server_cpus, server_us / CALL_COUNT);
}

static void measure_calls(struct server *server) {
    double us[CALL_COUNT], before_us = cpu_us(server);
    for (uint32_t i = 0; i < CALL_COUNT; i++)
        us[i] = caller_unary_us(server->caller);
    note(&server->unary, us, cpu_us(server) - before_us);
}

static void measure_ping_pong(struct server *server) {
    double us[CALL_COUNT], before_us = cpu_us(server);
    caller_ping_pongs(server->caller, CALL_COUNT, us);
    note(&server->ping_pong, us, cpu_us(server) - before_us);
}

static void measure_stream(struct server *server) {
    double before_us = cpu_us(server);
    samples_add(&server->stream_rates, caller_stream_rate(server->caller, STREAM_MESSAGE_COUNT));
    samples_add(&server->stream_cpus, (cpu_us(server) - before_us) / STREAM_MESSAGE_COUNT);
}

static void measure_all(struct server *servers, uint64_t round_count) {
    static void (*const kinds[])(struct server *) = {measure_calls, measure_stream,
                                                     measure_ping_pong};
    for (uint64_t round = 0; round < round_count; round++) {
        for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
            for (int i = 0; i < SIDE_COUNT; i++) // who is first changes, who is neighbours does not
                kinds[kind](&servers[(round + (uint64_t)i) % SIDE_COUNT]);
        }
    }
    for (int i = 0; i < SIDE_COUNT; i++) {
        double before_bytes = resident_bytes(&servers[i]);
        caller_open_streams(servers[i].caller, STREAM_COUNT);
        servers[i].idle_bytes = resident_bytes(&servers[i]) - before_bytes;
    }
}

// -- reporting
// -------------------------------------------------------------------------------------

static void print_row(const char *what, double minimal, double ours, double ratio) {
    printf("%-44s %12.1f %12.1f %9.3f\n", what, minimal, ours, ratio);
}

// The median of what the neighbours in time come to.
static double ratio_of(const struct samples *minimal, const struct samples *ours) {
    struct samples ratios = {.count = 0};
    for (uint32_t i = 0; i < minimal->count; i++)
        samples_add(&ratios, ours->values[i] / minimal->values[i]);
    return samples_median(&ratios);
}

static void report_samples(json_t *json, const char *name, const char *what,
                           const struct samples *minimal, const struct samples *ours) {
    double ratio = ratio_of(minimal, ours);
    print_row(what, samples_median(minimal), samples_median(ours), ratio);
    json_t *entry = json_object();
    json_add(entry, side_names[MINIMAL], json_real(samples_median(minimal)));
    json_add(entry, side_names[OURS], json_real(samples_median(ours)));
    json_add(entry, "ratio", json_real(ratio));
    json_add(json, name, entry);
}

static void report_latencies(json_t *json, const char *name, struct latencies *minimal,
                             struct latencies *ours) {
    char key[64], what[64];
    (void)snprintf(key, sizeof(key), "%s_p50_us", name);
    (void)snprintf(what, sizeof(what), "%s, p50, us", name);
    report_samples(json, key, what, &minimal->medians, &ours->medians);
    double late_minimal = quantile(minimal->us, minimal->count, 0.99);
    double late_ours = quantile(ours->us, ours->count, 0.99);
    (void)snprintf(what, sizeof(what), "%s, p99, us", name);
    print_row(what, late_minimal, late_ours, late_ours / late_minimal);
    json_t *entry = json_object();
    json_add(entry, side_names[MINIMAL], json_real(late_minimal));
    json_add(entry, side_names[OURS], json_real(late_ours));
    json_add(entry, "ratio", json_real(late_ours / late_minimal));
    (void)snprintf(key, sizeof(key), "%s_p99_us", name);
    json_add(json, key, entry);
    (void)snprintf(key, sizeof(key), "%s_server_cpu_us", name);
    (void)snprintf(what, sizeof(what), "%s, processor time of the server, us", name);
    report_samples(json, key, what, &minimal->server_cpus, &ours->server_cpus);
}

static json_t *report(struct server *servers) {
    struct server *minimal = &servers[MINIMAL], *ours = &servers[OURS];
    json_t *json = json_object();
    CHECK(json != NULL);
    printf("%-44s %12s %12s %9s\n", "", side_names[MINIMAL], side_names[OURS], "ratio");
    report_latencies(json, "unary", &minimal->unary, &ours->unary);
    report_latencies(json, "ping_pong", &minimal->ping_pong, &ours->ping_pong);
    report_samples(json, "stream_messages_per_s", "server stream, messages/s",
                   &minimal->stream_rates, &ours->stream_rates);
    report_samples(json, "stream_server_cpu_us", "server stream, processor time a message, us",
                   &minimal->stream_cpus, &ours->stream_cpus);
    struct samples idle[SIDE_COUNT] = {{.count = 0}, {.count = 0}};
    for (int i = 0; i < SIDE_COUNT; i++)
        samples_add(&idle[i], servers[i].idle_bytes / 1e6);
    report_samples(json, "idle_streams_mb", "1,000 idle streams, MB", &idle[MINIMAL], &idle[OURS]);
    return json;
}

static int serve(const char *name) {
    if (strcmp(name, side_names[MINIMAL]) == 0) serve_minimal();
    if (strcmp(name, side_names[OURS]) == 0) serve_rpc();
    return EXIT_FAILURE;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "serve") == 0) return serve(argv[2]);
    uint64_t round_count = 40;
    bool with_json = false;
    const struct option_spec specs[] = {
        {"rounds", OPTION_COUNT, &round_count, "N", "rounds of each kind of call (default 40)", 1,
         ROUND_COUNT_MAX},
        {"json", OPTION_FLAG, &with_json, NULL, "ends with one line of JSON", 0, 0},
    };
    const struct options options = {
        .program = "rpc",
        .purpose =
            "what transport/rpc costs over gRPC core itself: two servers, one client, in turn",
        .usage = "[options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN) return result;
    static struct server servers[SIDE_COUNT];
    for (int i = 0; i < SIDE_COUNT; i++)
        server_open(&servers[i], side_names[i]);
    measure_all(servers, round_count);
    json_t *json = report(servers);
    if (with_json) report_json(json);
    json_decref(json);
    for (int i = 0; i < SIDE_COUNT; i++)
        server_close(&servers[i]);
    return EXIT_SUCCESS;
}
