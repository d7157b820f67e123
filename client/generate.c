// generate: continues a prompt and streams the text.
#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "client/client.h"
#include "client/generation.h"
#include "client/message_json.h"
#include "client/parse.h"
#include "client/verbs.h"
#include "client/waiting.h"
#include "stagecoach/v1/admin.pb-c.h"

// Logprobs are asked for with any count, also 0: this default stands for not asking.
#define LOGPROBS_OFF UINT32_MAX

// The command line as written. Ranges are the coordinator's to judge: it names field and limit.
struct arguments {
    struct client_options connection;
    const char *prompt;
    const char *token_ids;
    uint64_t max_tokens;
    uint64_t n;
    double priority;
    const char *cache_salt;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t top_k;
    const char *seed;
    const char *logit_bias;
    uint64_t logprobs;
    struct option_texts stop;
    const char *stop_token_ids;
    const char *request_id;
    bool ignore_eos, keep_special_tokens, as_json;
    double wait_seconds;
};

// The message and what it points to; token ids, biases and text from standard input are its own.
struct request {
    Stagecoach__V1__GenerateRequest message;
    Stagecoach__V1__TokenIds token_ids;
    Stagecoach__V1__Sampling sampling;
    Stagecoach__V1__Stop stop;
    Stagecoach__V1__LogitBias *biases;
    Stagecoach__V1__LogitBias **bias_pointers;
    char *stop_strings[OPTION_TEXT_COUNT_MAX];
    char *own_text;
};

// -- command line --------------------------------------------------------------------------------

#define NUMBER(option, field, range)                                                               \
    {                                                                                              \
        .name = (option), .kind = OPTION_NUMBER, .target = &arguments->field, .argument = "X",     \
        .help = (range), .minimum = -FLT_MAX, .maximum = FLT_MAX                                   \
    }
#define COUNT(option, field, text)                                                                 \
    {                                                                                              \
        .name = (option), .kind = OPTION_COUNT, .target = &arguments->field, .argument = "N",      \
        .help = (text), .maximum = UINT32_MAX - 1                                                  \
    }
#define TEXT(option, field, value, text)                                                           \
    {                                                                                              \
        .name = (option), .kind = OPTION_TEXT, .target = &arguments->field, .argument = (value),   \
        .help = (text)                                                                             \
    }
#define FLAG(option, field, text)                                                                  \
    { .name = (option), .kind = OPTION_FLAG, .target = &arguments->field, .help = (text) }

// False: *exit_status_out is the answer.
static bool parse_arguments(int argc, char **argv, struct arguments *arguments,
                            int *exit_status_out) {
    const struct option_spec specs[] = {
        CLIENT_OPTION_SPECS(&arguments->connection),
        TEXT("prompt", prompt, "TEXT", "the same as the argument; - is standard input"),
        TEXT("token-ids", token_ids, "IDS", "token ids instead of text, such as 1,2,3"),
        COUNT("max-tokens", max_tokens, "make at most N tokens (default 0: until it ends)"),
        COUNT("n", n, "make N answers of the prompt, each with a seed of its own (default 1)"),
        NUMBER("temperature", temperature, "0 to 100 (default 0: the most likely token)"),
        NUMBER("top-p", top_p, "keep the most likely tokens up to this sum, 0 to 1 (default: off)"),
        COUNT("top-k", top_k, "keep the N most likely tokens (default 0: off)"),
        NUMBER("min-p", min_p, "keep tokens of this share of the best, 0 to 1 (default 0: off)"),
        NUMBER("repetition-penalty", repetition_penalty, "0.01 to 100 (default 0: off)"),
        NUMBER("presence-penalty", presence_penalty, "-2 to 2 (default 0: off)"),
        NUMBER("frequency-penalty", frequency_penalty, "-2 to 2 (default 0: off)"),
        TEXT("seed", seed, "N", "same seed, same text (default: one is drawn and shown)"),
        TEXT("logit-bias", logit_bias, "ID=X,...", "add X, -100 to 100, to the logit of a token"),
        COUNT("logprobs", logprobs, "with --json: log-probabilities, and those of N alternatives"),
        {.name = "stop",
         .kind = OPTION_TEXT_LIST,
         .target = &arguments->stop,
         .argument = "TEXT",
         .help = "end before this text; may be given several times"},
        TEXT("stop-token-ids", stop_token_ids, "IDS", "end after one of these tokens"),
        FLAG("ignore-eos", ignore_eos, "go on after the model's own end of the text"),
        FLAG("keep-special-tokens", keep_special_tokens, "show special tokens in the text"),
        TEXT("request-id", request_id, "TEXT", "shown in the logs of the coordinator"),
        {.name = "priority",
         .kind = OPTION_NUMBER,
         .target = &arguments->priority,
         .argument = "N",
         .help = "of requests that wait, higher ones start first (default 0)",
         .minimum = INT32_MIN,
         .maximum = INT32_MAX},
        TEXT("cache-salt", cache_salt, "TEXT",
             "share the prompt's beginning only with requests of this salt (default: none)"),
        {.name = "wait",
         .kind = OPTION_NUMBER,
         .target = &arguments->wait_seconds,
         .argument = "SECONDS",
         .help = "first wait until the pipeline runs, showing progress (default 0: do not)",
         .maximum = 1e6},
        FLAG("json", as_json, "one line of JSON at the end instead of text as it comes"),
    };
    const struct options options = {
        .program = "stagecoach generate",
        .purpose =
            "continues a prompt and streams the text to standard output; numbers about it go "
            "to standard error.\nWithout PROMPT or with -, the prompt is standard input.",
        .usage = "[options] [PROMPT]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
        .positional_max = 1,
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    *exit_status_out = result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    if (result != OPTIONS_RUN) return false;
    bool has_prompt = arguments->prompt != NULL;
    if ((positional_count != 0) + has_prompt + (arguments->token_ids != NULL) > 1) {
        client_report("give one prompt: PROMPT, --prompt or --token-ids");
        return false;
    }
    if (arguments->priority != trunc(arguments->priority)) {
        client_report("--priority is %g, it must be a whole number", arguments->priority);
        return false;
    }
    if (positional_count != 0) arguments->prompt = argv[1];
    return true;
}

// -- request -------------------------------------------------------------------------------------

static enum status set_prompt(struct request *request, const struct arguments *arguments,
                              struct error *error) {
    if (arguments->token_ids != NULL) {
        request->message.prompt_case = STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
        request->message.token_ids = &request->token_ids;
        return parse_token_ids("token-ids", arguments->token_ids, &request->token_ids.ids,
                               &request->token_ids.n_ids, error);
    }
    request->message.prompt_case = STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request->message.text = (char *)arguments->prompt;
    if (arguments->prompt != NULL && strcmp(arguments->prompt, "-") != 0) return STATUS_OK;
    enum status status = parse_standard_input(&request->own_text, error);
    request->message.text = request->own_text;
    return status;
}

static enum status set_biases(struct request *request, const char *text, struct error *error) {
    if (text == NULL) return STATUS_OK;
    struct token_bias *biases;
    size_t count;
    enum status status = parse_token_biases("logit-bias", text, &biases, &count, error);
    if (status != STATUS_OK) return status;
    request->biases = memory_array(count + 1, sizeof(*request->biases));
    request->bias_pointers = memory_array(count + 1, sizeof(*request->bias_pointers));
    if (request->biases == NULL || request->bias_pointers == NULL) {
        free(biases);
        return error_set(error, STATUS_NO_MEMORY, "no memory for --logit-bias");
    }
    for (size_t i = 0; i < count; i++) {
        stagecoach__v1__logit_bias__init(&request->biases[i]);
        request->biases[i].token_id = biases[i].token_id;
        request->biases[i].bias = biases[i].bias;
        request->bias_pointers[i] = &request->biases[i];
    }
    request->sampling.logit_bias = request->bias_pointers;
    request->sampling.n_logit_bias = count;
    free(biases);
    return STATUS_OK;
}

static enum status set_sampling(struct request *request, const struct arguments *arguments,
                                struct error *error) {
    Stagecoach__V1__Sampling *sampling = &request->sampling;
    sampling->temperature = (float)arguments->temperature;
    sampling->top_p = (float)arguments->top_p;
    sampling->top_k = (uint32_t)arguments->top_k;
    sampling->min_p = (float)arguments->min_p;
    sampling->repetition_penalty = (float)arguments->repetition_penalty;
    sampling->presence_penalty = (float)arguments->presence_penalty;
    sampling->frequency_penalty = (float)arguments->frequency_penalty;
    if (arguments->seed != NULL) {
        sampling->seed_presence_case = STAGECOACH__V1__SAMPLING__SEED_PRESENCE_SEED;
        enum status status = parse_u64("seed", arguments->seed, &sampling->seed, error);
        if (status != STATUS_OK) return status;
    }
    return set_biases(request, arguments->logit_bias, error);
}

static enum status set_stop(struct request *request, const struct arguments *arguments,
                            struct error *error) {
    Stagecoach__V1__Stop *stop = &request->stop;
    stop->max_tokens = (uint32_t)arguments->max_tokens;
    stop->ignore_eos = arguments->ignore_eos;
    for (size_t i = 0; i < arguments->stop.count; i++)
        request->stop_strings[i] = (char *)arguments->stop.values[i];
    stop->strings = request->stop_strings;
    stop->n_strings = arguments->stop.count;
    if (arguments->stop_token_ids == NULL) return STATUS_OK;
    return parse_token_ids("stop-token-ids", arguments->stop_token_ids, &stop->token_ids,
                           &stop->n_token_ids, error);
}

// Free with request_fini(), also after a failure.
static enum status request_init(struct request *request, const struct arguments *arguments,
                                struct error *error) {
    memset(request, 0, sizeof(*request));
    stagecoach__v1__generate_request__init(&request->message);
    stagecoach__v1__token_ids__init(&request->token_ids);
    stagecoach__v1__sampling__init(&request->sampling);
    stagecoach__v1__stop__init(&request->stop);
    request->message.sampling = &request->sampling;
    request->message.stop = &request->stop;
    request->message.keep_special_tokens = arguments->keep_special_tokens;
    request->message.n = (uint32_t)arguments->n;
    request->message.priority = (int32_t)arguments->priority;
    if (arguments->cache_salt != NULL) request->message.cache_salt = (char *)arguments->cache_salt;
    if (arguments->request_id != NULL) request->message.request_id = (char *)arguments->request_id;
    if (arguments->logprobs != LOGPROBS_OFF) {
        request->message.logprobs_presence_case =
            STAGECOACH__V1__GENERATE_REQUEST__LOGPROBS_PRESENCE_LOGPROBS;
        request->message.logprobs = (uint32_t)arguments->logprobs;
    }
    enum status status = set_sampling(request, arguments, error);
    if (status == STATUS_OK) status = set_stop(request, arguments, error);
    if (status == STATUS_OK) status = set_prompt(request, arguments, error);
    return status;
}

static void request_fini(struct request *request) {
    free(request->token_ids.ids);
    free(request->stop.token_ids);
    free(request->biases);
    free(request->bias_pointers);
    free(request->own_text);
}

// -- results -------------------------------------------------------------------------------------

static const char *finish_word(Stagecoach__V1__FinishReason reason) {
    switch (reason) {
    case STAGECOACH__V1__FINISH_REASON__FINISH_REASON_STOP:
        return "stop";
    case STAGECOACH__V1__FINISH_REASON__FINISH_REASON_LENGTH:
        return "length";
    case STAGECOACH__V1__FINISH_REASON__FINISH_REASON_CANCELLED:
        return "cancelled";
    default:
        return "none";
    }
}

static json_t *token_ids_json(const struct answer *answer) {
    json_t *ids = json_array();
    for (size_t i = 0; i < answer->token_id_count; i++)
        json_array_append_new(ids, json_integer(answer->token_ids[i]));
    return ids;
}

static json_t *stage_json(const Stagecoach__V1__Stage *stage) {
    json_t *object = json_object();
    json_object_set_new(object, "index", json_integer(stage->stage_index));
    json_object_set_new(object, "name", json_string(stage->name));
    json_object_set_new(object, "layer_first", json_integer(stage->layer_first));
    json_object_set_new(object, "layer_count", json_integer(stage->layer_count));
    json_object_set_new(object, "weight_bytes", json_of_u64(stage->weight_bytes));
    json_object_set_new(object, "mapped_bytes", json_of_u64(stage->mapped_bytes));
    json_object_set_new(object, "kv_bytes", json_of_u64(stage->kv_bytes));
    return object;
}

// The stages that have layers, first to last; null for those who may not know; NULL when the
// coordinator could not be asked.
static json_t *stages_json(struct client *client) {
    Stagecoach__V1__GetPipelineRequest request = STAGECOACH__V1__GET_PIPELINE_REQUEST__INIT;
    enum rpc_code code = RPC_UNKNOWN;
    struct error error;
    Stagecoach__V1__Pipeline *pipeline = (Stagecoach__V1__Pipeline *)client_try(
        client, &stagecoach__v1__admin__descriptor, "GetPipeline", &request.base, &code, &error);
    if (pipeline == NULL && code == RPC_PERMISSION_DENIED) return json_null();
    if (pipeline == NULL) {
        client_report_failure(client, code, error.text);
        return NULL;
    }
    json_t *stages = json_array();
    for (size_t i = 0; i < pipeline->n_stages; i++)
        if (pipeline->stages[i]->layer_count != 0)
            json_array_append_new(stages, stage_json(pipeline->stages[i]));
    protobuf_c_message_free_unpacked(&pipeline->base, NULL);
    return stages;
}

// Adds what one answer is. False when its text is not UTF-8: it must not be left out silently.
static bool describe_answer(const struct answer *answer, json_t *object) {
    json_object_set_new(object, "token_ids", token_ids_json(answer));
    json_object_set_new(object, "finish_reason", json_string(finish_word(answer->finish_reason)));
    if (answer->has_stop_token_id)
        json_object_set_new(object, "stop_token_id", json_integer(answer->stop_token_id));
    if (answer->stop_string != NULL)
        json_object_set_new(object, "stop_string", json_string(answer->stop_string));
    json_object_set_new(object, "seed", json_of_u64(answer->seed));
    if (answer->logprobs != NULL) json_object_set(object, "logprobs", answer->logprobs);
    const struct buffer *text = &answer->text;
    return json_object_set_new(
               object, "text",
               json_stringn(text->size_bytes ? text->data : "", text->size_bytes)) == 0;
}

// One answer is part of the line itself, several are a list in it.
static bool describe_answers(const struct generation *generation, json_t *line) {
    if (generation->answer_count == 1) return describe_answer(&generation->answers[0], line);
    json_t *answers = json_array();
    json_object_set_new(line, "answers", answers);
    bool is_good = true;
    for (uint32_t i = 0; i < generation->answer_count; i++) {
        json_t *object = json_object();
        json_object_set_new(object, "index", json_integer(i));
        is_good = describe_answer(&generation->answers[i], object) && is_good;
        json_array_append_new(answers, object);
    }
    return is_good;
}

static int print_json(const struct generation *generation, struct client *client) {
    json_t *stages = stages_json(client);
    if (stages == NULL) return client_exit_status(client);
    json_t *line = json_object();
    json_object_set_new(line, "prompt_tokens", json_integer(generation->prompt_tokens));
    json_object_set_new(line, "cached_tokens", json_integer(generation->cached_tokens));
    json_object_set_new(line, "completion_tokens", json_integer(generation->completion_tokens));
    json_object_set_new(line, "queue_ms", json_real(generation->queue_ms));
    json_object_set_new(line, "first_token_ms", json_real(generation->first_token_ms));
    json_object_set_new(line, "total_ms", json_real(generation->total_ms));
    json_object_set_new(line, "tokens_per_second",
                        json_real(generation_tokens_per_second(generation)));
    json_object_set_new(line, "stages", stages);
    if (!describe_answers(generation, line)) {
        json_decref(line);
        line = NULL;
    }
    return json_print_line(line);
}

// A model without a tokenizer answers token ids with token ids.
static void print_token_ids(const struct answer *answer) {
    for (size_t i = 0; i < answer->token_id_count; i++)
        printf("%s%" PRIu32, i == 0 ? "" : " ", answer->token_ids[i]);
    putchar('\n');
}

// What was not written while it came.
static void print_answer(const struct answer *answer, bool is_written, bool has_text_prompt) {
    const struct buffer *text = &answer->text;
    if (!is_written && text->size_bytes != 0) fwrite(text->data, 1, text->size_bytes, stdout);
    if (text->size_bytes != 0 && text->data[text->size_bytes - 1] != '\n') putchar('\n');
    if (text->size_bytes == 0 && !has_text_prompt) print_token_ids(answer);
}

static int print_end(const struct generation *generation, bool has_text_prompt) {
    const struct answer *first = &generation->answers[0];
    uint32_t count = generation->answer_count;
    for (uint32_t i = 0; i < count; i++) {
        if (count > 1) printf("[%" PRIu32 "] ", i);
        print_answer(&generation->answers[i], generation->stream_text, has_text_prompt);
    }
    int exit_status = client_finish_output();
    fprintf(stderr,
            "%u tokens, %.1f tokens/s, first token after %.1f ms, ended by %s, seed %" PRIu64 "\n",
            generation->completion_tokens, generation_tokens_per_second(generation),
            generation->first_token_ms, finish_word(first->finish_reason), first->seed);
    return exit_status;
}

// The exit status of a call that is over.
static int print_result(const struct generation *generation, struct client *client,
                        const struct arguments *arguments) {
    if (generation->is_output_lost) {
        if (generation->output_errno == EPIPE) return EXIT_SUCCESS;
        client_report("cannot write to standard output: %s", strerror(generation->output_errno));
        return EXIT_FAILURE;
    }
    bool is_unfinished = generation->is_interrupted || generation->failure.code != RPC_OK;
    if (is_unfinished && generation->stream_text && generation->answers[0].text.size_bytes != 0) {
        putchar('\n');
        fflush(stdout);
    }
    if (generation->is_interrupted) {
        client_report("interrupted after %zu tokens, seed %" PRIu64,
                      generation->answers[0].token_id_count, generation->answers[0].seed);
        return CLIENT_EXIT_INTERRUPTED;
    }
    if (generation->is_torn) {
        client_report("%s: the answer broke off and the coordinator did not go on with it: its "
                      "version has no resume",
                      client->coordinator);
        return EXIT_FAILURE;
    }
    if (generation->is_out_of_memory) {
        client_report("no memory for the answer");
        return EXIT_FAILURE;
    }
    if (generation->failure.code != RPC_OK) {
        client_report_code(client, generation->failure.code, generation->sentence);
        return EXIT_FAILURE;
    }
    if (arguments->as_json) return print_json(generation, client);
    return print_end(generation, arguments->token_ids == NULL);
}

static int run_request(const struct arguments *arguments, const struct request *request) {
    sigset_t interrupts;
    client_block_interrupts(&interrupts);
    struct client client;
    if (!client_open(&arguments->connection, &interrupts, &client)) return EXIT_FAILURE;
    int exit_status = EXIT_SUCCESS;
    if (arguments->wait_seconds > 0)
        exit_status = waiting_until_running(&client, &interrupts, arguments->wait_seconds);
    if (exit_status != EXIT_SUCCESS) goto close_client;
    exit_status = EXIT_FAILURE;
    struct generation generation;
    uint32_t answer_count = arguments->n > 1 ? (uint32_t)arguments->n : 1;
    if (!generation_init(&generation, answer_count, !arguments->as_json && answer_count == 1))
        goto close_client;
    if (generation_run(&generation, &client, &request->message))
        exit_status = print_result(&generation, &client, arguments);
    generation_fini(&generation);
close_client:
    client_close(&client);
    return exit_status;
}

int verb_generate(int argc, char **argv) {
    struct arguments arguments = {.connection = CLIENT_OPTIONS_DEFAULT, .logprobs = LOGPROBS_OFF};
    int exit_status;
    if (!parse_arguments(argc, argv, &arguments, &exit_status)) return exit_status;
    struct request request;
    struct error error;
    exit_status = EXIT_FAILURE;
    enum status status = request_init(&request, &arguments, &error);
    if (status == STATUS_OK)
        exit_status = run_request(&arguments, &request);
    else
        client_report("%s", error.text);
    request_fini(&request);
    // What was given on the command line is wrong: usage, as for every other option.
    return status == STATUS_INVALID ? CLIENT_EXIT_USAGE : exit_status;
}
