// stage_bench: tokens a second of one stage that holds a whole model, in decode and in prefill,
// held against what the machine could do at that moment. See --help.
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/options.h"
#include "tests/bench/report.h"
#include "tests/bench/stage_profile.h"
#include "tests/bench/stage_subject.h"

enum { POINT_COUNT_MAX = 8, STEP_COUNT_MAX = MEASURE_PIECE_COUNT_MAX, POSITION_COUNT_MAX = 16384 };

struct counts {
    uint32_t values[POINT_COUNT_MAX];
    uint32_t count;
};

struct stage_options {
    const char *verb; // "decode" or "prefill"
    const char *batches, *prompts;
    uint64_t context, chunk, layer_count, thread_count;
    const char *model_directory, *variant;
    const char *weights, *activations, *kv;
    double seconds;
    bool with_profile, as_json;
    struct counts points; // batches or prompts
};

struct stage_bench {
    const struct stage_options *options;
    struct limits *limits;
    struct subject *subject;
    json_t *results;
    double tokens_per_second[POINT_COUNT_MAX]; // medians
};

// -- a point --------------------------------------------------------------------------------------

// The steps of a sample, and the tokens that they are worth.
struct point {
    struct subject *subject;
    struct subject_step steps[STEP_COUNT_MAX];
    uint32_t step_count;
    double token_count;
};

static void point_call(void *ctx, uint64_t index) {
    struct point *point = ctx;
    subject_run(point->subject, &point->steps[index % point->step_count]);
}

static double clock_seconds(void) {
    struct clock real = clock_system();
    return (double)clock_now_ns(&real) * 1e-9;
}

static json_t *point_profile(struct point *point, double seconds) {
    double begin_seconds = clock_seconds();
    profile_reset();
    do {
        for (uint32_t i = 0; i < point->step_count; i++)
            point_call(point, i);
    } while (clock_seconds() - begin_seconds < seconds);
    return profile_report(clock_seconds() - begin_seconds);
}

static json_t *point_run(const struct stage_bench *bench, struct point *point,
                         struct result *tokens_out) {
    struct work works[STEP_COUNT_MAX];
    for (uint32_t i = 0; i < point->step_count; i++)
        works[i] = subject_work(bench->subject, &point->steps[i]);
    struct measure_plan plan = {.limits = bench->limits,
                                .unit = subject_unit(bench->subject),
                                .pieces = works,
                                .piece_count = point->step_count,
                                .seconds = bench->options->seconds,
                                .call = point_call,
                                .ctx = point};
    struct measurement m;
    measure(&plan, &m);
    struct result seconds = measurement_seconds(&m);
    *tokens_out =
        (struct result){point->token_count / seconds.best, point->token_count / seconds.median};
    printf("  %8.2f %8.2f ", tokens_out->median, tokens_out->best);
    measurement_print(&m);
    json_t *json = measurement_json(&m);
    json_add(json, "tokens_per_s", result_json(*tokens_out, 1));
    if (bench->options->with_profile)
        json_add(json, "profile", point_profile(point, bench->options->seconds));
    return json;
}

// -- decode and prefill ---------------------------------------------------------------------------

// Fills the KV memory of the sequences, in steps of at most row_count_max rows.
static void context_fill(struct stage_bench *bench, uint32_t sequence_count, uint32_t context,
                         uint32_t row_count_max) {
    uint32_t rows_max = row_count_max / sequence_count;
    for (uint32_t position = 0; position < context; position += rows_max) {
        uint32_t rows = context - position < rows_max ? context - position : rows_max;
        subject_run(bench->subject, &(struct subject_step){.sequence_count = sequence_count,
                                                           .position_first = position,
                                                           .row_count = rows});
    }
}

static void decode_run(struct stage_bench *bench) {
    const struct stage_options *options = bench->options;
    printf("\ndecode, context %u (shares in %%; medians, and the roofline also of the bests)\n"
           "batch    tok/s     best  %s\n",
           (uint32_t)options->context, measurement_heading);
    for (uint32_t i = 0; i < options->points.count; i++) {
        uint32_t batch = options->points.values[i];
        struct point point = {.subject = bench->subject, .step_count = 1, .token_count = batch};
        point.steps[0] = (struct subject_step){.sequence_count = batch,
                                               .position_first = (uint32_t)options->context,
                                               .row_count = 1,
                                               .is_sampled = true};
        context_fill(bench, batch, (uint32_t)options->context, (uint32_t)options->chunk);
        printf("%5u ", batch);
        struct result tokens;
        json_t *json = point_run(bench, &point, &tokens);
        bench->tokens_per_second[i] = tokens.median;
        json_add(json, "batch", json_integer(batch));
        json_add(json, "to_first", json_real(tokens.median / bench->tokens_per_second[0]));
        if (i > 0)
            printf("      %.2f times batch %u\n", tokens.median / bench->tokens_per_second[0],
                   options->points.values[0]);
        CHECK(json_array_append_new(bench->results, json) == 0);
    }
}

static void prefill_run(struct stage_bench *bench) {
    const struct stage_options *options = bench->options;
    uint32_t chunk = (uint32_t)options->chunk;
    printf("\nprefill, chunks of %u rows (shares in %%; medians, and the roofline also of the "
           "bests)\nprompt   tok/s     best  %s\n",
           chunk, measurement_heading);
    for (uint32_t i = 0; i < options->points.count; i++) {
        uint32_t prompt = options->points.values[i];
        struct point point = {.subject = bench->subject, .token_count = prompt};
        for (uint32_t position = 0; position < prompt; position += chunk) {
            uint32_t rows = prompt - position < chunk ? prompt - position : chunk;
            point.steps[point.step_count++] =
                (struct subject_step){.sequence_count = 1,
                                      .position_first = position,
                                      .row_count = rows,
                                      .is_sampled = position + rows == prompt};
        }
        printf("%5u ", prompt);
        struct result tokens;
        json_t *json = point_run(bench, &point, &tokens);
        json_add(json, "prompt", json_integer(prompt));
        CHECK(json_array_append_new(bench->results, json) == 0);
    }
}

static bool is_decode(const struct stage_options *options) {
    return strcmp(options->verb, "decode") == 0;
}

static void results_write(struct stage_bench *bench) {
    const struct stage_options *options = bench->options;
    const struct backend *backend = subject_backend(bench->subject);
    const struct engine_sizes *sizes = subject_sizes(bench->subject);
    json_t *json = json_object();
    CHECK(json != NULL);
    json_add(json, "benchmark", json_string(options->verb));
    json_add(json, "threads", json_integer(backend_thread_count(backend)));
    json_add(json, "kernel", json_string(backend_variant(backend)));
    json_add(json, "layers", json_integer(subject_layer_count(bench->subject)));
    json_add(json, "weights", json_string(options->weights));
    json_add(json, "activations", json_string(options->activations));
    json_add(json, "kv", json_string(options->kv));
    json_add(json, "weight_bytes", json_integer((json_int_t)sizes->weight_bytes));
    printf("%s kernels, threads: %u, layers: %u, weights: %s of %.0f MB, activations: %s, KV: %s\n",
           backend_variant(backend), backend_thread_count(backend),
           subject_layer_count(bench->subject), options->weights,
           (double)sizes->weight_bytes * 1e-6, options->activations, options->kv);
    json_add(json, "limits", report_limits(bench->limits));
    bench->results = json_array();
    json_add(json, "points", bench->results);
    if (is_decode(options))
        decode_run(bench);
    else
        prefill_run(bench);
    if (options->as_json) report_json(json);
    json_decref(json);
}

// -- options --------------------------------------------------------------------------------------

// Numbers between commas, each from 1 to maximum.
static bool counts_parse(const char *text, uint32_t maximum, struct counts *counts_out) {
    struct counts counts = {.count = 0};
    for (const char *at = text;; at++) {
        uint64_t value = 0;
        const char *first = at;
        for (; *at >= '0' && *at <= '9' && value <= maximum; at++)
            value = value * 10 + (uint64_t)(*at - '0');
        if (at == first || value == 0 || value > maximum) return false;
        if (counts.count == POINT_COUNT_MAX) return false;
        counts.values[counts.count++] = (uint32_t)value;
        if (*at == '\0') break;
        if (*at != ',') return false;
    }
    *counts_out = counts;
    return true;
}

static enum options_result options_read(int argc, char **argv, struct stage_options *o) {
    const struct option_spec specs[] = {
        {"batch", OPTION_TEXT, &o->batches, "N,...", "decode: sequences at once (default 1,4,16)",
         0, 0},
        {"context", OPTION_COUNT, &o->context, "N",
         "decode: positions before the row (default 128)", 1, POSITION_COUNT_MAX - 1},
        {"prompt", OPTION_TEXT, &o->prompts, "N,...", "prefill: tokens (default 512,2048)", 0, 0},
        {"chunk", OPTION_COUNT, &o->chunk, "N", "most rows of a step (default 512)", 256,
         MICROBATCH_ROW_COUNT_MAX},
        {"layers", OPTION_COUNT, &o->layer_count, "N", "of the model (default: all)", 1,
         MODEL_LAYER_COUNT_MAX},
        {"model", OPTION_TEXT, &o->model_directory, "DIR",
         "folder whose config.json gives the shape (default: 1.1 billion parameters)", 0, 0},
        {"weights", OPTION_TEXT, &o->weights, "FORMAT",
         "checkpoint, int8 or int8-weight-only (default checkpoint, which is bf16)", 0, 0},
        {"activations", OPTION_TEXT, &o->activations, "TYPE", "f32 or bf16 (default f32)", 0, 0},
        {"kv", OPTION_TEXT, &o->kv, "TYPE", "f32, bf16 or f16 (default bf16)", 0, 0},
        {"threads", OPTION_COUNT, &o->thread_count, "N",
         "threads of the stage and of the limits (default: all cores)", 1,
         (double)limits_core_count()},
        {"kernel", OPTION_TEXT, &o->variant, "NAME",
         "auto, avx512bf16, avx512, avx2, portable or reference (default auto)", 0, 0},
        {"seconds", OPTION_NUMBER, &o->seconds, "S", "for each point (default 3)", 0, 3600},
        {"profile", OPTION_FLAG, &o->with_profile, NULL,
         "also print the share of each kind of operation", 0, 0},
        {"json", OPTION_FLAG, &o->as_json, NULL, "end with all results as one line of JSON", 0, 0},
    };
    const struct options options = {
        .program = "stage_bench",
        .purpose = "measures tokens a second of one stage that holds a whole model",
        .usage = "decode|prefill [options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
        .positional_max = 1,
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result == OPTIONS_RUN) o->verb = positional_count == 1 ? argv[1] : "";
    return result;
}

static bool refuse(const char *option, const char *value) {
    fprintf(stderr, "stage_bench: %s is '%s', see --help\n", option, value);
    return false;
}

static bool options_check(struct stage_options *o, struct subject_config *config) {
    bool decode = is_decode(o);
    if (!decode && strcmp(o->verb, "prefill") != 0) return refuse("the benchmark", o->verb);
    if (!weight_format_parse(o->weights, &config->weight_format))
        return refuse("--weights", o->weights);
    if (!dtype_parse(o->activations, &config->activation_dtype))
        return refuse("--activations", o->activations);
    if (!dtype_parse(o->kv, &config->kv_dtype)) return refuse("--kv", o->kv);
    if (decode && !counts_parse(o->batches, (uint32_t)o->chunk, &o->points))
        return refuse("--batch", o->batches);
    uint32_t prompt_max = (uint32_t)o->chunk * STEP_COUNT_MAX;
    if (prompt_max > POSITION_COUNT_MAX) prompt_max = POSITION_COUNT_MAX;
    if (!decode && !counts_parse(o->prompts, prompt_max, &o->points))
        return refuse("--prompt", o->prompts);
    uint32_t greatest = 1;
    for (uint32_t i = 0; i < o->points.count; i++) {
        if (o->points.values[i] > greatest) greatest = o->points.values[i];
    }
    config->model_directory = o->model_directory;
    config->variant = o->variant;
    config->thread_count = (uint32_t)o->thread_count;
    config->layer_count = (uint32_t)o->layer_count;
    config->row_count_max = (uint32_t)o->chunk;
    config->sequence_count_max = decode ? greatest : 1;
    config->position_count_max = decode ? (uint32_t)o->context + 1 : greatest;
    return true;
}

int main(int argc, char **argv) {
    struct stage_options options = {.batches = "1,4,16",
                                    .prompts = "512,2048",
                                    .context = 128,
                                    .chunk = 512,
                                    .thread_count = limits_core_count(),
                                    .variant = "auto",
                                    .weights = "checkpoint",
                                    .activations = "f32",
                                    .kv = "bf16",
                                    .seconds = 3};
    struct subject_config config = {0};
    enum options_result parsed = options_read(argc, argv, &options);
    if (parsed != OPTIONS_RUN) return parsed == OPTIONS_EXIT_OK ? 0 : 2;
    if (!options_check(&options, &config)) return 2;
    struct stage_bench bench = {.options = &options};
    struct error error;
    enum status status = limits_open(config.thread_count, &bench.limits, &error);
    if (status == STATUS_OK) status = subject_open(&config, &bench.subject, &error);
    if (status == STATUS_OK)
        results_write(&bench);
    else
        fprintf(stderr, "stage_bench: %s\n", error.text);
    subject_close(bench.subject);
    limits_close(bench.limits);
    return status == STATUS_OK ? 0 : 1;
}
