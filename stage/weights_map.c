#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "stage/weights_internal.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 // Linux 5.14
#endif

// -- where the tensors are ------------------------------------------------------------------------

static enum status check_tensor(const struct weights_loader *loader,
                                const struct wanted_tensor *wanted,
                                const struct safetensors_tensor *found) {
    if (found->dtype == DTYPE_NONE)
        return error_set(loader->error, STATUS_UNSUPPORTED,
                         "tensor %s has dtype %s; F32, BF16 and F16 are supported", wanted->name,
                         found->dtype_name);
    uint64_t dimensions[2] = {wanted->row_count, wanted->column_count};
    uint32_t first = wanted->row_count == 0 ? 1 : 0;
    uint32_t count = 2 - first;
    if (found->dimension_count != count ||
        memcmp(found->dimensions, dimensions + first, count * sizeof(dimensions[0])) != 0) {
        char has[200], needs[64];
        safetensors_shape_write(found->dimension_count, found->dimensions, has, sizeof(has));
        safetensors_shape_write(count, dimensions + first, needs, sizeof(needs));
        return error_set(loader->error, STATUS_INVALID,
                         "tensor %s has shape %s, config.json asks for %s", wanted->name, has,
                         needs);
    }
    if (found->file_offset % dtype_size_bytes(found->dtype) != 0)
        return error_set(loader->error, STATUS_UNSUPPORTED,
                         "tensor %s starts at byte %" PRIu64 ", not a multiple of its %zu-byte "
                         "elements: write the file again with an aligned header",
                         wanted->name, found->file_offset, dtype_size_bytes(found->dtype));
    return STATUS_OK;
}

static enum status locate(struct weights_loader *loader, struct wanted_tensor *wanted) {
    const struct checkpoint *checkpoint = &loader->checkpoint;
    const struct safetensors_tensor *found;
    enum status status = checkpoint_find(&loader->checkpoint, wanted->name, &wanted->shard_index,
                                         &found, loader->error);
    if (status != STATUS_OK) return status;
    status = check_tensor(loader, wanted, found);
    if (status != STATUS_OK) {
        error_prefix(loader->error, "%.200s/%s", checkpoint->directory,
                     checkpoint->shards[wanted->shard_index].file_name);
        return status;
    }
    wanted->offset_bytes = found->file_offset;
    wanted->size_bytes = found->size_bytes;
    weights_fill_slot(loader, wanted, found->dtype);
    return STATUS_OK;
}

// -- mapping --------------------------------------------------------------------------------------

static int compare_places(const void *a, const void *b) {
    const struct wanted_tensor *x = a, *y = b;
    if (x->shard_index != y->shard_index) return x->shard_index < y->shard_index ? -1 : 1;
    return (x->offset_bytes > y->offset_bytes) - (x->offset_bytes < y->offset_bytes);
}

// How many tensors from `first` on lie on the same or adjoining pages of one file.
static uint32_t run_length(const struct weights_loader *loader, uint32_t first, uint64_t page_bytes,
                           uint64_t *end_out) {
    const struct wanted_tensor *wanted = &loader->wanted[first];
    uint32_t count = 0;
    uint64_t end = 0;
    do {
        end = wanted[count].offset_bytes + wanted[count].size_bytes;
        end = (end + page_bytes - 1) & ~(page_bytes - 1);
        count++;
    } while (first + count < loader->wanted_count &&
             wanted[count].shard_index == wanted[0].shard_index &&
             wanted[count].offset_bytes <= end);
    *end_out = end;
    return count;
}

static enum status map_run(struct weights_loader *loader, uint32_t first, uint64_t page_bytes,
                           uint32_t *count_out) {
    struct weights_owner *owner = loader->owner;
    uint64_t begin = loader->wanted[first].offset_bytes & ~(page_bytes - 1), end;
    uint32_t count = run_length(loader, first, page_bytes, &end);
    uint32_t shard_index = loader->wanted[first].shard_index;
    const struct checkpoint_shard *shard = &loader->checkpoint.shards[shard_index];
    void *address = mmap(NULL, end - begin, PROT_READ, MAP_SHARED, shard->fd, (off_t)begin);
    if (address == MAP_FAILED)
        return error_set(loader->error, errno == ENOMEM ? STATUS_NO_MEMORY : STATUS_IO,
                         "%.200s/%s: mapping %" PRIu64 " bytes for tensor %s: %s",
                         loader->checkpoint.directory, shard->file_name, end - begin,
                         loader->wanted[first].name, strerror(errno));
    owner->mappings[owner->mapping_count++] =
        (struct weights_mapping){address, end - begin, shard_index};
    owner->weights.mapped_bytes += end - begin;
    for (uint32_t i = first; i < first + count; i++)
        loader->wanted[i].slot->data =
            (const char *)address + (loader->wanted[i].offset_bytes - begin);
    *count_out = count;
    return STATUS_OK;
}

static enum status map_all(struct weights_loader *loader) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    struct weights_owner *owner = loader->owner;
    qsort(loader->wanted, loader->wanted_count, sizeof(loader->wanted[0]), compare_places);
    owner->mappings = memory_array(loader->wanted_count, sizeof(owner->mappings[0]));
    if (owner->mappings == NULL)
        return error_set(loader->error, STATUS_NO_MEMORY, "no memory for %" PRIu32 " mappings",
                         loader->wanted_count);
    uint32_t count = 0;
    for (uint32_t i = 0; i < loader->wanted_count; i += count) {
        enum status status = map_run(loader, i, page_bytes, &count);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

// -- reading --------------------------------------------------------------------------------------

// Brings pages into memory and into the page tables. 0 or an errno; a file that became shorter, or
// a bad disk, is EFAULT, where touching the pages would be SIGBUS.
static int pages_read(char *address, size_t size_bytes) {
    while (madvise(address, size_bytes, MADV_POPULATE_READ) != 0) {
        if (errno == EINTR) continue;
        if (errno != EINVAL) return errno;
        size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE); // an older kernel: touch them
        for (size_t i = 0; i < size_bytes; i += page_bytes)
            (void)*(volatile char *)(address + i);
        return 0;
    }
    return 0;
}

// Starts reading the next piece from disk while the current one is waited for.
static void pages_announce(const struct weights_mapping *mapping, size_t offset) {
    if (offset >= mapping->size_bytes) return;
    size_t left = mapping->size_bytes - offset;
    size_t step = left < WEIGHTS_READ_STEP_BYTES ? left : WEIGHTS_READ_STEP_BYTES;
    (void)madvise(mapping->address + offset, step, MADV_WILLNEED); // only a hint
}

static enum status mapping_read(const struct weights_loader *loader,
                                const struct weights_mapping *mapping, uint64_t *done_bytes) {
    pages_announce(mapping, 0);
    size_t step;
    for (size_t offset = 0; offset < mapping->size_bytes; offset += step) {
        size_t left = mapping->size_bytes - offset;
        step = left < WEIGHTS_READ_STEP_BYTES ? left : WEIGHTS_READ_STEP_BYTES;
        pages_announce(mapping, offset + step);
        int failure = pages_read(mapping->address + offset, step);
        if (failure != 0)
            return error_set(loader->error, STATUS_IO, "%.200s/%s: reading weights: %s",
                             loader->checkpoint.directory,
                             loader->checkpoint.shards[mapping->shard_index].file_name,
                             failure == EFAULT ? "it became shorter, or the disk failed"
                                               : strerror(failure));
        *done_bytes += step;
        enum status status = weights_progressed(loader, *done_bytes);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static enum status read_all(const struct weights_loader *loader) {
    const struct weights_owner *owner = loader->owner;
    uint64_t done_bytes = 0;
    enum status status = weights_progressed(loader, 0);
    for (uint32_t i = 0; i < owner->mapping_count && status == STATUS_OK; i++)
        status = mapping_read(loader, &owner->mappings[i], &done_bytes);
    return status;
}

enum status weights_map(struct weights_loader *loader) {
    enum status status = checkpoint_open(&loader->checkpoint, loader->error);
    for (uint32_t i = 0; i < loader->wanted_count && status == STATUS_OK; i++)
        status = locate(loader, &loader->wanted[i]);
    if (status == STATUS_OK) status = map_all(loader);
    if (status == STATUS_OK) status = read_all(loader);
    checkpoint_close(&loader->checkpoint);
    return status;
}
