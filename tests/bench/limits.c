#include "tests/bench/limits.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"
#include "tests/bench/limits_peak.h"
#include "tests/bench/limits_read.h"

enum {
    READ_BYTES = 512 << 20, // of all threads; caches larger than a quarter of it would show
    READ_BYTES_THREAD_MIN = 16 << 20,
    PATTERN_TRY_COUNT = 4,
    PATTERN_COUNT_MAX = 16,
    THREAD_COUNT_MAX = CPU_SETSIZE,
    MEASURE_NS = 15000000,
};

struct limits {
    uint32_t thread_count;
    uint32_t cores[THREAD_COUNT_MAX]; // of each thread
    char *data;
    size_t part_bytes; // of each thread
    double pattern_best[PATTERN_COUNT_MAX];
    uint32_t pattern; // the best one
    uint32_t read_count;
    uint64_t round_count[LIMIT_COUNT]; // that take about MEASURE_NS
};

static uint64_t now_ns(void) {
    struct clock real = clock_system();
    return clock_now_ns(&real);
}

// -- threads --------------------------------------------------------------------------------------

typedef void part_fn(void *ctx, uint32_t thread_index);

struct part {
    pthread_t thread;
    pthread_barrier_t *start;
    part_fn *fn;
    void *ctx;
    uint32_t thread_index;
    uint64_t begin_ns, end_ns;
};

static void *part_main(void *argument) {
    struct part *part = argument;
    pthread_barrier_wait(part->start);
    part->begin_ns = now_ns();
    part->fn(part->ctx, part->thread_index);
    part->end_ns = now_ns();
    return NULL;
}

static void part_start(struct part *part, uint32_t core) {
    pthread_attr_t attributes;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setaffinity_np(&attributes, sizeof(set), &set) == 0);
    CHECK(pthread_create(&part->thread, &attributes, part_main, part) == 0);
    pthread_attr_destroy(&attributes);
}

// Runs fn(ctx, i) for each thread i at once; the seconds from the first start to the last end.
static double parts_run(const struct limits *limits, part_fn *fn, void *ctx) {
    struct part *parts = memory_array(limits->thread_count, sizeof(*parts));
    CHECK(parts != NULL);
    pthread_barrier_t start;
    CHECK(pthread_barrier_init(&start, NULL, limits->thread_count) == 0);
    for (uint32_t i = 0; i < limits->thread_count; i++) {
        parts[i] = (struct part){.start = &start, .fn = fn, .ctx = ctx, .thread_index = i};
        part_start(&parts[i], limits->cores[i]);
    }
    uint64_t begin_ns = UINT64_MAX, end_ns = 0;
    for (uint32_t i = 0; i < limits->thread_count; i++) {
        CHECK(pthread_join(parts[i].thread, NULL) == 0);
        if (parts[i].begin_ns < begin_ns) begin_ns = parts[i].begin_ns;
        if (parts[i].end_ns > end_ns) end_ns = parts[i].end_ns;
    }
    CHECK(pthread_barrier_destroy(&start) == 0);
    free(parts);
    return (double)(end_ns - begin_ns) / 1e9;
}

// -- memory read ----------------------------------------------------------------------------------

struct read_ctx {
    const struct limits *limits;
    const struct read_pattern *pattern;
    uint32_t count;
};

static void read_part(void *argument, uint32_t thread_index) {
    const struct read_ctx *ctx = argument;
    size_t part_bytes = ctx->limits->part_bytes;
    for (uint32_t i = 0; i < ctx->count; i++) {
        read_run(ctx->pattern, ctx->limits->data + thread_index * part_bytes, part_bytes);
    }
}

// Touched by the thread that reads it, so that the memory is near; not zeros, which some memory
// controllers and hypervisors know to be cheap.
static void fill_part(void *argument, uint32_t thread_index) {
    const struct limits *limits = argument;
    uint64_t *data = (uint64_t *)(limits->data + thread_index * limits->part_bytes);
    for (size_t i = 0; i < limits->part_bytes / sizeof(*data); i++) {
        data[i] = (i + 1) * 0x9e3779b97f4a7c15u;
    }
}

static double read_measure(const struct limits *limits, uint32_t pattern, uint32_t count) {
    struct read_ctx ctx = {limits, &read_patterns[pattern], count};
    double seconds = parts_run(limits, read_part, &ctx);
    return (double)limits->part_bytes * limits->thread_count * count / seconds;
}

static void patterns_try(struct limits *limits) {
    CHECK(read_pattern_count() <= PATTERN_COUNT_MAX);
    for (uint32_t i = 0; i < PATTERN_TRY_COUNT; i++) {
        for (uint32_t p = 0; p < read_pattern_count(); p++) {
            double rate = read_measure(limits, p, 1);
            if (rate > limits->pattern_best[p]) limits->pattern_best[p] = rate;
        }
    }
    for (uint32_t p = 1; p < read_pattern_count(); p++) {
        if (limits->pattern_best[p] > limits->pattern_best[limits->pattern]) limits->pattern = p;
    }
    double bytes = (double)limits->part_bytes * limits->thread_count;
    double seconds = bytes / limits->pattern_best[limits->pattern];
    limits->read_count = 1 + (uint32_t)(MEASURE_NS / 1e9 / seconds / 2);
}

uint32_t limits_pattern_count(void) {
    return read_pattern_count();
}

double limits_pattern(const struct limits *limits, uint32_t index, char *name_out,
                      size_t name_bytes) {
    CHECK(index < read_pattern_count());
    const struct read_pattern *pattern = &read_patterns[index];
    snprintf(name_out, name_bytes, "%u streams of rows of %u bytes, asked for %u ahead",
             pattern->stream_count, pattern->row_bytes, pattern->ahead_bytes);
    return limits->pattern_best[index];
}

// -- arithmetic -----------------------------------------------------------------------------------

struct peak_ctx {
    struct peak peak;
    uint64_t round_count;
};

static void peak_part(void *argument, uint32_t thread_index) {
    const struct peak_ctx *ctx = argument;
    (void)thread_index;
    ctx->peak.run(ctx->round_count);
}

static double peak_measure(struct limits *limits, enum limit limit) {
    struct peak_ctx ctx = {.peak = peak_find(limit), .round_count = limits->round_count[limit]};
    if (ctx.peak.run == NULL) return 0;
    double seconds;
    for (;;) {
        if (ctx.round_count == 0) ctx.round_count = 1 << 16;
        seconds = parts_run(limits, peak_part, &ctx);
        if (limits->round_count[limit] != 0) break;
        if (seconds * 1e9 >= MEASURE_NS / 2.0) limits->round_count[limit] = ctx.round_count;
        ctx.round_count *= 2;
    }
    double rounds = (double)ctx.round_count * limits->thread_count;
    return rounds * ctx.peak.round_operations / seconds;
}

// -- all of them ----------------------------------------------------------------------------------

uint32_t limits_core_count(void) {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
    return (uint32_t)CPU_COUNT(&set);
}

static enum status cores_take(struct limits *limits, struct error *error) {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
    uint32_t core_count = (uint32_t)CPU_COUNT(&set);
    if (limits->thread_count == 0 || limits->thread_count > core_count) {
        return error_set(error, STATUS_INVALID,
                         "%u threads: the limits of this machine can be measured with 1 to %u",
                         limits->thread_count, core_count);
    }
    uint32_t found = 0;
    for (uint32_t core = 0; found < limits->thread_count; core++) {
        if (CPU_ISSET(core, &set)) limits->cores[found++] = core;
    }
    return STATUS_OK;
}

static size_t data_bytes(const struct limits *limits) {
    return limits->part_bytes * limits->thread_count;
}

static enum status data_open(struct limits *limits, struct error *error) {
    limits->part_bytes = READ_BYTES / limits->thread_count / READ_BLOCK_BYTES_MAX;
    limits->part_bytes *= READ_BLOCK_BYTES_MAX;
    if (limits->part_bytes < READ_BYTES_THREAD_MIN) limits->part_bytes = READ_BYTES_THREAD_MIN;
    limits->data =
        mmap(NULL, data_bytes(limits), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (limits->data == MAP_FAILED) {
        limits->data = NULL;
        return error_set(error, STATUS_NO_MEMORY, "no memory for %zu bytes to read",
                         data_bytes(limits));
    }
    (void)madvise(limits->data, data_bytes(limits), MADV_HUGEPAGE);
    (void)parts_run(limits, fill_part, limits);
    return STATUS_OK;
}

enum status limits_open(uint32_t thread_count, struct limits **limits_out, struct error *error) {
    struct limits *limits = memory_array(1, sizeof(*limits));
    if (limits == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for limits");
    limits->thread_count = thread_count;
    enum status status = cores_take(limits, error);
    if (status == STATUS_OK) status = data_open(limits, error);
    if (status != STATUS_OK) {
        limits_close(limits);
        return status;
    }
    patterns_try(limits);
    for (enum limit limit = LIMIT_F32; limit < LIMIT_COUNT; limit++)
        (void)peak_measure(limits, limit);
    *limits_out = limits;
    return STATUS_OK;
}

void limits_close(struct limits *limits) {
    if (limits == NULL) return;
    if (limits->data != NULL) CHECK(munmap(limits->data, data_bytes(limits)) == 0);
    free(limits);
}

bool limits_has(enum limit limit) {
    return limit == LIMIT_READ || peak_find(limit).run != NULL;
}

double limits_measure(struct limits *limits, enum limit limit) {
    if (limit == LIMIT_READ) return read_measure(limits, limits->pattern, limits->read_count);
    return peak_measure(limits, limit);
}

const char *limits_name(enum limit limit) {
    static const char *const names[LIMIT_COUNT] = {"read", "f32", "bf16", "int8"};
    CHECK(limit < LIMIT_COUNT);
    return names[limit];
}
