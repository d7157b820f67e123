// vllm: the service vllm.grpc.engine.VllmEngine, by which gateways call a vLLM engine. Its Generate
// is another way to the requests of Inference; the rest tells gateways what they ask of an engine.
#pragma once

#include "coordinator/frontend.h"
#include "coordinator/vllm_model.h"
#include "coordinator/vllm_tokenizer.h"

struct vllm_config {
    struct frontend *frontend; // borrowed
    struct vllm_model_config model;
    uint32_t running_count_max; // answers that may run at once
};

struct vllm {
    struct frontend *frontend;
    struct vllm_model model;
    struct vllm_tokenizer tokenizer;
    uint32_t running_count_max;
    uint64_t opened_ns;
    double generate_seconds; // since 1970: when the last Generate began; 0: none yet
};

// Reads what it tells of the model.
void vllm_open(struct vllm *vllm, const struct vllm_config *config);
void vllm_close(struct vllm *vllm); // after rpc_close; one that is all zeros is allowed
// Adds the service to `rpc`; `vllm` is borrowed until rpc_close.
MUST_USE enum status vllm_serve(struct vllm *vllm, struct rpc *rpc, struct error *error);
