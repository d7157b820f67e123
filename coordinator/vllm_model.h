// vllm_model: what VllmEngine/GetModelInfo says of a model.
#pragma once

#include "proto/model_config.h"
#include "vllm/vllm_engine.pb-c.h"

struct vllm_model_config {
    const struct model_config *model;
    const char *path;            // the model's folder
    const char *name;            // as clients know it
    bool has_tokenizer;          // a tokenizer.json
    uint32_t position_count_max; // prompt and completion together
};

struct vllm_model {
    Vllm__Grpc__Engine__GetModelInfoResponse message; // borrows what the config points to
    char *architectures[1];
    int32_t eos_ids[MODEL_EOS_COUNT_MAX];
    char model_type[64];
    char sampling_json[512]; // "" or one object
};

// Reads the folder's config.json and generation_config.json again for what only gateways want to
// know. Both were valid JSON when the model was read; what is not there, or of another type, is
// left out. `model` must stay where it is.
void vllm_model_init(struct vllm_model *model, const struct vllm_model_config *config);
