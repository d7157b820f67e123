#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void *memory_array(size_t count, size_t size) {
    return calloc(count == 0 ? 1 : count, size == 0 ? 1 : size);
}

void *memory_resize(void *old, size_t count, size_t size) {
    return reallocarray(old, count == 0 ? 1 : count, size == 0 ? 1 : size);
}

void memory_wipe(void *memory, size_t size_bytes) {
    explicit_bzero(memory, size_bytes);
}

bool size_multiply(size_t a, size_t b, size_t *out) {
    size_t product;
    if (__builtin_mul_overflow(a, b, &product)) return false;
    *out = product;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out) {
    size_t sum;
    if (__builtin_add_overflow(a, b, &sum)) return false;
    *out = sum;
    return true;
}

void buffer_init(struct buffer *buffer, size_t limit_bytes) {
    *buffer = (struct buffer){.limit_bytes = limit_bytes};
}

void buffer_fini(struct buffer *buffer) {
    free(buffer->data);
    buffer->data = NULL;
    buffer->size_bytes = buffer->capacity_bytes = 0;
}

void buffer_clear(struct buffer *buffer) {
    buffer->size_bytes = 0;
    if (buffer->data != NULL) buffer->data[0] = '\0';
}

enum status buffer_append(struct buffer *buffer, const void *data, size_t size_bytes) {
    size_t needed_bytes;
    if (!size_add(buffer->size_bytes, size_bytes, &needed_bytes)) return STATUS_EXHAUSTED;
    if (needed_bytes > buffer->limit_bytes) return STATUS_EXHAUSTED;
    if (needed_bytes > SIZE_MAX / 2) return STATUS_NO_MEMORY; // doubling would wrap around
    if (needed_bytes + 1 > buffer->capacity_bytes) {
        size_t capacity_bytes = buffer->capacity_bytes == 0 ? 64 : buffer->capacity_bytes;
        while (capacity_bytes < needed_bytes + 1)
            capacity_bytes *= 2;
        char *grown = realloc(buffer->data, capacity_bytes);
        if (grown == NULL) return STATUS_NO_MEMORY;
        buffer->data = grown;
        buffer->capacity_bytes = capacity_bytes;
    }
    if (size_bytes > 0) memcpy(buffer->data + buffer->size_bytes, data, size_bytes);
    buffer->size_bytes = needed_bytes;
    buffer->data[needed_bytes] = '\0';
    return STATUS_OK;
}

static enum status read_all(int fd, const char *path, char *data, size_t size_bytes,
                            struct error *error) {
    size_t done = 0;
    while (done < size_bytes) {
        ssize_t got = read(fd, data + done, size_bytes - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set(error, STATUS_IO, "%s: %s", path, strerror(errno));
        if (got == 0) return error_set(error, STATUS_IO, "%s: became shorter while read", path);
        done += (size_t)got;
    }
    data[size_bytes] = '\0';
    return STATUS_OK;
}

enum status file_read(const char *path, size_t limit_bytes, char **data_out, size_t *size_bytes_out,
                      struct error *error) {
    // Without O_NONBLOCK, opening a FIFO waits for its writer.
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        enum status status = errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO;
        return error_set(error, status, "%s: %s", path, strerror(errno));
    }
    enum status status = STATUS_OK;
    char *data = NULL;
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        status = error_set(error, STATUS_IO, "%s: not a regular file", path);
        goto close_fd;
    }
    size_t size_bytes = (size_t)st.st_size;
    if (size_bytes > limit_bytes) {
        status = error_set(error, STATUS_EXHAUSTED, "%s: %zu bytes, the limit is %zu", path,
                           size_bytes, limit_bytes);
        goto close_fd;
    }
    data = malloc(size_bytes + 1);
    if (data == NULL) {
        status =
            error_set(error, STATUS_NO_MEMORY, "%s: no memory for %zu bytes", path, size_bytes);
        goto close_fd;
    }
    status = read_all(fd, path, data, size_bytes, error);
    if (status != STATUS_OK) {
        free(data);
        goto close_fd;
    }
    *data_out = data;
    *size_bytes_out = size_bytes;
close_fd:
    close(fd);
    return status;
}
