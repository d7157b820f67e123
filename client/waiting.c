#include "client/waiting.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/limits.h"
#include "stagecoach/v1/admin.pb-c.h"

// One line of progress; written again only when it differs.
struct progress {
    char line[1024];
    size_t length;
    char shown[1024];
};

PRINTF_LIKE(2, 3)
static void progress_add(struct progress *progress, const char *format, ...) {
    size_t room = sizeof(progress->line) - progress->length;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(progress->line + progress->length, room, format, arguments);
    va_end(arguments);
    if (length > 0) progress->length += (size_t)length < room ? (size_t)length : room - 1;
}

static void progress_show(struct progress *progress) {
    if (strcmp(progress->line, progress->shown) != 0) fprintf(stderr, "%s\n", progress->line);
    memcpy(progress->shown, progress->line, progress->length + 1);
    progress->length = 0;
}

static void add_stage(struct progress *progress, const Stagecoach__V1__Stage *stage) {
    if (stage->state == STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADING) {
        // In tenths, so that a large model makes ten lines and not thousands.
        unsigned percent = 0;
        if (stage->load_bytes_total != 0)
            percent = (unsigned)((double)stage->load_bytes_done / (double)stage->load_bytes_total *
                                 10.0) *
                      10;
        progress_add(progress, ", %s loads %u %%", stage->name, percent);
    } else if (stage->state == STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADED) {
        progress_add(progress, ", %s loaded", stage->name);
    }
}

static void show_progress(struct progress *progress, const Stagecoach__V1__Pipeline *pipeline) {
    progress_add(progress, "%s",
                 pipeline->explanation[0] ? pipeline->explanation : "the pipeline is being set up");
    for (size_t i = 0; i < pipeline->n_stages; i++)
        add_stage(progress, pipeline->stages[i]);
    progress_show(progress);
}

static void show_stages(const Stagecoach__V1__Pipeline *pipeline) {
    for (size_t i = 0; i < pipeline->n_stages; i++) {
        const Stagecoach__V1__Stage *stage = pipeline->stages[i];
        if (stage->layer_count == 0) continue;
        fprintf(stderr, "stage %u: ", stage->stage_index);
        if (stage->layer_count == 1)
            fprintf(stderr, "layer %u", stage->layer_first);
        else
            fprintf(stderr, "layers %u-%u", stage->layer_first,
                    stage->layer_first + stage->layer_count - 1);
        fprintf(stderr, ", %.1f MB of weights, %s, %u thread%s (%s)\n",
                (double)stage->weight_bytes / 1e6, stage->kernel_variant, stage->thread_count,
                stage->thread_count == 1 ? "" : "s", stage->name);
    }
}

static const Stagecoach__V1__Stage *find_failed(const Stagecoach__V1__Pipeline *pipeline) {
    for (size_t i = 0; i < pipeline->n_stages; i++)
        if (pipeline->stages[i]->state == STAGECOACH__V1__STAGE_STATE__STAGE_STATE_FAILED)
            return pipeline->stages[i];
    return NULL;
}

enum verdict { VERDICT_WAIT, VERDICT_RUNS, VERDICT_FAILED };

static enum verdict judge(const Stagecoach__V1__Pipeline *pipeline, struct progress *progress) {
    if (pipeline->state == STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING) {
        show_stages(pipeline);
        return VERDICT_RUNS;
    }
    const Stagecoach__V1__Stage *failed = find_failed(pipeline);
    if (failed != NULL) {
        client_report("stage %s cannot serve the model: %s", failed->name, failed->error);
        return VERDICT_FAILED;
    }
    show_progress(progress, pipeline);
    return VERDICT_WAIT;
}

static enum verdict ask(struct client *client, uint32_t deadline_ms, struct progress *progress) {
    Stagecoach__V1__GetPipelineRequest request = STAGECOACH__V1__GET_PIPELINE_REQUEST__INIT;
    const struct rpc_call_options options = {.deadline_ms = deadline_ms};
    ProtobufCMessage *response;
    struct error error = {0};
    enum rpc_code code = rpc_call_wait(client->channel, &stagecoach__v1__admin__descriptor,
                                       "GetPipeline", &request.base, &options, &response, &error);
    if (code == RPC_UNAVAILABLE || code == RPC_DEADLINE_EXCEEDED) {
        progress_add(progress, "no coordinator answers at %s yet", client->coordinator);
        progress_show(progress);
        return VERDICT_WAIT;
    }
    if (code == RPC_PERMISSION_DENIED) {
        // Requests wait at the coordinator, too.
        client_report("not waiting here: %s", error.text);
        return VERDICT_RUNS;
    }
    if (code != RPC_OK) {
        client_report_code(client, code, error.text);
        return VERDICT_FAILED;
    }
    enum verdict verdict = judge((Stagecoach__V1__Pipeline *)response, progress);
    protobuf_c_message_free_unpacked(response, NULL);
    return verdict;
}

int waiting_until_running(struct client *client, const sigset_t *interrupts, double seconds) {
    struct clock clock = clock_system();
    struct progress progress = {0};
    const uint64_t begin_ms = clock_now_ms(&clock);
    const uint64_t limit_ms = (uint64_t)(seconds * 1000.0);
    for (;;) {
        uint64_t spent_ms = clock_now_ms(&clock) - begin_ms;
        if (spent_ms >= limit_ms) break;
        uint64_t left_ms = limit_ms - spent_ms;
        uint32_t deadline_ms =
            left_ms < CLIENT_WAIT_CALL_MS ? (uint32_t)left_ms : CLIENT_WAIT_CALL_MS;
        enum verdict verdict = ask(client, deadline_ms, &progress);
        if (verdict != VERDICT_WAIT) return verdict == VERDICT_RUNS ? EXIT_SUCCESS : EXIT_FAILURE;
        const struct timespec pause = {.tv_nsec = CLIENT_WAIT_POLL_MS * 1000000L};
        if (sigtimedwait(interrupts, NULL, &pause) > 0) return CLIENT_EXIT_INTERRUPTED;
    }
    client_report("the pipeline does not run after %g s of waiting", seconds);
    return EXIT_FAILURE;
}
