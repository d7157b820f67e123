// vllm_tokenizer: the files that a model's tokenizer is made from, as VllmEngine/GetTokenizer gives
// them.
#pragma once

#include "coordinator/archive.h"
#include "transport/rpc.h"

enum { SHA256_TEXT_BYTES = 65 };

struct vllm_tokenizer {
    struct archive archive;         // empty: there is none, see explanation
    char sha256[SHA256_TEXT_BYTES]; // of the archive, in hexadecimal
    struct error explanation;
};

// Reads the files once: what is sent later is what this process works with. A model whose files
// cannot be sent is not a failure of the service: calls are answered with the explanation.
void vllm_tokenizer_init(struct vllm_tokenizer *tokenizer, const char *model_path);
void vllm_tokenizer_fini(struct vllm_tokenizer *tokenizer);

// Sends pieces from *offset_bytes on, as long as the call has room, and ends it after the last one.
// Call again when the call is writable.
void vllm_tokenizer_send(const struct vllm_tokenizer *tokenizer, struct rpc_call *call,
                         size_t *offset_bytes);
