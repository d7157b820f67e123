#include "coordinator/settings.h"

#include <stdio.h>
#include <string.h>

#include "base/limits.h"

// Options whose value is one of a few words.
struct words {
    const char *activation_dtype, *kv_dtype, *load_format, *weights, *log_level, *feedback,
        *schedule, *prefix_cache, *data_encryption, *log_format, *access_log;
};

static bool refuse(const char *option, const char *text, const char *choices) {
    fprintf(stderr, "stagecoach-coordinator: --%s is '%s', it must be %s\n", option, text, choices);
    return false;
}

static bool check_dtype(const char *option, const char *text, bool allows_f16,
                        enum dtype *dtype_out) {
    enum dtype dtype;
    if (!dtype_parse(text, &dtype) || (dtype == DTYPE_F16 && !allows_f16))
        return refuse(option, text, allows_f16 ? "f32, bf16 or f16" : "f32 or bf16");
    *dtype_out = dtype;
    return true;
}

static bool choose(const char *option, const char *text, const char *first, const char *second,
                   bool *is_second_out) {
    char choices[64];
    snprintf(choices, sizeof(choices), "%s or %s", first, second);
    *is_second_out = strcmp(text, second) == 0;
    return *is_second_out || strcmp(text, first) == 0 || refuse(option, text, choices);
}

static bool read_words(const struct words *words, struct settings *s) {
    bool is_second;
    if (!check_dtype("activation-dtype", words->activation_dtype, false, &s->activation_dtype) ||
        !check_dtype("kv-dtype", words->kv_dtype, true, &s->kv_dtype))
        return false;
    if (!load_format_parse(words->load_format, &s->load_format))
        return refuse("load-format", words->load_format, "safetensors or dummy");
    if (!weight_format_parse(words->weights, &s->weight_format))
        return refuse("weights", words->weights, "checkpoint, int8 or int8-weight-only");
    if (!choose("feedback", words->feedback, "direct", "coordinator", &is_second)) return false;
    s->feedback = is_second ? FEEDBACK_COORDINATOR : FEEDBACK_DIRECT;
    if (!choose("schedule", words->schedule, "pipelined", "naive", &s->is_naive)) return false;
    if (!choose("prefix-cache", words->prefix_cache, "on", "off", &s->no_prefix_cache))
        return false;
    if (!choose("data-encryption", words->data_encryption, "off", "on", &s->encrypts_data))
        return false;
    if (!log_level_parse(words->log_level, &s->log_level))
        return refuse("log-level", words->log_level, "error, warn, info or debug");
    if (!log_format_parse(words->log_format, &s->log_format))
        return refuse("log-format", words->log_format, "text or json");
    if (!choose("access-log", words->access_log, "on", "off", &s->no_access_log)) return false;
    return true;
}

enum options_result settings_parse(int argc, char **argv, struct settings *settings_out) {
    struct settings s = {
        .listen = "127.0.0.1:7070",
        .data_listen = "127.0.0.1:0",
        .stage_count = 2,
        .kv_token_count = 16384,
        .sequence_count_max = 256,
        .waiting_count_max = 1024,
        .absent_seconds = 60,
        .unread_seconds = 60,
        .idle_seconds = 300,
        .connection_count_max = RPC_CONNECTION_COUNT_DEFAULT,
        .drain_notice_seconds = 2,
        .drain_seconds = 30,
        .stall_seconds = 60,
    };
    struct words words = {
        .activation_dtype = "f32",
        .kv_dtype = "bf16",
        .load_format = "safetensors",
        .weights = "checkpoint",
        .log_level = "info",
        .log_format = "text",
        .access_log = "on",
        .feedback = "direct",
        .schedule = "pipelined",
        .prefix_cache = "on",
        .data_encryption = "off",
    };
    const struct option_spec specs[] = {
        {"model", OPTION_TEXT, &s.model_path, "DIR", "Hugging Face model folder (required)", 0, 0},
        {"model-name", OPTION_TEXT, &s.model_name, "NAME",
         "name that clients see (default: the folder's)", 0, 0},
        {"listen", OPTION_TEXT, &s.listen, "HOST:PORT",
         "where clients and stages call, port 0 for any (default 127.0.0.1:7070)", 0, 0},
        {"data-listen", OPTION_TEXT, &s.data_listen, "HOST:PORT",
         "where the last stage sends results, port 0 for any (default 127.0.0.1:0)", 0, 0},
        {"port-file", OPTION_TEXT, &s.port_file, "PATH",
         "file that gets the port of --listen once it is open", 0, 0},
        {"data-encryption", OPTION_TEXT, &words.data_encryption, "ON|OFF",
         "on: links encrypt tokens and activations; off: they authenticate headers (default off)",
         0, 0},
        {"metrics", OPTION_TEXT, &s.metrics, "HOST:PORT",
         "where Prometheus gets /metrics over HTTP, port 0 for any (default: off)", 0, 0},
        RPC_ACCESS_OPTIONS_TLS(&s.access),
        {"tokens", OPTION_TEXT, &s.access.tokens, "FILE",
         "bearer tokens of callers, a line for each: TOKEN [NAME [ROLE,...]] (default: none)", 0,
         0},
        {"insecure", OPTION_FLAG, &s.access.insecure, NULL,
         "plaintext also where --listen is not loopback", 0, 0},
        {"stages", OPTION_COUNT, &s.stage_count, "N", "stages to wait for (default 2)", 1,
         PIPELINE_STAGE_COUNT_MAX},
        {"layers", OPTION_TEXT, &s.layers, "A,B,...",
         "layers of each stage, in place of --stages and an even split", 0, 0},
        {"activation-dtype", OPTION_TEXT, &words.activation_dtype, "TYPE",
         "residual stream, wire and inputs of products: f32 or bf16 (default f32)", 0, 0},
        {"kv-dtype", OPTION_TEXT, &words.kv_dtype, "TYPE",
         "KV memory: f32, bf16 or f16 (default bf16)", 0, 0},
        {"load-format", OPTION_TEXT, &words.load_format, "FORMAT",
         "where weights come from: safetensors, or dummy for random ones (default safetensors)", 0,
         0},
        {"weights", OPTION_TEXT, &words.weights, "FORMAT",
         "how stages keep matrices: checkpoint, int8 or int8-weight-only (default checkpoint)", 0,
         0},
        {"kv-tokens", OPTION_COUNT, &s.kv_token_count, "N",
         "positions that the KV memory holds in all (default 16384)", KV_BLOCK_POSITION_COUNT,
         1 << 30},
        {"context", OPTION_COUNT, &s.context_count, "N",
         "tokens of one sequence, at most the model's (default: the model's)", 0,
         MODEL_POSITION_COUNT_MAX},
        {"chunk", OPTION_COUNT, &s.chunk_row_count, "N",
         "prompt rows of one microbatch, 0 for as many as the measured costs ask for (default 0)",
         0, MICROBATCH_ROW_COUNT_MAX / 2},
        {"microbatches", OPTION_COUNT, &s.in_flight_max, "N",
         "microbatches in flight, 0 for as many as keep all stages busy (default 0)", 0,
         LINK_CREDIT_COUNT_MAX},
        {"feedback", OPTION_TEXT, &words.feedback, "WAY",
         "how a drawn token comes back to the first stage: direct or coordinator (default direct)",
         0, 0},
        {"prefix-cache", OPTION_TEXT, &words.prefix_cache, "ON|OFF",
         "on: prompts that begin alike share what is known of the beginning; or off (default on)",
         0, 0},
        {"schedule", OPTION_TEXT, &words.schedule, "WAY",
         "pipelined, or naive for one microbatch of everything at a time (default pipelined)", 0,
         0},
        {"max-running", OPTION_COUNT, &s.sequence_count_max, "N",
         "sequences computed at once (default 256)", 1, MICROBATCH_SEQUENCE_COUNT_MAX},
        {"max-waiting", OPTION_COUNT, &s.waiting_count_max, "N",
         "answers that may wait; when as many do, requests are refused (default 1024)", 1,
         REQUEST_COUNT_MAX},
        {"connections", OPTION_COUNT, &s.connection_count_max, "N",
         "connections of clients and stages at once; one more is closed at once (default 4096)", 1,
         1 << 20},
        {"idle-seconds", OPTION_NUMBER, &s.idle_seconds, "S",
         "after how long without a call a connection is closed (default 300)", 1, 86400},
        {"absent-seconds", OPTION_NUMBER, &s.absent_seconds, "S",
         "how long requests wait for missing stages (default 60)", 0, 86400},
        {"unread-seconds", OPTION_NUMBER, &s.unread_seconds, "S",
         "how long a finished answer is kept when its client reads nothing (default 60)", 0, 86400},
        {"drain-notice-seconds", OPTION_NUMBER, &s.drain_notice_seconds, "S",
         "after SIGTERM, how long requests are still taken while health says NOT_SERVING (default "
         "2)",
         0, 3600},
        {"drain-seconds", OPTION_NUMBER, &s.drain_seconds, "S",
         "after that, how long running requests may go on (default 30)", 0, 86400},
        {"stall-seconds", OPTION_NUMBER, &s.stall_seconds, "S",
         "not ready when microbatches are in flight and no stage computes for so long (default 60)",
         0.1, 86400},
        {"log-level", OPTION_TEXT, &words.log_level, "LEVEL",
         "error, warn, info or debug (default info)", 0, 0},
        {"log-format", OPTION_TEXT, &words.log_format, "FORMAT",
         "lines of the log: text, or json for one object each (default text)", 0, 0},
        {"access-log", OPTION_TEXT, &words.access_log, "ON|OFF",
         "a line of the log for each client request that is over (default on)", 0, 0},
    };
    const struct options options = {
        .program = "stagecoach-coordinator",
        .purpose = "takes requests over gRPC, plans which stage owns which layers, schedules\n"
                   "microbatches and streams tokens back",
        .usage = "--model DIR [options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN) return result;
    if (s.model_path == NULL) {
        fprintf(stderr, "stagecoach-coordinator: --model is required, see --help\n");
        return OPTIONS_EXIT_USAGE;
    }
    if (!read_words(&words, &s)) return OPTIONS_EXIT_USAGE;
    *settings_out = s;
    return OPTIONS_RUN;
}
