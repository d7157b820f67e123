// status: the pipeline, its stages and their layers.
#include <inttypes.h>
#include <stdio.h>

#include "client/client.h"
#include "client/query.h"
#include "client/verbs.h"
#include "stagecoach/v1/admin.pb-c.h"

static const char *pipeline_state_word(Stagecoach__V1__PipelineState state) {
    switch (state) {
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_WAITING:
        return "waiting";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_LOADING:
        return "loading";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_CONNECTING:
        return "connecting";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING:
        return "running";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_DRAINING:
        return "draining";
    default:
        return "unknown";
    }
}

static const char *stage_state_word(Stagecoach__V1__StageState state) {
    switch (state) {
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_JOINED:
        return "joined";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADING:
        return "loading";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADED:
        return "loaded";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_CONNECTING:
        return "connecting";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_RUNNING:
        return "running";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_FAILED:
        return "failed";
    default:
        return "unknown";
    }
}

static void print_stage(const Stagecoach__V1__Stage *stage) {
    char index[16] = "-", layers[32] = "-", loaded[16] = "";
    if (stage->layer_count != 0) {
        snprintf(index, sizeof(index), "%u", stage->stage_index);
        snprintf(layers, sizeof(layers), "%u-%u", stage->layer_first,
                 stage->layer_first + stage->layer_count - 1);
    }
    if (stage->state == STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADING &&
        stage->load_bytes_total != 0)
        snprintf(loaded, sizeof(loaded), " %.0f%%",
                 100.0 * (double)stage->load_bytes_done / (double)stage->load_bytes_total);
    printf("%-5s  %-16s  %-10s  %-7s  %8.1f MB  %8.1f MB  %8.1f MB  %-9s  %7u  %s%s\n", index,
           stage->name, stage_state_word(stage->state), layers, (double)stage->weight_bytes / 1e6,
           (double)stage->mapped_bytes / 1e6, (double)stage->kv_bytes / 1e6, stage->kernel_variant,
           stage->thread_count, stage->data_address, loaded);
    if (stage->error[0] != '\0') printf("       error: %s\n", stage->error);
}

static int print_table(const ProtobufCMessage *response) {
    const Stagecoach__V1__Pipeline *pipeline = (const Stagecoach__V1__Pipeline *)response;
    bool is_running = pipeline->state == STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING;
    printf("model %s: %s, epoch %" PRIu64 "%s%s\n", pipeline->model_name,
           pipeline_state_word(pipeline->state), pipeline->epoch, is_running ? "" : ": ",
           is_running ? "" : pipeline->explanation);
    printf("stages %zu of %u, requests %u running and %u waiting, KV blocks %u of %u used\n",
           pipeline->n_stages, pipeline->stage_count, pipeline->request_running_count,
           pipeline->request_waiting_count, pipeline->kv_block_used_count,
           pipeline->kv_block_count);
    printf("done %" PRIu64 " requests, failed %" PRIu64 ", tokens %" PRIu64 " in and %" PRIu64
           " out, steps %" PRIu64 ", replays %" PRIu64 "\n\n",
           pipeline->request_done_count, pipeline->request_failed_count,
           pipeline->prompt_token_count, pipeline->completion_token_count, pipeline->step_count,
           pipeline->replay_count);
    printf("%-5s  %-16s  %-10s  %-7s  %11s  %11s  %11s  %-9s  %7s  %s\n", "stage", "name", "state",
           "layers", "weights", "mapped", "KV memory", "kernels", "threads", "data address");
    for (size_t i = 0; i < pipeline->n_stages; i++)
        print_stage(pipeline->stages[i]);
    return client_finish_output();
}

int verb_status(int argc, char **argv) {
    Stagecoach__V1__GetPipelineRequest request = STAGECOACH__V1__GET_PIPELINE_REQUEST__INIT;
    const struct query query = {
        .program = "stagecoach status",
        .purpose = "shows the pipeline, its stages and their layers.",
        .service = &stagecoach__v1__admin__descriptor,
        .method = "GetPipeline",
        .request = &request.base,
        .print_table = print_table,
    };
    return query_run(&query, argc, argv);
}
