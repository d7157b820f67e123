#include "stage/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/memory.h"

// While tensors are parsed. Names are decoded into one array that is as large as the header: a
// decoded name with its '\0' never takes more bytes than its text with the quotes.
struct parser {
    struct json json;
    struct safetensors *out;
    size_t names_used_bytes;
    uint32_t tensor_capacity;
    uint64_t data_offset; // of the tensor bytes, in the file
    enum status status;   // set when it is not the text that is wrong
};

// -- dtypes ---------------------------------------------------------------------------------------

static const struct known_dtype {
    const char *name;
    uint32_t bits;
    enum dtype dtype;
} known_dtypes[] = {
    {"F32", 32, DTYPE_F32},     {"BF16", 16, DTYPE_BF16},   {"F16", 16, DTYPE_F16},
    {"BOOL", 8, DTYPE_NONE},    {"U8", 8, DTYPE_NONE},      {"I8", 8, DTYPE_NONE},
    {"U16", 16, DTYPE_NONE},    {"I16", 16, DTYPE_NONE},    {"U32", 32, DTYPE_NONE},
    {"I32", 32, DTYPE_NONE},    {"U64", 64, DTYPE_NONE},    {"I64", 64, DTYPE_NONE},
    {"F64", 64, DTYPE_NONE},    {"C64", 64, DTYPE_NONE},    {"F8_E5M2", 8, DTYPE_NONE},
    {"F8_E4M3", 8, DTYPE_NONE}, {"F8_E8M0", 8, DTYPE_NONE}, {"F8_E5M2FNUZ", 8, DTYPE_NONE},
    {"F6_E2M3", 6, DTYPE_NONE}, {"F6_E3M2", 6, DTYPE_NONE}, {"F8_E4M3FNUZ", 8, DTYPE_NONE},
    {"F4", 4, DTYPE_NONE},
};

static const struct known_dtype *find_dtype(struct json_text name) {
    for (size_t i = 0; i < sizeof(known_dtypes) / sizeof(known_dtypes[0]); i++)
        if (json_text_equals(name, known_dtypes[i].name)) return &known_dtypes[i];
    return NULL;
}

// -- one tensor -----------------------------------------------------------------------------------

// For sentences: tensor names are cut, so that the rest stays readable.
#define NAME_FORMAT "tensor %.160s"

static void fail_unsupported(struct parser *parser) {
    parser->status = STATUS_UNSUPPORTED;
}

// Control characters (also '\0') are refused, so that names can be compared and logged as text.
static const char *take_name(struct parser *parser, struct json_text text) {
    for (size_t i = 0; i < text.size_bytes; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (c >= 0x20 && c != 0x7f) continue;
        json_fail(&parser->json, "a tensor's name has control characters");
        return NULL;
    }
    char *name = parser->out->names + parser->names_used_bytes;
    memcpy(name, text.data, text.size_bytes);
    name[text.size_bytes] = '\0';
    parser->names_used_bytes += text.size_bytes + 1;
    return name;
}

static void read_dtype(struct parser *parser, struct safetensors_tensor *tensor,
                       uint32_t *bits_out) {
    struct json_text text = json_take_string(&parser->json);
    if (parser->json.failed) return;
    const struct known_dtype *known = find_dtype(text);
    if (known == NULL) {
        json_fail(&parser->json, NAME_FORMAT " has an unknown dtype", tensor->name);
        fail_unsupported(parser);
        return;
    }
    tensor->dtype_name = known->name;
    tensor->dtype = known->dtype;
    *bits_out = known->bits;
}

static void read_shape(struct parser *parser, struct safetensors_tensor *tensor) {
    struct json *json = &parser->json;
    tensor->dimension_count = 0;
    json_array_begin(json);
    while (json_array_next(json)) {
        int64_t dimension = json_take_integer(json, 0, INT64_MAX);
        if (json->failed) return;
        if (tensor->dimension_count == SAFETENSORS_DIMENSION_COUNT_MAX) {
            json_fail(json, NAME_FORMAT " has more than %d dimensions", tensor->name,
                      SAFETENSORS_DIMENSION_COUNT_MAX);
            return;
        }
        tensor->dimensions[tensor->dimension_count++] = (uint64_t)dimension;
    }
}

static void read_offsets(struct parser *parser, struct safetensors_tensor *tensor) {
    struct json *json = &parser->json;
    int64_t offsets[2] = {0, 0};
    int count = 0;
    json_array_begin(json);
    while (json_array_next(json)) {
        int64_t offset = json_take_integer(json, 0, INT64_MAX);
        if (count < 2) offsets[count] = offset;
        count++;
    }
    if (json->failed) return;
    if (count != 2 || offsets[0] > offsets[1]) {
        json_fail(json, NAME_FORMAT ": data_offsets must be two rising numbers", tensor->name);
        return;
    }
    // Until all is known to lie inside the file, this is relative to the tensor bytes.
    tensor->file_offset = (uint64_t)offsets[0];
    tensor->size_bytes = (uint64_t)(offsets[1] - offsets[0]);
}

// The bytes that the shape and the dtype ask for, without overflow.
static bool shape_bytes(const struct safetensors_tensor *tensor, uint32_t bits, uint64_t *out) {
    uint64_t total_bits = bits;
    for (uint32_t i = 0; i < tensor->dimension_count; i++)
        if (__builtin_mul_overflow(total_bits, tensor->dimensions[i], &total_bits)) return false;
    if (total_bits % 8 != 0) return false;
    *out = total_bits / 8;
    return true;
}

static void check_size(struct parser *parser, const struct safetensors_tensor *tensor,
                       uint32_t bits) {
    uint64_t wanted_bytes;
    if (!shape_bytes(tensor, bits, &wanted_bytes))
        json_fail(&parser->json,
                  NAME_FORMAT ": its shape is not a whole number of bytes below 2^61",
                  tensor->name);
    else if (wanted_bytes != tensor->size_bytes)
        json_fail(&parser->json,
                  NAME_FORMAT ": shape and dtype are %" PRIu64 " bytes, data_offsets are %" PRIu64,
                  tensor->name, wanted_bytes, tensor->size_bytes);
}

enum { FIELD_DTYPE = 1, FIELD_SHAPE = 2, FIELD_OFFSETS = 4, FIELDS_ALL = 7 };

// Fields that the format does not know are skipped, as the reference implementation does.
static unsigned field_of(struct json_text key) {
    if (json_text_equals(key, "dtype")) return FIELD_DTYPE;
    if (json_text_equals(key, "shape")) return FIELD_SHAPE;
    if (json_text_equals(key, "data_offsets")) return FIELD_OFFSETS;
    return 0;
}

static void read_tensor(struct parser *parser, struct safetensors_tensor *tensor) {
    struct json *json = &parser->json;
    struct json_text key;
    unsigned seen = 0;
    uint32_t bits = 0;
    json_object_begin(json);
    while (json_object_next(json, &key)) {
        unsigned one = field_of(key);
        if ((seen & one) != 0) {
            json_fail(json, NAME_FORMAT " has a field twice", tensor->name);
            return;
        }
        seen |= one;
        if (one == FIELD_DTYPE)
            read_dtype(parser, tensor, &bits);
        else if (one == FIELD_SHAPE)
            read_shape(parser, tensor);
        else if (one == FIELD_OFFSETS)
            read_offsets(parser, tensor);
        else
            json_skip(json);
    }
    if (json->failed) return;
    if (seen != FIELDS_ALL)
        json_fail(json, NAME_FORMAT " needs dtype, shape and data_offsets", tensor->name);
    else
        check_size(parser, tensor, bits);
}

// -- all tensors ----------------------------------------------------------------------------------

static struct safetensors_tensor *add_tensor(struct parser *parser) {
    struct safetensors *out = parser->out;
    if (out->tensor_count == SAFETENSORS_TENSOR_COUNT_MAX) {
        json_fail(&parser->json, "more than %d tensors", SAFETENSORS_TENSOR_COUNT_MAX);
        return NULL;
    }
    if (out->tensor_count == parser->tensor_capacity) {
        uint32_t capacity = parser->tensor_capacity == 0 ? 64 : 2 * parser->tensor_capacity;
        void *grown = memory_resize(out->tensors, capacity, sizeof(out->tensors[0]));
        if (grown == NULL) {
            json_fail(&parser->json, "no memory for %" PRIu32 " tensors", capacity);
            parser->status = STATUS_NO_MEMORY;
            return NULL;
        }
        out->tensors = grown;
        parser->tensor_capacity = capacity;
    }
    struct safetensors_tensor *tensor = &out->tensors[out->tensor_count++];
    memset(tensor, 0, sizeof(*tensor));
    return tensor;
}

static void read_metadata(struct json *json) {
    struct json_text key;
    json_object_begin(json);
    while (json_object_next(json, &key))
        json_take_string(json);
}

static void read_header(struct parser *parser) {
    struct json *json = &parser->json;
    struct json_text key;
    bool metadata_seen = false;
    json_object_begin(json);
    while (json_object_next(json, &key)) {
        if (json_text_equals(key, "__metadata__")) {
            if (metadata_seen) json_fail(json, "__metadata__ is there twice");
            metadata_seen = true;
            read_metadata(json);
            continue;
        }
        const char *name = take_name(parser, key);
        struct safetensors_tensor *tensor = name == NULL ? NULL : add_tensor(parser);
        if (tensor == NULL) return;
        tensor->name = name;
        read_tensor(parser, tensor);
    }
    json_end(json);
}

static int compare_offsets(const void *a, const void *b) {
    const struct safetensors_tensor *x = a, *y = b;
    if (x->file_offset != y->file_offset) return x->file_offset < y->file_offset ? -1 : 1;
    return (x->size_bytes > y->size_bytes) - (x->size_bytes < y->size_bytes);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const struct safetensors_tensor *)a)->name,
                  ((const struct safetensors_tensor *)b)->name);
}

static void tensors_sort(struct safetensors *all, int (*compare)(const void *, const void *)) {
    if (all->tensor_count > 0)
        qsort(all->tensors, all->tensor_count, sizeof(all->tensors[0]), compare);
}

// Each tensor starts where the one before ends, and the last one ends with the file.
static enum status check_layout(struct safetensors *all, uint64_t data_bytes, struct error *error) {
    tensors_sort(all, compare_offsets);
    uint64_t end = 0;
    for (uint32_t i = 0; i < all->tensor_count; i++) {
        const struct safetensors_tensor *tensor = &all->tensors[i];
        uint64_t begin = tensor->file_offset;
        if (begin != end)
            return error_set(error, STATUS_INVALID,
                             NAME_FORMAT " starts at data byte %" PRIu64 ", %s the previous one, "
                                         "which ends at %" PRIu64,
                             tensor->name, begin,
                             begin < end ? "overlapping" : "leaving a hole after", end);
        end += tensor->size_bytes; // at most 2^63 - 1: it is the end that the header said
        if (end > data_bytes)
            return error_set(error, STATUS_INVALID,
                             NAME_FORMAT " ends at data byte %" PRIu64 ", the file has %" PRIu64
                                         ": it is truncated or corrupt",
                             tensor->name, end, data_bytes);
    }
    if (end != data_bytes)
        return error_set(error, STATUS_INVALID, "%" PRIu64 " bytes after the last tensor",
                         data_bytes - end);
    return STATUS_OK;
}

static enum status check_names(struct safetensors *all, struct error *error) {
    tensors_sort(all, compare_names);
    for (uint32_t i = 1; i < all->tensor_count; i++)
        if (compare_names(&all->tensors[i - 1], &all->tensors[i]) == 0)
            return error_set(error, STATUS_INVALID, NAME_FORMAT " is there twice",
                             all->tensors[i].name);
    return STATUS_OK;
}

static enum status parse_all(struct parser *parser, uint64_t data_bytes, struct error *error) {
    read_header(parser);
    if (parser->json.failed) {
        enum status status = parser->status == STATUS_OK ? STATUS_INVALID : parser->status;
        return error_set(error, status, "header: %s", parser->json.error.text);
    }
    enum status status = check_layout(parser->out, data_bytes, error);
    if (status != STATUS_OK) return status;
    for (uint32_t i = 0; i < parser->out->tensor_count; i++)
        parser->out->tensors[i].file_offset += parser->data_offset;
    return check_names(parser->out, error);
}

// -- the file -------------------------------------------------------------------------------------

enum status safetensors_header_bytes(const uint8_t prefix[SAFETENSORS_PREFIX_BYTES],
                                     uint64_t file_bytes, uint64_t *header_bytes_out,
                                     struct error *error) {
    uint64_t header_bytes = 0;
    for (int i = SAFETENSORS_PREFIX_BYTES - 1; i >= 0; i--)
        header_bytes = header_bytes << 8 | prefix[i];
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX)
        return error_set(error, STATUS_INVALID, "header of %" PRIu64 " bytes, the limit is %d",
                         header_bytes, SAFETENSORS_HEADER_BYTES_MAX);
    if (file_bytes < SAFETENSORS_PREFIX_BYTES ||
        header_bytes > file_bytes - SAFETENSORS_PREFIX_BYTES)
        return error_set(error, STATUS_INVALID,
                         "header of %" PRIu64 " bytes in a file of %" PRIu64
                         ": it is truncated or no safetensors file",
                         header_bytes, file_bytes);
    *header_bytes_out = header_bytes;
    return STATUS_OK;
}

enum status safetensors_parse(const char *header, uint64_t header_bytes, uint64_t file_bytes,
                              struct safetensors **safetensors_out, struct error *error) {
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX ||
        file_bytes < SAFETENSORS_PREFIX_BYTES + header_bytes || file_bytes > INT64_MAX)
        return error_set(error, STATUS_INVALID, "header of %" PRIu64 " bytes in a file of %" PRIu64,
                         header_bytes, file_bytes);
    if (header_bytes == 0 || header[0] != '{')
        return error_set(error, STATUS_INVALID, "the header does not start with '{'");
    struct parser parser = {.data_offset = SAFETENSORS_PREFIX_BYTES + header_bytes};
    parser.out = calloc(1, sizeof(*parser.out));
    if (parser.out != NULL) parser.out->names = malloc(header_bytes);
    if (parser.out == NULL || parser.out->names == NULL) {
        safetensors_close(parser.out);
        return error_set(error, STATUS_NO_MEMORY, "no memory for a header of %" PRIu64 " bytes",
                         header_bytes);
    }
    json_init(&parser.json, header, header_bytes);
    enum status status = parse_all(&parser, file_bytes - parser.data_offset, error);
    json_fini(&parser.json);
    if (status == STATUS_OK)
        *safetensors_out = parser.out;
    else
        safetensors_close(parser.out);
    return status;
}

static enum status read_at(int fd, void *data, uint64_t size_bytes, uint64_t offset,
                           struct error *error) {
    uint64_t done = 0;
    while (done < size_bytes) {
        ssize_t got = pread(fd, (char *)data + done, size_bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set(error, STATUS_IO, "reading the header: %s", strerror(errno));
        if (got == 0) return error_set(error, STATUS_IO, "became shorter while it was read");
        done += (uint64_t)got;
    }
    return STATUS_OK;
}

static enum status read_file(int fd, uint64_t file_bytes, struct safetensors **safetensors_out,
                             struct error *error) {
    uint8_t prefix[SAFETENSORS_PREFIX_BYTES] = {0};
    uint64_t header_bytes;
    if (file_bytes < sizeof(prefix))
        return error_set(error, STATUS_INVALID,
                         "a file of %" PRIu64 " bytes is no safetensors file", file_bytes);
    enum status status = read_at(fd, prefix, sizeof(prefix), 0, error);
    if (status != STATUS_OK) return status;
    status = safetensors_header_bytes(prefix, file_bytes, &header_bytes, error);
    if (status != STATUS_OK) return status;
    char *header = malloc(header_bytes + 1);
    if (header == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a header of %" PRIu64 " bytes",
                         header_bytes);
    status = read_at(fd, header, header_bytes, sizeof(prefix), error);
    if (status == STATUS_OK)
        status = safetensors_parse(header, header_bytes, file_bytes, safetensors_out, error);
    free(header);
    return status;
}

enum status safetensors_open(const char *path, struct safetensors **safetensors_out, int *fd_out,
                             struct error *error) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not block
    if (fd < 0)
        return error_set(error, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%.400s: %s", path,
                         strerror(errno));
    struct stat st;
    enum status status;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        status = read_file(fd, (uint64_t)st.st_size, safetensors_out, error);
    else
        status = error_set(error, STATUS_IO, "not a regular file");
    if (status == STATUS_OK) {
        *fd_out = fd;
        return STATUS_OK;
    }
    error_prefix(error, "%.240s", path);
    close(fd);
    return status;
}

void safetensors_close(struct safetensors *safetensors) {
    if (safetensors == NULL) return;
    free(safetensors->tensors);
    free(safetensors->names);
    free(safetensors);
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *safetensors,
                                                  const char *name) {
    struct safetensors_tensor key = {.name = name};
    if (safetensors->tensor_count == 0) return NULL;
    return bsearch(&key, safetensors->tensors, safetensors->tensor_count, sizeof(key),
                   compare_names);
}

void safetensors_shape_write(uint32_t dimension_count, const uint64_t *dimensions, char *out,
                             size_t out_bytes) {
    size_t used = 0;
    for (uint32_t i = 0; i < dimension_count && used < out_bytes; i++)
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%" PRIu64, i == 0 ? "(" : ", ",
                                 dimensions[i]);
    if (used < out_bytes) snprintf(out + used, out_bytes - used, dimension_count == 0 ? "()" : ")");
}
