#include "coordinator/vllm_query.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "base/memory.h"
#include "vllm/vllm_engine.pb-c.h"

static void free_query(struct vllm_query *query) {
    for (size_t i = 0; i < query->request_id_count; i++)
        free(query->request_ids[i]);
    free(query->request_ids);
    rpc_call_release(query->call);
    free(query);
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum status vllm_query_set_ids(struct vllm_query *query, char *const *ids, size_t id_count) {
    query->request_ids = memory_array(id_count, sizeof(*query->request_ids));
    if (query->request_ids == NULL) return STATUS_NO_MEMORY;
    for (size_t i = 0; i < id_count; i++) {
        query->request_ids[i] = strdup(ids[i]);
        if (query->request_ids[i] == NULL) return STATUS_NO_MEMORY;
        query->request_id_count++;
    }
    qsort(query->request_ids, query->request_id_count, sizeof(*query->request_ids), by_text);
    return STATUS_OK;
}

bool vllm_query_has_id(const struct vllm_query *query, const char *request_id) {
    return bsearch(&request_id, query->request_ids, query->request_id_count,
                   sizeof(*query->request_ids), by_text) != NULL;
}

void vllm_query_fail(struct vllm_query *query, const char *reason) {
    rpc_call_end(query->call, RPC_RESOURCE_EXHAUSTED, reason);
    free_query(query);
}

// -- answers --------------------------------------------------------------------------------------

static bool is_running(const Stagecoach__V1__Pipeline *pipeline) {
    return pipeline->state == STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING;
}

static bool is_draining(const Stagecoach__V1__Pipeline *pipeline) {
    return pipeline->state == STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_DRAINING;
}

static bool send_health(struct vllm_query *query, const Stagecoach__V1__Pipeline *pipeline) {
    Vllm__Grpc__Engine__HealthCheckResponse out = VLLM__GRPC__ENGINE__HEALTH_CHECK_RESPONSE__INIT;
    out.healthy = is_running(pipeline);
    out.message = is_draining(pipeline) ? "draining" : pipeline->explanation;
    return rpc_call_send(query->call, &out.base);
}

static int32_t clamp(uint64_t count) {
    return count < INT32_MAX ? (int32_t)count : INT32_MAX;
}

static bool send_server(struct vllm_query *query, const Stagecoach__V1__Pipeline *pipeline) {
    Vllm__Grpc__Engine__GetServerInfoResponse out =
        VLLM__GRPC__ENGINE__GET_SERVER_INFO_RESPONSE__INIT;
    out.active_requests = pipeline->request_running_count + pipeline->request_waiting_count;
    out.is_paused = is_draining(pipeline);
    out.last_receive_timestamp = query->generate_seconds;
    out.uptime_seconds = query->uptime_seconds;
    out.server_type = "stagecoach";
    out.data_parallel_size = 1;
    out.block_size = KV_BLOCK_POSITION_COUNT;
    out.max_num_seqs = clamp(query->running_count_max);
    return rpc_call_send(query->call, &out.base);
}

static double ratio(uint64_t part, uint64_t whole) {
    return whole > 0 ? (double)part / (double)whole : 0;
}

static void write_load(const struct vllm_query *query, const Stagecoach__V1__Pipeline *pipeline,
                       Vllm__Grpc__Engine__SchedulerLoad *load) {
    uint32_t running_count = pipeline->request_running_count;
    vllm__grpc__engine__scheduler_load__init(load);
    load->num_running_reqs = clamp(running_count);
    load->num_waiting_reqs = clamp(pipeline->request_waiting_count);
    load->num_total_reqs = clamp((uint64_t)running_count + pipeline->request_waiting_count);
    load->num_used_tokens =
        clamp((uint64_t)pipeline->kv_block_used_count * KV_BLOCK_POSITION_COUNT);
    load->max_total_num_tokens =
        clamp((uint64_t)pipeline->kv_block_count * KV_BLOCK_POSITION_COUNT);
    load->token_usage = ratio(pipeline->kv_block_used_count, pipeline->kv_block_count);
    load->gen_throughput = pipeline->completion_tokens_per_second;
    load->cache_hit_rate = ratio(pipeline->prefix_hit_token_count, pipeline->prefix_token_count);
    load->max_running_requests = clamp(query->running_count_max);
    double busy = ratio(running_count, query->running_count_max);
    load->utilization = busy > load->token_usage ? busy : load->token_usage;
}

static bool send_loads(struct vllm_query *query, const Stagecoach__V1__Pipeline *pipeline) {
    char text[32];
    time_t now = time(NULL);
    struct tm utc;
    (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    Vllm__Grpc__Engine__SchedulerLoad load, *loads[1] = {&load};
    write_load(query, pipeline, &load);
    Vllm__Grpc__Engine__GetLoadsResponse out = VLLM__GRPC__ENGINE__GET_LOADS_RESPONSE__INIT;
    out.timestamp = text;
    out.version = (char *)STAGECOACH_VERSION;
    out.dp_rank_count = 1;
    out.n_loads = 1;
    out.loads = loads;
    return rpc_call_send(query->call, &out.base);
}

static bool send_aborted(struct vllm_query *query) {
    const Vllm__Grpc__Engine__AbortResponse out = VLLM__GRPC__ENGINE__ABORT_RESPONSE__INIT;
    return rpc_call_send(query->call, &out.base);
}

static bool send_answer(struct vllm_query *query, const Stagecoach__V1__Pipeline *pipeline) {
    switch (query->question) {
    case VLLM_HEALTH:
        return send_health(query, pipeline);
    case VLLM_SERVER:
        return send_server(query, pipeline);
    case VLLM_LOADS:
        return send_loads(query, pipeline);
    case VLLM_ABORT:
        break;
    }
    return send_aborted(query);
}

void vllm_query_answer(struct vllm_query *query, const Stagecoach__V1__Pipeline *pipeline) {
    if (send_answer(query, pipeline)) rpc_call_end(query->call, RPC_OK, "");
    free_query(query);
}
