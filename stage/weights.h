// weights: the tensors of a layer range, mapped straight from a model's safetensors files, or made
// up where only speed or shape matters. Only the pages of these tensors are mapped and read.
// Format: https://github.com/huggingface/safetensors (header of at most 100 MB, no overlaps).
//
// The files must not be shortened while they are mapped: after weights_open() the operating system
// answers a read beyond the new end with SIGBUS. Replace a checkpoint by renaming new files over
// the old names, which leaves the mapped ones whole. Shortening during weights_open() is an error.
#pragma once

#include <stdint.h>

#include "proto/model_config.h"
#include "proto/weight_format.h"

// A matrix as the checkpoint stores it, row-major (rows = outputs, columns = inputs); a vector has
// one row. data is NULL for a tensor that the model does not have, such as a bias. Not necessarily
// aligned beyond its element size. Each tensor has its own dtype, not always the configuration's.
struct tensor {
    const void *data;
    enum dtype dtype;
    uint32_t row_count;
    uint32_t column_count;
};

struct layer_weights {
    struct tensor attention_norm; // (hidden)
    struct tensor q, k, v;        // (heads * head_size, hidden), kv_heads for k and v
    struct tensor q_bias, k_bias, v_bias;
    struct tensor o, o_bias; // (hidden, heads * head_size)
    struct tensor ffn_norm;  // (hidden)
    struct tensor gate, up;  // (ffn, hidden)
    struct tensor gate_bias, up_bias;
    struct tensor down, down_bias; // (hidden, ffn)
};

struct weights {
    uint32_t layer_first;
    uint32_t layer_count;
    struct layer_weights *layers; // layer_count of them
    struct tensor embedding;      // (vocabulary, hidden); first stage only
    struct tensor final_norm;     // (hidden); last stage only
    struct tensor head;           // (vocabulary, hidden); last stage only; the embedding when tied
    uint64_t weight_bytes;        // of these tensors, the shared embedding counted once
    uint64_t mapped_bytes;        // whole pages mapped from the files, or made up
};

struct weights_source {
    const char *directory; // of the checkpoint; not used by LOAD_FORMAT_DUMMY
    enum load_format load_format;
};

struct weights_range {
    uint32_t layer_first;
    uint32_t layer_count;
    bool is_first; // needs the embedding
    bool is_last;  // needs the final norm and the head
};

// Called now and then while pages are read or made up, on the calling thread: first with 0 bytes
// done, at last with all; bytes_total is mapped_bytes. Return false to give up (STATUS_CANCELLED).
typedef bool weights_progress_fn(void *ctx, uint64_t bytes_done, uint64_t bytes_total);

// LOAD_FORMAT_SAFETENSORS: reads DIR/model.safetensors, or the shards named by
// DIR/model.safetensors.index.json that hold tensors of the range; checks name, dtype, shape and
// offsets of each tensor; maps and reads them.
//
// LOAD_FORMAT_DUMMY: makes the tensors in memory, in the configuration's dtype (bf16 when it names
// none). Norms are 1; the rest is random around 0, scaled so that activations and logits stay near
// 1 at every depth and width. A value depends on nothing but the configuration, the tensor's name
// and the element's index: so neither on the range nor on the machine.
//
// When it returns, all pages are in memory and in the page tables. `progress` may be NULL.
// STATUS_NOT_FOUND (a file), STATUS_IO, STATUS_INVALID (also a missing tensor), STATUS_UNSUPPORTED
// (dtype, or bytes not aligned to their element), STATUS_NO_MEMORY, STATUS_CANCELLED; the sentence
// names the file and the tensor.
MUST_USE enum status weights_open(const struct weights_source *source,
                                  const struct model_config *config,
                                  const struct weights_range *range, weights_progress_fn *progress,
                                  void *progress_ctx, struct weights **weights_out,
                                  struct error *error);
void weights_close(struct weights *weights); // NULL allowed

// The bytes of the tensor are not read again: gives the whole pages among them back.
void weights_give_back(const struct tensor *tensor);
