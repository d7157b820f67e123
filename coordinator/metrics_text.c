#include "coordinator/metrics_text.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/limits.h"

typedef const Stagecoach__V1__Pipeline pipeline_message;
typedef const Stagecoach__V1__Stage stage_message;

// After the first failure nothing is written.
struct text {
    struct buffer *out;
    enum status status;
    const char *name; // of the metric whose samples come now
};

static void put(struct text *text, const char *words) {
    if (text->status == STATUS_OK) text->status = buffer_append(text->out, words, strlen(words));
}

// At most 255 bytes.
PRINTF_LIKE(2, 3) static void put_format(struct text *text, const char *format, ...) {
    char words[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(words, sizeof(words), format, arguments);
    va_end(arguments);
    put(text, words);
}

// type: counter, gauge or histogram.
static void begin(struct text *text, const char *name, const char *type, const char *help) {
    text->name = name;
    put_format(text, "# HELP %s ", name);
    put(text, help); // longer than a line of put_format
    put_format(text, "\n# TYPE %s %s\n", name, type);
}

// Backslash, quote and line feed are escaped.
static void put_label_value(struct text *text, const char *value) {
    for (const char *at = value; *at != '\0'; at++) {
        char letter[2] = {*at, '\0'};
        bool is_special = *at == '\\' || *at == '"' || *at == '\n';
        if (is_special) put(text, "\\");
        put(text, *at == '\n' ? "n" : letter);
    }
}

static void put_label(struct text *text, const char *name, const char *value) {
    put_format(text, "%s=\"", name);
    put_label_value(text, value);
    put(text, "\"");
}

// Fifteen digits: whole nanoseconds of eleven days, and no noise of the binary fraction.
static void put_value(struct text *text, double value) {
    put_format(text, " %.15g\n", value);
}

static void sample(struct text *text, double value) {
    put(text, text->name);
    put_value(text, value);
}

static void plain(struct text *text, const char *name, const char *type, const char *help,
                  double value) {
    begin(text, name, type, help);
    sample(text, value);
}

static void count(struct text *text, const char *name, const char *help, uint64_t value) {
    begin(text, name, "counter", help);
    put_format(text, "%s %" PRIu64 "\n", name, value);
}

static void labelled(struct text *text, const char *label, const char *label_value, double value) {
    put_format(text, "%s{", text->name);
    put_label(text, label, label_value);
    put(text, "}");
    put_value(text, value);
}

static double seconds_of(uint64_t ns) {
    return (double)ns / 1e9;
}

// -- histograms -----------------------------------------------------------------------------------

static void histogram(struct text *text, const char *name, const char *help,
                      const Stagecoach__V1__Histogram *h) {
    if (h == NULL || h->n_counts != h->n_bounds_seconds + 1) return;
    begin(text, name, "histogram", help);
    uint64_t sum = 0;
    for (size_t i = 0; i < h->n_bounds_seconds; i++) {
        sum += h->counts[i];
        put_format(text, "%s_bucket{le=\"%.15g\"} %" PRIu64 "\n", name, h->bounds_seconds[i], sum);
    }
    sum += h->counts[h->n_bounds_seconds];
    put_format(text, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, sum);
    put_format(text, "%s_sum %.15g\n%s_count %" PRIu64 "\n", name, h->sum_seconds, name, sum);
}

// -- the pipeline ---------------------------------------------------------------------------------

static void write_state(struct text *text, pipeline_message *p) {
    begin(text, "stagecoach_build_info", "gauge", "Always 1; the version of the coordinator.");
    labelled(text, "version", p->version, 1);
    plain(text, "stagecoach_pipeline_running", "gauge",
          "1 while all stages are connected and microbatches are sent.",
          p->state == STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING);
    plain(text, "stagecoach_pipeline_epoch", "gauge",
          "Rises whenever stages are lost or assigned anew.", (double)p->epoch);
    plain(text, "stagecoach_pipeline_stages", "gauge", "Stages that the pipeline consists of.",
          p->stage_count);
}

static void write_requests(struct text *text, pipeline_message *p) {
    plain(text, "stagecoach_requests_running", "gauge", "Sequences that own KV memory.",
          p->request_running_count);
    plain(text, "stagecoach_requests_waiting", "gauge", "Sequences that wait for room.",
          p->request_waiting_count);
    begin(text, "stagecoach_requests_total", "counter",
          "Requests that ended: done, or failed, refused or cancelled.");
    labelled(text, "outcome", "done", (double)p->request_done_count);
    labelled(text, "outcome", "failed", (double)p->request_failed_count);
    count(text, "stagecoach_prompt_tokens_total", "Tokens of the prompts of accepted requests.",
          p->prompt_token_count);
    count(text, "stagecoach_completion_tokens_total", "Tokens made.", p->completion_token_count);
    plain(text, "stagecoach_completion_tokens_per_second", "gauge",
          "Tokens made a second, over the last seconds.", p->completion_tokens_per_second);
    plain(text, "stagecoach_rows_per_second", "gauge",
          "Tokens computed a second, of prompts too, over the last seconds.", p->rows_per_second);
    count(text, "stagecoach_replays_total",
          "Sequences computed again after a fault or when KV memory ran out.", p->replay_count);
    histogram(text, "stagecoach_queue_seconds",
              "From a request's arrival until its first rows were sent.", p->queue);
    histogram(text, "stagecoach_time_to_first_token_seconds",
              "From a request's arrival to its first token.", p->first_token);
    histogram(text, "stagecoach_inter_token_seconds", "From one token of a sequence to the next.",
              p->inter_token);
    histogram(text, "stagecoach_request_seconds",
              "From arrival to the last token, of requests that were done.", p->request);
}

static double used_ratio(pipeline_message *p) {
    return p->kv_block_count == 0 ? 0 : (double)p->kv_block_used_count / p->kv_block_count;
}

static void write_memory(struct text *text, pipeline_message *p) {
    plain(text, "stagecoach_kv_blocks", "gauge", "Blocks of KV memory.", p->kv_block_count);
    plain(text, "stagecoach_kv_blocks_used", "gauge", "Blocks that sequences own.",
          p->kv_block_used_count);
    plain(text, "stagecoach_kv_blocks_cached", "gauge",
          "Blocks that no sequence owns, kept for prompts that begin the same.",
          p->kv_block_cached_count);
    plain(text, "stagecoach_kv_used_ratio", "gauge", "Part of the KV memory that sequences own.",
          used_ratio(p));
    count(text, "stagecoach_prefix_cache_queried_tokens_total",
          "Prompt tokens that were looked up in the prefix cache.", p->prefix_token_count);
    count(text, "stagecoach_prefix_cache_hit_tokens_total",
          "Prompt tokens that were taken from the prefix cache.", p->prefix_hit_token_count);
}

static void write_microbatches(struct text *text, pipeline_message *p) {
    plain(text, "stagecoach_microbatches_in_flight", "gauge", "Sent, and the result has not come.",
          p->microbatch_in_flight_count);
    plain(text, "stagecoach_microbatch_oldest_age_seconds", "gauge",
          "How long ago the oldest of those in flight was sent.", p->microbatch_oldest_age_seconds);
    begin(text, "stagecoach_microbatch_seconds", "summary",
          "From sending a microbatch to its result.");
    put_format(text, "%s_sum %.15g\n%s_count %" PRIu64 "\n", text->name,
               seconds_of(p->microbatch_ns), text->name, p->microbatch_count);
    count(text, "stagecoach_microbatch_rows_total", "Rows of these microbatches.",
          p->microbatch_row_count);
    count(text, "stagecoach_microbatches_lost_total",
          "Microbatches that a stage did not report: in no other sum.", p->microbatch_lost_count);
    count(text, "stagecoach_stale_frames_total", "Frames of a former epoch, dropped.",
          p->stale_frame_count);
    count(text, "stagecoach_links_refused_total",
          "Connections, messages and frames that the coordinator's data plane refused.",
          p->refused_count);
    plain(text, "stagecoach_bubble_ratio", "gauge",
          "Idle part of the stages' time while requests were unfinished, over the last seconds.",
          p->bubble_ratio);
    plain(text, "stagecoach_bubble_ratio_ideal", "gauge",
          "What filling and draining alone must cost: (P-1)/(P-1+M).", p->bubble_ratio_ideal);
}

// -- stages ---------------------------------------------------------------------------------------

// One value of a stage that has layers.
typedef double stage_value(stage_message *stage, pipeline_message *p);

static double busy_seconds(stage_message *stage, pipeline_message *p) {
    (void)p;
    return seconds_of(stage->times->busy_ns);
}
static double queued_seconds(stage_message *stage, pipeline_message *p) {
    (void)p;
    return seconds_of(stage->times->queued_ns);
}
static double hop_seconds(stage_message *stage, pipeline_message *p) {
    (void)p;
    return seconds_of(stage->times->hop_ns);
}
static double microbatches(stage_message *stage, pipeline_message *p) {
    (void)p;
    return (double)stage->times->step_count;
}
static double queue_depth(stage_message *stage, pipeline_message *p) {
    if (stage->times_window == NULL || p->window_seconds <= 0) return 0;
    return seconds_of(stage->times_window->queued_ns) / p->window_seconds;
}
static double weight_bytes(stage_message *stage, pipeline_message *p) {
    (void)p;
    return (double)stage->weight_bytes;
}
static double kv_bytes(stage_message *stage, pipeline_message *p) {
    (void)p;
    return (double)stage->kv_bytes;
}
static double refused(stage_message *stage, pipeline_message *p) {
    (void)p;
    return (double)stage->refused_count;
}
static double heartbeat_age_seconds(stage_message *stage, pipeline_message *p) {
    (void)p;
    return (double)stage->heartbeat_age_ms / 1e3;
}
static double clock_offset_seconds(stage_message *stage, pipeline_message *p) {
    (void)p;
    return (double)stage->clock_offset_ns / 1e9;
}

static const struct {
    const char *name, *type, *help;
    stage_value *value;
} STAGE_METRICS[] = {
    {"stagecoach_stage_busy_seconds_total", "counter", "Time that the stage computed.",
     busy_seconds},
    {"stagecoach_stage_queued_seconds_total", "counter",
     "Time that frames waited at the stage, summed over frames.", queued_seconds},
    {"stagecoach_stage_hop_seconds_total", "counter",
     "Time that frames were on their way to the stage, summed over frames.", hop_seconds},
    {"stagecoach_stage_microbatches_total", "counter", "Microbatches computed.", microbatches},
    {"stagecoach_stage_queue_depth", "gauge",
     "Frames that wait at the stage, mean of the last seconds.", queue_depth},
    {"stagecoach_stage_weight_bytes", "gauge", "Bytes of the weights of the stage's layers.",
     weight_bytes},
    {"stagecoach_stage_kv_bytes", "gauge", "Bytes of KV memory of the stage.", kv_bytes},
    {"stagecoach_stage_links_refused_total", "counter",
     "Connections, messages and frames that the stage's data plane refused.", refused},
    {"stagecoach_stage_heartbeat_age_seconds", "gauge", "How long ago the stage was heard of.",
     heartbeat_age_seconds},
    {"stagecoach_stage_clock_offset_seconds", "gauge",
     "How far the stage's clock is ahead of the coordinator's.", clock_offset_seconds},
};
enum { STAGE_METRIC_COUNT = sizeof(STAGE_METRICS) / sizeof(STAGE_METRICS[0]) };

static bool has_layers(stage_message *stage) {
    return stage->layer_count != 0 && stage->times != NULL;
}

static void put_index(struct text *text, stage_message *stage) {
    put_format(text, "%s{stage=\"%" PRIu32 "\"", text->name, stage->stage_index);
}

static void write_idle(struct text *text, pipeline_message *p) {
    begin(text, "stagecoach_stage_idle_seconds_total", "counter",
          "Time that the stage waited while requests were unfinished: starved (nothing was sent), "
          "wire (the frame was on its way), imbalance (another stage had more to do).");
    for (size_t i = 0; i < p->n_stages; i++) {
        stage_message *stage = p->stages[i];
        if (!has_layers(stage)) continue;
        const struct {
            const char *name;
            uint64_t ns;
        } causes[] = {{"starved", stage->times->starved_ns},
                      {"wire", stage->times->wire_ns},
                      {"imbalance", stage->times->imbalance_ns}};
        for (size_t c = 0; c < sizeof(causes) / sizeof(causes[0]); c++) {
            put_index(text, stage);
            put(text, ",");
            put_label(text, "cause", causes[c].name);
            put(text, "}");
            put_value(text, seconds_of(causes[c].ns));
        }
    }
}

static void write_up(struct text *text, pipeline_message *p) {
    begin(text, "stagecoach_stage_up", "gauge", "1 while the stage serves its layers.");
    for (size_t i = 0; i < p->n_stages; i++) {
        stage_message *stage = p->stages[i];
        if (!has_layers(stage)) continue;
        put_index(text, stage);
        put(text, ",");
        put_label(text, "name", stage->name);
        put(text, "}");
        put_value(text, stage->state == STAGECOACH__V1__STAGE_STATE__STAGE_STATE_RUNNING);
    }
}

static void write_stages(struct text *text, pipeline_message *p) {
    write_up(text, p);
    write_idle(text, p);
    for (size_t m = 0; m < STAGE_METRIC_COUNT; m++) {
        begin(text, STAGE_METRICS[m].name, STAGE_METRICS[m].type, STAGE_METRICS[m].help);
        for (size_t i = 0; i < p->n_stages; i++) {
            if (!has_layers(p->stages[i])) continue;
            put_index(text, p->stages[i]);
            put(text, "}");
            put_value(text, STAGE_METRICS[m].value(p->stages[i], p));
        }
    }
}

// -- names that gateways look for -----------------------------------------------------------------

static void write_alias(struct text *text, pipeline_message *p, const char *name, const char *help,
                        double value) {
    begin(text, name, "gauge", help);
    labelled(text, "model_name", p->model_name, value);
}

static void write_aliases(struct text *text, pipeline_message *p) {
    write_alias(text, p, "vllm:num_requests_running", "As stagecoach_requests_running.",
                p->request_running_count);
    write_alias(text, p, "vllm:num_requests_waiting", "As stagecoach_requests_waiting.",
                p->request_waiting_count);
    write_alias(text, p, "vllm:kv_cache_usage_perc", "As stagecoach_kv_used_ratio: 1 is full.",
                used_ratio(p));
    begin(text, "vllm:cache_config_info", "gauge", "Always 1; the shape of the KV memory.");
    put_format(text, "%s{block_size=\"%d\",num_gpu_blocks=\"%" PRIu32 "\"} 1\n", text->name,
               KV_BLOCK_POSITION_COUNT, p->kv_block_count);
}

enum status metrics_text_write(const Stagecoach__V1__Pipeline *pipeline, struct buffer *out) {
    struct text text = {.out = out};
    write_state(&text, pipeline);
    write_requests(&text, pipeline);
    write_memory(&text, pipeline);
    write_microbatches(&text, pipeline);
    write_stages(&text, pipeline);
    write_aliases(&text, pipeline);
    return text.status;
}
