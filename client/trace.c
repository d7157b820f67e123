// trace: records the microbatches of some seconds as a timeline.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "client/client.h"
#include "client/message_json.h"
#include "client/trace_file.h"
#include "client/verbs.h"

struct arguments {
    struct client_options connection;
    double seconds;
    bool as_json;
    const char *path;
};

// What is being recorded: microbatches sent from begin_ns to end_ns (the coordinator's clock).
struct recording {
    struct client *client;
    const sigset_t *interrupts;
    struct trace_file trace;
    uint64_t begin_ns, end_ns;
    uint64_t cursor;
    uint64_t last_sent_ns, now_ns; // as the last answers said
    uint64_t lost_count;           // that were not kept until we asked
    uint64_t epoch, step;          // the last one
};

static bool parse_arguments(int argc, char **argv, struct arguments *arguments, int *exit_status) {
    const struct option_spec specs[] = {
        CLIENT_OPTION_SPECS(&arguments->connection),
        {"seconds", OPTION_NUMBER, &arguments->seconds, "S", "how long to record (default 5)", 0.1,
         CLIENT_TRACE_SECONDS_MAX},
        {"json", OPTION_FLAG, &arguments->as_json, NULL, "one line of JSON about what was written",
         0, 0},
    };
    const struct options options = {
        .program = "stagecoach trace",
        .purpose = "records what every stage does as a timeline in the Chrome trace format;\n"
                   "open FILE at https://ui.perfetto.dev. Ctrl-C ends it early.",
        .usage = "[options] FILE",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
        .positional_max = 1,
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    *exit_status = result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    if (result != OPTIONS_RUN) return false;
    if (positional_count == 1) {
        arguments->path = argv[1];
        return true;
    }
    fprintf(stderr, "stagecoach trace: FILE is missing, see --help\n");
    return false;
}

// -- asking ---------------------------------------------------------------------------------------

// Counts steps of an epoch whose numbers are left out.
static void note_gap(struct recording *recording, const Stagecoach__V1__Step *step) {
    if (step->epoch == recording->epoch && step->step > recording->step + 1)
        recording->lost_count += step->step - recording->step - 1;
    recording->epoch = step->epoch;
    recording->step = step->step;
}

// One answer. Whether more steps wait at the coordinator; false, too, when the call failed.
static bool take_steps(struct recording *recording, bool *has_failed_out) {
    Stagecoach__V1__GetStepsRequest request = STAGECOACH__V1__GET_STEPS_REQUEST__INIT;
    request.cursor = recording->cursor;
    Stagecoach__V1__Steps *steps = (Stagecoach__V1__Steps *)client_call(
        recording->client, &stagecoach__v1__admin__descriptor, "GetSteps", &request.base);
    *has_failed_out = steps == NULL;
    if (steps == NULL) return false;
    recording->cursor = steps->cursor;
    recording->now_ns = steps->now_ns;
    for (size_t i = 0; i < steps->n_steps; i++) {
        const Stagecoach__V1__Step *step = steps->steps[i];
        note_gap(recording, step);
        recording->last_sent_ns = step->sent_ns;
        if (step->sent_ns >= recording->begin_ns && step->sent_ns <= recording->end_ns)
            trace_file_step(&recording->trace, step);
    }
    bool has_more = steps->n_steps > 0;
    protobuf_c_message_free_unpacked(&steps->base, NULL);
    return has_more;
}

// Stages report within a heartbeat; a step beyond the end says that all before it have come.
static bool is_over(const struct recording *recording) {
    uint64_t patience_ns = (2 * HEARTBEAT_MS + CLIENT_TRACE_POLL_MS) * UINT64_C(1000000);
    return recording->last_sent_ns > recording->end_ns ||
           recording->now_ns > recording->end_ns + patience_ns;
}

static bool record(struct recording *recording, double seconds) {
    bool has_failed;
    recording->end_ns = UINT64_MAX;
    (void)take_steps(recording, &has_failed);
    recording->begin_ns = recording->trace.begin_ns = recording->now_ns;
    recording->end_ns = recording->begin_ns + (uint64_t)(seconds * 1e9);
    while (!has_failed && !is_over(recording)) {
        if (take_steps(recording, &has_failed)) continue;
        const struct timespec pause = {.tv_nsec = CLIENT_TRACE_POLL_MS * 1000000L};
        if (sigtimedwait(recording->interrupts, NULL, &pause) < 0) continue;
        // What has been sent until now is still waited for; a second time ends it at once.
        if (recording->now_ns > recording->end_ns) break;
        (void)take_steps(recording, &has_failed);
        recording->end_ns = recording->now_ns;
    }
    return !has_failed;
}

// -- the file -------------------------------------------------------------------------------------

static int report(const struct recording *recording, const struct arguments *arguments) {
    double seconds = (double)(recording->end_ns - recording->begin_ns) / 1e9;
    const struct trace_file *trace = &recording->trace;
    if (arguments->as_json)
        return json_print_line(json_pack("{s:s, s:f, s:I, s:I}", "file", arguments->path, "seconds",
                                         seconds, "microbatches", (json_int_t)trace->step_count,
                                         "lost", (json_int_t)recording->lost_count));
    printf("%s: %" PRIu64 " microbatches of %.1f s", arguments->path, trace->step_count, seconds);
    if (recording->lost_count > 0) printf(", %" PRIu64 " more were lost", recording->lost_count);
    printf("; open it at https://ui.perfetto.dev\n");
    return client_finish_output();
}

static int record_file(struct client *client, const sigset_t *interrupts, FILE *file,
                       const struct arguments *arguments) {
    Stagecoach__V1__GetPipelineRequest request = STAGECOACH__V1__GET_PIPELINE_REQUEST__INIT;
    Stagecoach__V1__Pipeline *pipeline = (Stagecoach__V1__Pipeline *)client_call(
        client, &stagecoach__v1__admin__descriptor, "GetPipeline", &request.base);
    if (pipeline == NULL) return EXIT_FAILURE;
    client->retry_ms = 0; // another coordinator would tell of other steps
    struct recording recording = {.client = client, .interrupts = interrupts};
    trace_file_begin(&recording.trace, file, 0, pipeline);
    protobuf_c_message_free_unpacked(&pipeline->base, NULL);
    if (!record(&recording, arguments->seconds)) return EXIT_FAILURE;
    if (trace_file_end(&recording.trace)) return report(&recording, arguments);
    client_report("cannot write %s: %s", arguments->path, strerror(errno));
    return EXIT_FAILURE;
}

int verb_trace(int argc, char **argv) {
    struct arguments arguments = {.connection = CLIENT_OPTIONS_DEFAULT, .seconds = 5};
    int exit_status;
    if (!parse_arguments(argc, argv, &arguments, &exit_status)) return exit_status;
    FILE *file = fopen(arguments.path, "we");
    if (file == NULL) {
        client_report("cannot write %s: %s", arguments.path, strerror(errno));
        return EXIT_FAILURE;
    }
    sigset_t interrupts;
    client_block_interrupts(&interrupts);
    struct client client;
    exit_status = EXIT_FAILURE;
    if (client_open(&arguments.connection, &interrupts, &client)) {
        exit_status = record_file(&client, &interrupts, file, &arguments);
        client_close(&client);
    }
    fclose(file); // flushed already
    return exit_status;
}
