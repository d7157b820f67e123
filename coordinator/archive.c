#include "coordinator/archive.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    VERSION_DEFLATE = 20, // 2.0: the first that knows deflate
    NAMES_UTF8 = 1 << 11, // general purpose flag
    METHOD_DEFLATE = 8,
    DATE_FIRST = 1 << 5 | 1, // 1 January 1980, in MS-DOS's form; 0 is no date
    HEADER_BYTES_MAX = 46,   // a directory entry without its name
};

// A header under construction; all numbers are little endian.
struct header {
    uint8_t bytes[HEADER_BYTES_MAX];
    size_t size_bytes;
};

static void put(struct header *header, uint32_t value, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes; i++)
        header->bytes[header->size_bytes++] = (uint8_t)(value >> (8 * i));
}

struct file {
    const char *name;
    size_t name_bytes;
    uint32_t crc, packed_bytes, plain_bytes, offset_bytes;
};

// What local headers and directory entries have in common, from the version needed on.
static void put_common(struct header *header, const struct file *file) {
    put(header, VERSION_DEFLATE, 2);
    put(header, NAMES_UTF8, 2);
    put(header, METHOD_DEFLATE, 2);
    put(header, 0, 2); // time
    put(header, DATE_FIRST, 2);
    put(header, file->crc, 4);
    put(header, file->packed_bytes, 4);
    put(header, file->plain_bytes, 4);
    put(header, (uint32_t)file->name_bytes, 2);
    put(header, 0, 2); // extra field
}

static enum status append(struct buffer *buffer, const struct header *header,
                          const struct file *file) {
    enum status status = buffer_append(buffer, header->bytes, header->size_bytes);
    return status == STATUS_OK ? buffer_append(buffer, file->name, file->name_bytes) : status;
}

static enum status add_local_header(struct archive *archive, const struct file *file) {
    struct header header = {0};
    put(&header, 0x04034b50, 4);
    put_common(&header, file);
    return append(&archive->bytes, &header, file);
}

static enum status add_directory_entry(struct archive *archive, const struct file *file) {
    struct header header = {0};
    put(&header, 0x02014b50, 4);
    put(&header, VERSION_DEFLATE, 2); // made by
    put_common(&header, file);
    put(&header, 0, 2); // comment
    put(&header, 0, 2); // disk
    put(&header, 0, 2); // internal attributes
    put(&header, 0, 4); // external attributes
    put(&header, file->offset_bytes, 4);
    return append(&archive->directory, &header, file);
}

// Raw deflate of all data at once; *packed_out is the caller's to free.
static enum status deflate_all(const void *data, size_t size_bytes, uint8_t **packed_out,
                               size_t *packed_bytes_out) {
    z_stream stream = {0};
    // Fast, for it is done while the service starts; 15 bits of window, negative: no zlib header.
    if (deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return STATUS_NO_MEMORY;
    size_t capacity_bytes = deflateBound(&stream, size_bytes);
    uint8_t *packed = capacity_bytes <= UINT32_MAX ? malloc(capacity_bytes) : NULL;
    int outcome = Z_MEM_ERROR;
    if (packed != NULL) {
        stream.next_in = (Bytef *)data;
        stream.avail_in = (uInt)size_bytes;
        stream.next_out = packed;
        stream.avail_out = (uInt)capacity_bytes;
        outcome = deflate(&stream, Z_FINISH);
    }
    *packed_bytes_out = stream.total_out;
    (void)deflateEnd(&stream);
    if (outcome != Z_STREAM_END) {
        free(packed);
        return STATUS_NO_MEMORY;
    }
    *packed_out = packed;
    return STATUS_OK;
}

void archive_init(struct archive *archive, size_t limit_bytes) {
    // Offsets and sizes have 32 bits.
    if (limit_bytes > UINT32_MAX) limit_bytes = UINT32_MAX;
    *archive = (struct archive){0};
    buffer_init(&archive->bytes, limit_bytes);
    buffer_init(&archive->directory, limit_bytes);
}

void archive_fini(struct archive *archive) {
    buffer_fini(&archive->bytes);
    buffer_fini(&archive->directory);
}

enum status archive_add(struct archive *archive, const char *name, const void *data,
                        size_t size_bytes) {
    struct file file = {.name = name, .name_bytes = strlen(name)};
    if (file.name_bytes > UINT16_MAX || size_bytes > UINT32_MAX ||
        archive->file_count == UINT16_MAX)
        return STATUS_EXHAUSTED;
    uint8_t *packed;
    size_t packed_bytes;
    enum status status = deflate_all(data, size_bytes, &packed, &packed_bytes);
    if (status != STATUS_OK) return status;
    file.crc = (uint32_t)crc32_z(0, data, size_bytes);
    file.packed_bytes = (uint32_t)packed_bytes;
    file.plain_bytes = (uint32_t)size_bytes;
    file.offset_bytes = (uint32_t)archive->bytes.size_bytes;
    status = add_local_header(archive, &file);
    if (status == STATUS_OK) status = buffer_append(&archive->bytes, packed, packed_bytes);
    if (status == STATUS_OK) status = add_directory_entry(archive, &file);
    free(packed);
    if (status == STATUS_OK) archive->file_count++;
    return status;
}

enum status archive_finish(struct archive *archive) {
    const struct buffer *directory = &archive->directory;
    struct header end = {0};
    put(&end, 0x06054b50, 4);
    put(&end, 0, 2); // disk
    put(&end, 0, 2); // disk of the directory
    put(&end, archive->file_count, 2);
    put(&end, archive->file_count, 2);
    put(&end, (uint32_t)directory->size_bytes, 4);
    put(&end, (uint32_t)archive->bytes.size_bytes, 4);
    put(&end, 0, 2); // comment
    enum status status = STATUS_OK;
    if (directory->size_bytes > 0)
        status = buffer_append(&archive->bytes, directory->data, directory->size_bytes);
    if (status == STATUS_OK) status = buffer_append(&archive->bytes, end.bytes, end.size_bytes);
    return status;
}
