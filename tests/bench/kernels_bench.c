// kernels_bench: the operations of the CPU backend on the shapes of a 1.1B model, held against what
// the machine can do at that moment. See --help.
#include "tests/bench/kernels_bench.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/options.h"
#include "tests/bench/report.h"

struct kernels_options {
    uint64_t thread_count;
    const char *variant;
    const char *weights, *activations, *kv;
    const char *only;
    double seconds;
    uint64_t call_count; // 0: measure
    bool as_json;
};

// -- data -----------------------------------------------------------------------------------------

static void value_write(void *data, enum dtype dtype, size_t index, float value) {
    if (dtype == DTYPE_F32) ((float *)data)[index] = value;
    if (dtype == DTYPE_BF16) ((uint16_t *)data)[index] = f32_to_bf16(value);
    if (dtype == DTYPE_F16) ((uint16_t *)data)[index] = f32_to_f16(value);
}

void *bench_random(struct backend *backend, enum dtype dtype, size_t count) {
    enum { PERIOD = 65521 }; // drawn, and then repeated: a prime, so that no two rows are alike
    size_t dtype_bytes = dtype_size_bytes(dtype);
    char *data = backend_alloc(backend, count * dtype_bytes);
    CHECK(data != NULL);
    uint32_t state = 1;
    for (size_t i = 0; i < count && i < PERIOD; i++) {
        state = state * 1664525u + 1013904223u; // Knuth's; Numerical Recipes
        value_write(data, dtype, i, (float)(int32_t)state * 0x1p-31f);
    }
    for (size_t i = PERIOD; i < count; i += PERIOD) {
        size_t part = count - i < PERIOD ? count - i : PERIOD;
        memcpy(data + i * dtype_bytes, data, part * dtype_bytes);
    }
    return data;
}

void bench_random_free(struct backend *backend, void *data, enum dtype dtype, size_t count) {
    backend_free(backend, data, count * dtype_size_bytes(dtype));
}

// -- all of it ------------------------------------------------------------------------------------

static const struct part {
    const char *name;
    json_t *(*run)(const struct kernels_bench *bench);
} parts[] = {
    {"linear", bench_linear},
    {"attention", bench_attention},
    {"elements", bench_elements},
};

static bool is_wanted(const struct kernels_options *options, const char *name) {
    return options->only == NULL || strcmp(options->only, name) == 0;
}

static void parts_run(const struct kernels_options *options, const struct kernels_bench *bench) {
    json_t *json = json_object();
    CHECK(json != NULL);
    json_add(json, "benchmark", json_string("kernels"));
    json_add(json, "threads", json_integer(backend_thread_count(bench->backend)));
    json_add(json, "kernel", json_string(backend_variant(bench->backend)));
    json_add(json, "weights", json_string(options->weights));
    json_add(json, "activations", json_string(options->activations));
    json_add(json, "kv", json_string(dtype_name(bench->kv_dtype)));
    printf("%s kernels, threads: %u\n", backend_variant(bench->backend),
           backend_thread_count(bench->backend));
    json_add(json, "limits", report_limits(bench->limits));
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (is_wanted(options, parts[i].name)) json_add(json, parts[i].name, parts[i].run(bench));
    }
    if (options->as_json) report_json(json);
    json_decref(json);
}

static enum options_result options_read(int argc, char **argv, struct kernels_options *o) {
    const struct option_spec specs[] = {
        {"threads", OPTION_COUNT, &o->thread_count, "N",
         "threads of the backend and of the limits (default: all cores)", 1,
         (double)limits_core_count()},
        {"kernel", OPTION_TEXT, &o->variant, "NAME",
         "auto, avx512bf16, avx512, avx2, portable or reference (default auto)", 0, 0},
        {"weights", OPTION_TEXT, &o->weights, "TYPE",
         "f32, bf16, f16, int8 (inputs too) or int8-weight-only (default bf16)", 0, 0},
        {"activations", OPTION_TEXT, &o->activations, "TYPE",
         "f32, or bf16: products round their inputs to it (default f32)", 0, 0},
        {"kv", OPTION_TEXT, &o->kv, "TYPE", "f32, bf16 or f16 (default bf16)", 0, 0},
        {"only", OPTION_TEXT, &o->only, "PART", "linear, attention or elements (default: all)", 0,
         0},
        {"seconds", OPTION_NUMBER, &o->seconds, "S", "for each point (default 0.5)", 0, 3600},
        {"calls", OPTION_COUNT, &o->call_count, "N",
         "measure nothing: do each operation on elements N times, for --count", 1, 1 << 20},
        {"json", OPTION_FLAG, &o->as_json, NULL, "end with all results as one line of JSON", 0, 0},
    };
    const struct options options = {
        .program = "kernels_bench",
        .purpose = "measures the operations of the CPU backend against the machine's limits",
        .usage = "[options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    return options_parse(&options, argc, argv, &positional_count);
}

// What --weights and --activations mean for products.
static bool products_choose(const struct kernels_options *options, struct kernels_bench *bench) {
    bool with_f32 = strcmp(options->activations, "f32") == 0;
    bench->x_dtype = with_f32 ? DTYPE_F32 : DTYPE_BF16;
    if (!with_f32 && strcmp(options->activations, "bf16") != 0) return false;
    if (strncmp(options->weights, "int8", 4) != 0)
        return dtype_parse(options->weights, &bench->weight_dtype);
    bench->weight_dtype = DTYPE_I8;
    if (strcmp(options->weights, "int8-weight-only") == 0) return with_f32;
    bench->x_dtype = DTYPE_I8;
    return strcmp(options->weights, "int8") == 0;
}

static enum limit products_unit(const struct kernels_bench *bench) {
    if (bench->x_dtype == DTYPE_I8 && limits_has(LIMIT_INT8)) return LIMIT_INT8;
    bool has_pairs = strcmp(backend_variant(bench->backend), "avx512bf16") == 0;
    if (bench->x_dtype == DTYPE_BF16 && bench->weight_dtype == DTYPE_BF16 && has_pairs)
        return LIMIT_BF16;
    return LIMIT_F32;
}

static bool options_check(const struct kernels_options *options, struct kernels_bench *bench) {
    bool is_part = false;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        is_part = is_part || is_wanted(options, parts[i].name);
    if (!is_part)
        fprintf(stderr, "kernels_bench: --only is '%s', see --help\n", options->only);
    else if (!products_choose(options, bench))
        fprintf(stderr, "kernels_bench: --weights '%s' with --activations '%s', see --help\n",
                options->weights, options->activations);
    else if (!dtype_parse(options->kv, &bench->kv_dtype))
        fprintf(stderr, "kernels_bench: --kv is '%s', see --help\n", options->kv);
    else
        return true;
    return false;
}

static enum status measure_all(const struct kernels_options *options, struct kernels_bench *bench,
                               struct error *error) {
    // Before the backend's threads: it must see all cores.
    enum status status = limits_open((uint32_t)options->thread_count, &bench->limits, error);
    if (status != STATUS_OK) return status;
    struct backend_config config = {.thread_count = (uint32_t)options->thread_count,
                                    .variant = options->variant};
    status = backend_cpu_open(&config, &bench->backend, error);
    if (status == STATUS_OK) {
        bench->unit = products_unit(bench);
        parts_run(options, bench);
        backend_close(bench->backend);
    }
    limits_close(bench->limits);
    return status;
}

// One thread, and no limits: emulators of processors may lack their instructions.
static enum status count_all(const struct kernels_options *options, struct kernels_bench *bench,
                             struct error *error) {
    struct backend_config config = {.thread_count = 1, .variant = options->variant};
    enum status status = backend_cpu_open(&config, &bench->backend, error);
    if (status != STATUS_OK) return status;
    json_t *json = json_object();
    CHECK(json != NULL);
    json_add(json, "kernel", json_string(backend_variant(bench->backend)));
    json_add(json, "elements", bench_elements_calls(bench, options->call_count));
    report_json(json);
    json_decref(json);
    backend_close(bench->backend);
    return STATUS_OK;
}

int main(int argc, char **argv) {
    struct kernels_options options = {.thread_count = limits_core_count(),
                                      .variant = "auto",
                                      .weights = "bf16",
                                      .activations = "f32",
                                      .kv = "bf16",
                                      .seconds = 0.5};
    struct kernels_bench bench = {0};
    enum options_result parsed = options_read(argc, argv, &options);
    if (parsed != OPTIONS_RUN) return parsed == OPTIONS_EXIT_OK ? 0 : 2;
    if (!options_check(&options, &bench)) return 2;
    bench.seconds = options.seconds;
    struct error error;
    enum status status = options.call_count > 0 ? count_all(&options, &bench, &error)
                                                : measure_all(&options, &bench, &error);
    if (status == STATUS_OK) return 0;
    fprintf(stderr, "kernels_bench: %s\n", error.text);
    return 1;
}
