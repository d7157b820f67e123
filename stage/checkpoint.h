// checkpoint: the safetensors files of a Hugging Face directory, one or the shards that an index
// names. A file is opened when the first tensor in it is asked for.
#pragma once

#include "stage/safetensors.h"

struct checkpoint_shard {
    char *file_name;
    int fd;
    struct safetensors *header;
};

// Initialise with the directory alone; it is borrowed until checkpoint_close().
struct checkpoint {
    const char *directory;
    struct json_t *index; // NULL when there is only one file
    struct checkpoint_shard *shards;
    uint32_t shard_count;
};

// STATUS_NOT_FOUND: neither model.safetensors nor model.safetensors.index.json is there.
// STATUS_INVALID, STATUS_IO, STATUS_NO_MEMORY; the sentence names the file.
MUST_USE enum status checkpoint_open(struct checkpoint *checkpoint, struct error *error);
// Also after a failed checkpoint_open().
void checkpoint_close(struct checkpoint *checkpoint);

// The tensor and the shard that holds it; borrowed from the shard's header.
// STATUS_INVALID: no file holds it, or the index names a path; the failures of safetensors_open().
MUST_USE enum status checkpoint_find(struct checkpoint *checkpoint, const char *tensor_name,
                                     uint32_t *shard_index_out,
                                     const struct safetensors_tensor **tensor_out,
                                     struct error *error);
