#include "client/simulate/simulation.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"

static const struct simulation_option OPTIONS[SIMULATION_NUMBER_COUNT] = {
    [SIMULATION_STAGES] = {"stages", 1, PIPELINE_STAGE_COUNT_MAX, "stages of the pipeline"},
    [SIMULATION_SPARES] = {"spares", 0, 16, "stage services beyond that"},
    [SIMULATION_LAYERS] = {"layers", 1, 1024, "layers of the model"},
    [SIMULATION_REQUESTS] = {"requests", 1, 4096, "requests in all"},
    [SIMULATION_PROMPT] = {"prompt", 1, 1 << 20, "tokens of each prompt"},
    [SIMULATION_TOKENS] = {"max-tokens", 1, 1 << 20, "tokens made for each request"},
    [SIMULATION_SPREAD_US] = {"spread-us", 0, 1000000000, "requests arrive within this time"},
    [SIMULATION_KV_TOKENS] = {"kv-tokens", 32, 1 << 28, "positions that KV memory holds"},
    [SIMULATION_RUNNING] = {"max-running", 1, MICROBATCH_SEQUENCE_COUNT_MAX,
                            "sequences computed at once"},
    [SIMULATION_CHUNK] = {"chunk", 0, MICROBATCH_ROW_COUNT_MAX,
                          "prompt rows of a microbatch, 0: by cost"},
    [SIMULATION_ROWS] = {"rows", 1, MICROBATCH_ROW_COUNT_MAX, "rows of a microbatch at most"},
    [SIMULATION_MICROBATCHES] = {"microbatches", 1, LINK_CREDIT_COUNT_MAX,
                                 "microbatches in flight"},
    [SIMULATION_STAGE_NS] = {"stage-ns", 0, 1000000000, "a microbatch takes a stage this long,"},
    [SIMULATION_ROW_NS] = {"row-ns", 0, 1000000000, "and so much longer with each row,"},
    [SIMULATION_ATTENDED_PS] = {"attended-ps", 0, 1000000000,
                                "and with each position a row attends to (picoseconds)"},
    [SIMULATION_HOP_NS] = {"hop-ns", 0, 1000000000, "from one stage to the next"},
};

static const struct {
    const char *name;
    uint32_t fault;
} FAULTS[] = {
    {"delay", SIMULATION_DELAY}, {"loss", SIMULATION_LOSS},       {"stall", SIMULATION_STALL},
    {"crash", SIMULATION_CRASH}, {"control", SIMULATION_CONTROL}, {"damage", SIMULATION_DAMAGE},
    {"load", SIMULATION_LOAD},   {"cancel", SIMULATION_CANCEL},
};
enum { FAULT_COUNT = sizeof(FAULTS) / sizeof(FAULTS[0]) };

const struct simulation_option *simulation_option(enum simulation_number number) {
    return &OPTIONS[number];
}

struct simulation_settings simulation_settings_of(uint64_t seed) {
    struct simulation_settings settings = {.seed = seed};
    for (uint32_t i = 0; i < SIMULATION_NUMBER_COUNT; i++)
        settings.numbers[i] = SIMULATION_DRAWN;
    return settings;
}

// -- drawing --------------------------------------------------------------------------------------

// From `minimum` to `maximum`, small ones more often. The same for a number whatever else is set.
static uint64_t draw(uint64_t seed, enum simulation_number number, uint64_t minimum,
                     uint64_t maximum) {
    double u = rng_uniform(seed ^ 0x73657474696e6773u, number);
    return minimum + (uint64_t)(u * u * (double)(maximum - minimum + 1));
}

static uint64_t blocks_of(uint64_t token_count) {
    return (token_count + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
}

void simulation_settings_draw(struct simulation_settings *settings) {
    uint64_t *n = settings->numbers;
    uint64_t stages = n[SIMULATION_STAGES] != SIMULATION_DRAWN
                          ? n[SIMULATION_STAGES]
                          : draw(settings->seed, SIMULATION_STAGES, 1, 8);
    // Of one request, at most; prompts that are drawn are up to 90 tokens long.
    uint64_t prompt = n[SIMULATION_PROMPT] != SIMULATION_DRAWN ? n[SIMULATION_PROMPT] : 90;
    uint64_t tokens = n[SIMULATION_TOKENS] != SIMULATION_DRAWN ? n[SIMULATION_TOKENS] : 40;
    n[SIMULATION_PROMPT] = prompt;
    n[SIMULATION_TOKENS] = tokens;
    uint64_t blocks = blocks_of(prompt + tokens) + 1;
    const struct {
        uint64_t minimum, maximum;
    } ranges[SIMULATION_NUMBER_COUNT] = {
        [SIMULATION_STAGES] = {stages, stages},
        [SIMULATION_SPARES] = {0, 2},
        [SIMULATION_LAYERS] = {stages, stages + 3},
        [SIMULATION_REQUESTS] = {1, 24},
        [SIMULATION_SPREAD_US] = {0, 2000000},
        [SIMULATION_KV_TOKENS] = {blocks * 32, blocks * 32 * 8},
        [SIMULATION_RUNNING] = {1, 16},
        [SIMULATION_CHUNK] = {0, 40},
        [SIMULATION_ROWS] = {16, 80},
        [SIMULATION_MICROBATCHES] = {1, stages + 2},
        [SIMULATION_STAGE_NS] = {10000, 3000000},
        [SIMULATION_ROW_NS] = {0, 20000},
        [SIMULATION_ATTENDED_PS] = {0, 1000000},
        [SIMULATION_HOP_NS] = {1000, 1000000},
    };
    for (uint32_t i = 0; i < SIMULATION_NUMBER_COUNT; i++) {
        if (n[i] != SIMULATION_DRAWN) continue;
        n[i] = draw(settings->seed, i, ranges[i].minimum, ranges[i].maximum);
    }
}

// -- text -----------------------------------------------------------------------------------------

enum status simulation_faults_parse(const char *text, uint32_t *faults_out, struct error *error) {
    uint32_t faults = 0;
    if (strcmp(text, "none") == 0 || strcmp(text, "all") == 0) {
        *faults_out = text[0] == 'a' ? SIMULATION_FAULT_ALL : 0;
        return STATUS_OK;
    }
    while (*text != '\0') {
        size_t length = strcspn(text, ",");
        uint32_t i = 0;
        while (i < FAULT_COUNT &&
               (strlen(FAULTS[i].name) != length || memcmp(FAULTS[i].name, text, length) != 0))
            i++;
        if (i == FAULT_COUNT)
            return error_set(error, STATUS_INVALID,
                             "faults has '%.*s', it must be all, none or some of delay, loss, "
                             "stall, crash, control, damage, load, cancel",
                             (int)(length < 40 ? length : 40), text);
        faults |= FAULTS[i].fault;
        text += length + (text[length] == ',' ? 1 : 0);
    }
    *faults_out = faults;
    return STATUS_OK;
}

static size_t add(char *out, size_t capacity_bytes, size_t used, const char *text) {
    int written = snprintf(out + used, capacity_bytes - used, "%s", text);
    size_t size = written < 0 ? 0 : (size_t)written;
    return used + size < capacity_bytes ? used + size : capacity_bytes - 1;
}

static size_t add_faults(char *out, size_t capacity_bytes, size_t used, uint32_t faults) {
    if (faults == SIMULATION_FAULT_ALL) return add(out, capacity_bytes, used, " --faults all");
    if (faults == 0) return used;
    used = add(out, capacity_bytes, used, " --faults ");
    bool is_first = true;
    for (uint32_t i = 0; i < FAULT_COUNT; i++) {
        if (!(faults & FAULTS[i].fault)) continue;
        if (!is_first) used = add(out, capacity_bytes, used, ",");
        used = add(out, capacity_bytes, used, FAULTS[i].name);
        is_first = false;
    }
    return used;
}

void simulation_command(const struct simulation_settings *settings, char *out,
                        size_t capacity_bytes) {
    char text[80];
    snprintf(text, sizeof(text), "stagecoach simulate --seed %" PRIu64, settings->seed);
    size_t used = add(out, capacity_bytes, 0, text);
    used = add_faults(out, capacity_bytes, used, settings->faults);
    for (uint32_t i = 0; i < SIMULATION_NUMBER_COUNT; i++) {
        if (settings->numbers[i] == SIMULATION_DRAWN) continue;
        snprintf(text, sizeof(text), " --%s %" PRIu64, OPTIONS[i].name, settings->numbers[i]);
        used = add(out, capacity_bytes, used, text);
    }
    if (settings->is_naive) used = add(out, capacity_bytes, used, " --schedule naive");
    if (settings->feedback_coordinator)
        used = add(out, capacity_bytes, used, " --feedback coordinator");
    if (settings->no_prefix_cache) used = add(out, capacity_bytes, used, " --prefix-cache off");
    if (settings->is_long) add(out, capacity_bytes, used, " --long");
}

static char announced[1100];

static void print_announced(int signal_number) {
    ssize_t ignored = write(STDERR_FILENO, announced, strlen(announced));
    (void)ignored;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

void simulation_announce(const struct simulation_settings *settings) {
    size_t used = add(announced, sizeof(announced), 0, "aborted; repeat with: ");
    simulation_command(settings, announced + used, sizeof(announced) - used - 1);
    add(announced, sizeof(announced), strlen(announced), "\n");
    signal(SIGABRT, print_announced);
    signal(SIGALRM, print_announced);
}
