// rpc_metadata: the metadata of calls, as received and as it goes out.
#pragma once

#include <stddef.h>

#include <grpc/grpc.h>

#include "base/status.h"
#include "transport/rpc.h"

// Copies of received entries. Texts that hold a NUL are left out.
struct rpc_texts;

// NULL when there is nothing to copy, or no memory for it; rpc_texts_free it.
struct rpc_texts *rpc_texts_copy(const grpc_metadata_array *received);
void rpc_texts_free(struct rpc_texts *texts); // NULL allowed
// The first value of `key`, which is in lower case; NULL: none. `texts` may be NULL.
const char *rpc_texts_find(const struct rpc_texts *texts, const char *key);
// The same for keys that end in "-bin"; the first finds none of these, the second no others.
const void *rpc_texts_find_bytes(const struct rpc_texts *texts, const char *key,
                                 size_t *size_bytes_out);

// Appends copies to what is to be sent; nothing is appended on failure. STATUS_INVALID: a key is
// not lower-case text, or the value of one that does not end in "-bin" is not printable ASCII.
// STATUS_EXHAUSTED beyond RPC_METADATA_COUNT_MAX.
MUST_USE enum status rpc_metadata_append(grpc_metadata_array *array,
                                         const struct rpc_metadata *entries, size_t entry_count);
// Appends one entry beyond the limit of these; takes `value`. `key` must live on.
void rpc_metadata_take(grpc_metadata_array *array, const char *key, grpc_slice value);
// Releases the entries of an array made by these, and the array.
void rpc_metadata_fini(grpc_metadata_array *array);
