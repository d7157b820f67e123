// vllm_query: calls of VllmEngine that only the loop can answer (EVENT_VLLM_ASKED).
#pragma once

#include "stagecoach/v1/admin.pb-c.h"
#include "transport/rpc.h"

enum vllm_question { VLLM_HEALTH, VLLM_SERVER, VLLM_LOADS, VLLM_ABORT };

// Made by the rpc thread, then the loop's.
struct vllm_query {
    enum vllm_question question;
    struct rpc_call *call; // one reference
    uint32_t running_count_max;
    double uptime_seconds, generate_seconds; // as in struct vllm
    char **request_ids;                      // VLLM_ABORT: sorted
    size_t request_id_count;
};

// Copies the ids. STATUS_NO_MEMORY: fail the query.
MUST_USE enum status vllm_query_set_ids(struct vllm_query *query, char *const *ids,
                                        size_t id_count);
// Whether it is about this request.
bool vllm_query_has_id(const struct vllm_query *query, const char *request_id);

// Both end the call and free the query: with an answer, or RESOURCE_EXHAUSTED.
void vllm_query_answer(struct vllm_query *query, const Stagecoach__V1__Pipeline *pipeline);
void vllm_query_fail(struct vllm_query *query, const char *reason);
