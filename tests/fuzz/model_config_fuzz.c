// Any bytes as config.json and as generation_config.json: a configuration within the limits, or a
// sentence.
#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "proto/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes);

static void check_within_limits(const struct model_config *config) {
    CHECK(config->layer_count >= 1 && config->layer_count <= MODEL_LAYER_COUNT_MAX);
    CHECK(config->hidden_size >= 1 && config->hidden_size <= MODEL_HIDDEN_SIZE_MAX);
    CHECK(config->head_count >= 1 && config->head_count <= MODEL_HEAD_COUNT_MAX);
    CHECK(config->kv_head_count >= 1 && config->head_count % config->kv_head_count == 0);
    CHECK(config->head_size >= 2 && config->head_size <= MODEL_HEAD_SIZE_MAX);
    CHECK(config->head_size % 2 == 0);
    CHECK(config->ffn_size >= 1 && config->ffn_size <= MODEL_FFN_SIZE_MAX);
    CHECK(config->vocabulary_size >= 1 && config->vocabulary_size <= MODEL_VOCABULARY_SIZE_MAX);
    CHECK(config->position_count_max >= 1);
    CHECK(config->position_count_max <= MODEL_POSITION_COUNT_MAX);
    CHECK(config->rms_norm_epsilon > 0 && config->rms_norm_epsilon <= 1);
    CHECK(config->rope.theta >= 1 && config->rope.factor >= 1);
    if (config->rope.kind == ROPE_LLAMA3)
        CHECK(config->rope.high_freq_factor > config->rope.low_freq_factor);
    CHECK(config->eos_count <= MODEL_EOS_COUNT_MAX);
    for (uint32_t i = 0; i < config->eos_count; i++)
        CHECK(config->eos_ids[i] < config->vocabulary_size);
    CHECK(memchr(config->architecture, '\0', sizeof(config->architecture)) != NULL);
    CHECK(model_layer_parameter_count(config) > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes) {
    const char *text = (const char *)data;
    struct model_config config = {.vocabulary_size = 1000};
    struct error error = {.text = ""};
    enum status status = model_config_apply_generation(&config, text, size_bytes, &error);
    CHECK((status == STATUS_OK) == (error.text[0] == '\0'));
    CHECK(config.eos_count <= MODEL_EOS_COUNT_MAX);
    error.text[0] = '\0';
    status = model_config_parse(text, size_bytes, &config, &error);
    CHECK((status == STATUS_OK) == (error.text[0] == '\0'));
    CHECK(strlen(error.text) < sizeof(error.text));
    if (status == STATUS_OK) check_within_limits(&config);
    return 0;
}
