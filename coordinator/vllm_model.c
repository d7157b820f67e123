#include "coordinator/vllm_model.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

// NULL: there is none, or it is no JSON object.
static json_t *load_object(const char *folder, const char *name) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path)) return NULL;
    char *text;
    size_t size_bytes;
    struct error error;
    if (file_read(path, MODEL_CONFIG_BYTES_MAX, &text, &size_bytes, &error) != STATUS_OK)
        return NULL;
    json_t *root = json_loadb(text, size_bytes, 0, NULL);
    free(text);
    if (json_is_object(root)) return root;
    json_decref(root);
    return NULL;
}

// Token ids that are no single number are not told: 0, as gateways expect.
static int32_t read_token_id(const json_t *config, const char *key) {
    const json_t *value = json_object_get(config, key);
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : 0;
    return id >= 0 && id <= INT32_MAX ? (int32_t)id : 0;
}

static void read_config(struct vllm_model *model, const char *folder) {
    json_t *config = load_object(folder, "config.json");
    const char *type = json_string_value(json_object_get(config, "model_type"));
    snprintf(model->model_type, sizeof(model->model_type), "%s", type != NULL ? type : "");
    model->message.pad_token_id = read_token_id(config, "pad_token_id");
    model->message.bos_token_id = read_token_id(config, "bos_token_id");
    json_decref(config);
}

static void read_sampling(struct vllm_model *model, const char *folder) {
    static const char *const keys[] = {"temperature", "top_p", "top_k", "min_p",
                                       "repetition_penalty"};
    json_t *config = load_object(folder, "generation_config.json");
    json_t *sampling = json_object();
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        json_t *value = json_object_get(config, keys[i]);
        if (json_is_number(value)) (void)json_object_set(sampling, keys[i], value);
    }
    if (json_object_size(sampling) > 0) {
        size_t size_bytes =
            json_dumpb(sampling, model->sampling_json, sizeof(model->sampling_json) - 1,
                       JSON_COMPACT | JSON_REAL_PRECISION(9));
        if (size_bytes >= sizeof(model->sampling_json)) size_bytes = 0;
        model->sampling_json[size_bytes] = '\0';
    }
    json_decref(sampling);
    json_decref(config);
}

void vllm_model_init(struct vllm_model *model, const struct vllm_model_config *config) {
    const struct model_config *c = config->model;
    *model = (struct vllm_model){.architectures = {(char *)c->architecture}};
    Vllm__Grpc__Engine__GetModelInfoResponse *m = &model->message;
    vllm__grpc__engine__get_model_info_response__init(m);
    read_config(model, config->path);
    read_sampling(model, config->path);
    for (uint32_t i = 0; i < c->eos_count; i++)
        model->eos_ids[i] = (int32_t)c->eos_ids[i];
    m->model_path = (char *)config->path;
    m->is_generation = true;
    m->max_context_length = config->position_count_max;
    m->max_req_input_len = (int32_t)config->position_count_max - 1;
    m->vocab_size = c->vocabulary_size;
    m->served_model_name = (char *)config->name;
    if (config->has_tokenizer) m->tokenizer_path = (char *)config->path;
    m->model_type = model->model_type;
    m->n_architectures = 1;
    m->architectures = model->architectures;
    m->n_eos_token_ids = c->eos_count;
    m->eos_token_ids = model->eos_ids;
    m->default_sampling_params_json = model->sampling_json;
}
