// model_config: what a model is, read from config.json and generation_config.json of a Hugging Face
// directory. Coordinator and stages read the same files and compare digests, so that they agree.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/limits.h"
#include "base/status.h"

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct rope_config {
    enum rope_kind kind;
    double theta;
    double factor;                    // LINEAR, LLAMA3
    double low_freq_factor;           // LLAMA3
    double high_freq_factor;          // LLAMA3
    uint32_t original_position_count; // LLAMA3: original_max_position_embeddings
};

struct model_config {
    char architecture[64]; // "LlamaForCausalLM"
    uint32_t layer_count;
    uint32_t hidden_size;
    uint32_t head_count;
    uint32_t kv_head_count; // divides head_count
    uint32_t head_size;     // even; head_dim, or hidden_size / head_count
    uint32_t ffn_size;
    uint32_t vocabulary_size;
    uint32_t position_count_max;
    double rms_norm_epsilon;
    bool tied_embeddings;
    bool attention_bias; // on q, k, v and o
    bool mlp_bias;       // on gate, up and down
    struct rope_config rope;
    enum dtype dtype; // as config.json says; tensors may differ; DTYPE_NONE when absent
    uint32_t eos_ids[MODEL_EOS_COUNT_MAX];
    uint32_t eos_count;
    uint64_t digest; // FNV-1a 64 of the bytes of config.json
};

// Reads DIR/config.json, and DIR/generation_config.json if it is there (its eos_token_id wins).
// STATUS_NOT_FOUND, STATUS_IO, STATUS_INVALID (field, value and limit named), STATUS_UNSUPPORTED
// (an architecture or feature that we do not compute, named), STATUS_NO_MEMORY.
//
// Architectures: LlamaForCausalLM, and MistralForCausalLM where its sliding window is off or as
// long as the context, since it then computes the same. Field names and defaults are those of
// LlamaConfig and MistralConfig in Hugging Face transformers 4 and 5: `rope_parameters`, or the
// older `rope_theta` and `rope_scaling`; `dtype`, or the older `torch_dtype`.
MUST_USE enum status model_config_read(const char *directory, struct model_config *config_out,
                                       struct error *error);

// config.json alone, from text in memory.
MUST_USE enum status model_config_parse(const char *text, size_t size_bytes,
                                        struct model_config *config_out, struct error *error);

// The text of generation_config.json: replaces the eos_ids unless its eos_token_id is absent or
// null.
MUST_USE enum status model_config_apply_generation(struct model_config *config, const char *text,
                                                   size_t size_bytes, struct error *error);

// Parameters of one layer, of the embedding (and of an untied head, the same), for planning.
uint64_t model_layer_parameter_count(const struct model_config *config);
uint64_t model_embedding_parameter_count(const struct model_config *config);
// Keys and values of one position of one layer, in elements.
uint64_t model_kv_element_count(const struct model_config *config);
