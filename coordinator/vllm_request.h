// vllm_request: a request of VllmEngine/Generate, told to request.h in the words of
// Inference/Generate.
#pragma once

#include "coordinator/request.h"
#include "vllm/vllm_engine.pb-c.h"

// As request_open(), for a message of VllmEngine/Generate; sentences name its fields.
// STATUS_INVALID also for a field that asks for what is not done here.
MUST_USE enum status vllm_request_open(const struct request_rules *rules,
                                       const Vllm__Grpc__Engine__GenerateRequest *message,
                                       uint64_t arrived_ns, struct request **request_out,
                                       struct error *error);
