// simulate_bench: what the scheduler reaches on a virtual clock with equal stages, and what the
// coordinator's own code costs in real time. See --help.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/options.h"
#include "client/simulate/simulation.h"
#include "tests/bench/report.h"

// -- the simulated pipeline -----------------------------------------------------------------------

// The whole model takes so long for a microbatch, and for each row and attended position of it; a
// stage takes its share. About 8 billion parameters on a large GPU: reading the weights takes as
// long as 200 rows, and 26,000 positions as long as a row.
static const uint64_t MODEL_NS = 6400000, ROW_NS = 32000, ATTENDED_PS = 1200;
enum { LAYER_COUNT = 32, HOP_SHARE = 50 };

// Stages are equal; a hop takes a 50th of what a stage takes for `rows` rows.
static struct simulation_settings equal_stages(uint64_t stage_count, uint64_t rows) {
    struct simulation_settings settings = simulation_settings_of(1);
    uint64_t *n = settings.numbers;
    n[SIMULATION_STAGES] = stage_count;
    n[SIMULATION_SPARES] = 0;
    n[SIMULATION_LAYERS] = LAYER_COUNT;
    n[SIMULATION_SPREAD_US] = 0;
    n[SIMULATION_RUNNING] = MICROBATCH_SEQUENCE_COUNT_MAX;
    n[SIMULATION_CHUNK] = 0;
    n[SIMULATION_ROWS] = 2048;
    n[SIMULATION_MICROBATCHES] = stage_count + 2;
    n[SIMULATION_STAGE_NS] = MODEL_NS / stage_count;
    n[SIMULATION_ROW_NS] = ROW_NS / stage_count;
    n[SIMULATION_ATTENDED_PS] = ATTENDED_PS / stage_count;
    n[SIMULATION_HOP_NS] = (MODEL_NS + ROW_NS * rows) / stage_count / HOP_SHARE;
    settings.is_long = true;
    return settings;
}

static void load(struct simulation_settings *settings, uint64_t requests, uint64_t prompt,
                 uint64_t tokens) {
    uint64_t *n = settings->numbers;
    n[SIMULATION_REQUESTS] = requests;
    n[SIMULATION_PROMPT] = prompt;
    n[SIMULATION_TOKENS] = tokens;
    n[SIMULATION_KV_TOKENS] = requests * (prompt + tokens + KV_BLOCK_POSITION_COUNT);
}

static struct simulation_report run(const struct simulation_settings *settings) {
    struct simulation_report report;
    struct error error;
    simulation_announce(settings);
    if (simulation_run(settings, &report, &error) != STATUS_OK) {
        fprintf(stderr, "simulate_bench: %s\n", error.text);
        exit(EXIT_FAILURE);
    }
    if (report.failure[0] == '\0') return report;
    char command[1024];
    simulation_command(settings, command, sizeof(command));
    fprintf(stderr, "simulate_bench: %s\nrepeat with: %s\n", report.failure, command);
    exit(EXIT_FAILURE);
}

// -- steady decode --------------------------------------------------------------------------------

// Tokens/s as a share of what P microbatches of equal size give when no stage ever waits.
static json_t *decode_run(uint64_t stage_count, bool is_naive) {
    enum { ROWS = 8, TOKENS = 300, PROMPT = 16 };
    struct simulation_settings settings = equal_stages(stage_count, ROWS);
    load(&settings, stage_count * ROWS, PROMPT, TOKENS);
    settings.is_naive = is_naive;
    struct simulation_report r = run(&settings);
    double attended = ROWS * (PROMPT + TOKENS / 2.0) * (double)ATTENDED_PS * 1e-3;
    double step_ns = ((double)MODEL_NS + ROWS * (double)ROW_NS + attended) / (double)stage_count;
    double rate = (double)r.steady_token_count / (double)r.steady_ns;
    double busy_share = 0;
    for (uint64_t i = 0; i < stage_count; i++) {
        double share = (double)r.steady_busy_ns[i] / (double)r.steady_ns;
        if (share > busy_share) busy_share = share;
    }
    double efficiency = rate * step_ns / ROWS;
    double rows = (double)r.steady_token_count / (double)r.steady_step_count;
    printf("%6" PRIu64 "   %-9s  %6.1f %%  %6.1f %%  %6.1f\n", stage_count,
           is_naive ? "naive" : "pipelined", 100 * efficiency, 100 * busy_share, rows);
    json_t *json =
        json_pack("{s:I, s:b, s:f, s:f, s:f}", "stages", (json_int_t)stage_count, "naive", is_naive,
                  "of_ideal", efficiency, "busy", busy_share, "rows", rows);
    CHECK(json != NULL);
    return json;
}

static json_t *decode_all(void) {
    static const uint64_t counts[] = {2, 4, 8, 16, 32};
    json_t *results = json_array();
    printf("steady decode, 8 sequences a stage, a hop takes 2 %% of a stage's time\n"
           "stages   schedule    of ideal      busy    rows\n");
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        for (int is_naive = 0; is_naive < 2; is_naive++)
            CHECK(json_array_append_new(results, decode_run(counts[i], is_naive)) == 0);
    return results;
}

// -- one long prompt ------------------------------------------------------------------------------

static uint64_t prompt_ns(uint64_t stage_count, uint64_t prompt, uint64_t chunk) {
    struct simulation_settings settings = equal_stages(stage_count, 1024);
    load(&settings, 1, prompt, 1);
    settings.numbers[SIMULATION_CHUNK] = chunk;
    struct simulation_report r = run(&settings);
    return r.first_token_ns - r.first_sent_ns;
}

static json_t *prompt_all(void) {
    enum { PROMPT = 1 << 17 };
    static const uint64_t counts[] = {1, 2, 4, 8}, chunks[] = {0, 512, 2048};
    json_t *results = json_array();
    double alone_ns = 0;
    printf("\none prompt of %d tokens\nstages  chunk       seconds  strong scaling\n", PROMPT);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c++) {
            double ns = (double)prompt_ns(counts[i], PROMPT, chunks[c]);
            if (i == 0 && (c == 0 || ns < alone_ns)) alone_ns = ns;
            double scaling = alone_ns / ns / (double)counts[i];
            char chunk[24] = "by cost";
            if (chunks[c] > 0) snprintf(chunk, sizeof(chunk), "%" PRIu64, chunks[c]);
            printf("%6" PRIu64 "  %-8s %10.3f         %5.1f %%\n", counts[i], chunk, ns * 1e-9,
                   100 * scaling);
            json_t *json =
                json_pack("{s:I, s:I, s:f, s:f}", "stages", (json_int_t)counts[i], "chunk",
                          (json_int_t)chunks[c], "seconds", ns * 1e-9, "strong_scaling", scaling);
            CHECK(json != NULL && json_array_append_new(results, json) == 0);
        }
    return results;
}

// -- the coordinator's own cost -------------------------------------------------------------------

// The program's allocations pass through these.
void *__real_malloc(size_t size_bytes);
void *__real_calloc(size_t count, size_t size_bytes);
void *__real_realloc(void *memory, size_t size_bytes);
void *__wrap_malloc(size_t size_bytes);
void *__wrap_calloc(size_t count, size_t size_bytes);
void *__wrap_realloc(void *memory, size_t size_bytes);

static struct coordinator_cost {
    bool is_inside;
    uint64_t begin_ns, ns, allocation_count;
} cost;

void *__wrap_malloc(size_t size_bytes) {
    cost.allocation_count += cost.is_inside ? 1 : 0;
    return __real_malloc(size_bytes);
}

void *__wrap_calloc(size_t count, size_t size_bytes) {
    cost.allocation_count += cost.is_inside ? 1 : 0;
    return __real_calloc(count, size_bytes);
}

void *__wrap_realloc(void *memory, size_t size_bytes) {
    cost.allocation_count += cost.is_inside ? 1 : 0;
    return __real_realloc(memory, size_bytes);
}

static uint64_t real_ns(void) {
    struct clock real = clock_system();
    return clock_now_ns(&real);
}

static void enter(void *ctx) {
    (void)ctx;
    cost.is_inside = true;
    cost.begin_ns = real_ns();
}

static void leave(void *ctx) {
    (void)ctx;
    cost.ns += real_ns() - cost.begin_ns;
    cost.is_inside = false;
}

static struct coordinator_cost cost_of(uint64_t tokens, uint64_t *step_count_out) {
    enum { STAGES = 4, ROWS = 64 };
    struct simulation_settings settings = equal_stages(STAGES, ROWS);
    load(&settings, (uint64_t)STAGES * ROWS, 16, tokens);
    settings.enter = enter;
    settings.leave = leave;
    cost = (struct coordinator_cost){0};
    *step_count_out = run(&settings).step_count;
    return cost;
}

// Allocations are of the steps that a longer run has more than a shorter one: all of them decode.
static json_t *cost_all(void) {
    uint64_t short_steps, long_steps;
    struct coordinator_cost before = cost_of(200, &short_steps), after = cost_of(600, &long_steps);
    double us = (double)after.ns * 1e-3 / (double)long_steps;
    double allocations = (double)(after.allocation_count - before.allocation_count) /
                         (double)(long_steps - short_steps);
    printf("\ncoordinator, decode microbatches of about 64 sequences: %.1f us each of real time, "
           "%.3f allocations\n",
           us, allocations);
    json_t *json = json_pack("{s:f, s:f}", "us", us, "allocations", allocations);
    CHECK(json != NULL);
    return json;
}

// -- command line ---------------------------------------------------------------------------------

int main(int argc, char **argv) {
    bool as_json = false;
    const struct option_spec specs[] = {
        {"json", OPTION_FLAG, &as_json, NULL, "end with all results as one line of JSON", 0, 0},
    };
    const struct options options = {
        .program = "simulate_bench",
        .purpose = "runs the scheduler against simulated stages on a virtual clock: steady decode, "
                   "one long prompt, and what the coordinator's own code costs",
        .usage = "[--json]",
        .specs = specs,
        .spec_count = 1,
    };
    size_t positional_count;
    enum options_result parsed = options_parse(&options, argc, argv, &positional_count);
    if (parsed != OPTIONS_RUN) return parsed == OPTIONS_EXIT_OK ? EXIT_SUCCESS : 2;
    log_init("simulate_bench", LOG_NONE);
    json_t *decode = decode_all(), *prompt = prompt_all(), *coordinator = cost_all();
    json_t *json = json_pack("{s:s, s:o, s:o, s:o}", "benchmark", "simulate", "decode", decode,
                             "prompt", prompt, "coordinator", coordinator);
    CHECK(json != NULL);
    if (as_json) report_json(json);
    json_decref(json);
    return EXIT_SUCCESS;
}
