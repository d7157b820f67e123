#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "stage/safetensors.h"

// -- headers in memory ----------------------------------------------------------------------------

// `header` in a block of exactly its size, so that a read beyond it is noticed.
static enum status parse(const char *header, uint64_t data_bytes, struct safetensors **out,
                         struct error *error) {
    size_t size_bytes = strlen(header);
    char *exact = malloc(size_bytes + 1);
    assert_non_null(exact);
    char *start = exact + 1; // ends where the block ends
    memcpy(start, header, size_bytes);
    enum status status = safetensors_parse(
        start, size_bytes, SAFETENSORS_PREFIX_BYTES + size_bytes + data_bytes, out, error);
    free(exact);
    return status;
}

static struct safetensors *parse_ok(const char *header, uint64_t data_bytes) {
    struct safetensors *safetensors;
    struct error error;
    enum status status = parse(header, data_bytes, &safetensors, &error);
    if (status != STATUS_OK) fail_msg("%s: %s: %s", header, status_name(status), error.text);
    return safetensors;
}

static void refused(const char *header, uint64_t data_bytes, enum status expected,
                    const char *words) {
    struct safetensors *safetensors = NULL;
    struct error error = {.text = ""};
    enum status status = parse(header, data_bytes, &safetensors, &error);
    if (status != expected || strstr(error.text, words) == NULL)
        fail_msg("%s: %s '%s', expected %s '%s'", header, status_name(status), error.text,
                 status_name(expected), words);
    assert_null(safetensors);
    assert_int_equal(parse(header, data_bytes, &safetensors, NULL), expected);
}

static void safetensors_finds_tensors_by_name(void **state) {
    (void)state;
    static const char header[] =
        "{\"__metadata__\": {\"format\": \"pt\"},"
        "\"b\": {\"dtype\": \"BF16\", \"shape\": [2, 3], \"data_offsets\": [8, 20]},"
        "\"a\": {\"data_offsets\": [0, 8], \"extra\": [{}, null], \"shape\": [2], "
        "\"dtype\": \"F32\"},"
        "\"\\u0063\\\"\": {\"dtype\": \"F16\", \"shape\": [], \"data_offsets\": [20, 22]}}   ";
    struct safetensors *safetensors = parse_ok(header, 22);
    assert_int_equal(safetensors->tensor_count, 3);
    const struct safetensors_tensor *b = safetensors_find(safetensors, "b");
    assert_non_null(b);
    assert_int_equal(b->dtype, DTYPE_BF16);
    assert_int_equal(b->dimension_count, 2);
    assert_int_equal(b->dimensions[0], 2);
    assert_int_equal(b->dimensions[1], 3);
    assert_int_equal(b->file_offset, 8 + strlen(header) + 8);
    assert_int_equal(b->size_bytes, 12);
    const struct safetensors_tensor *a = safetensors_find(safetensors, "a");
    assert_non_null(a);
    assert_int_equal(a->dtype, DTYPE_F32);
    assert_int_equal(a->file_offset, 8 + strlen(header));
    const struct safetensors_tensor *scalar = safetensors_find(safetensors, "c\"");
    assert_non_null(scalar);
    assert_int_equal(scalar->dtype, DTYPE_F16);
    assert_int_equal(scalar->dimension_count, 0);
    assert_int_equal(scalar->size_bytes, 2);
    assert_null(safetensors_find(safetensors, "d"));
    assert_null(safetensors_find(safetensors, "__metadata__"));
    safetensors_close(safetensors);
}

static void safetensors_takes_empty_files_and_empty_tensors(void **state) {
    (void)state;
    struct safetensors *none = parse_ok("{}", 0);
    assert_int_equal(none->tensor_count, 0);
    assert_null(safetensors_find(none, "a"));
    safetensors_close(none);
    struct safetensors *empty =
        parse_ok("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                 "\"b\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,0]}}",
                 4);
    assert_int_equal(safetensors_find(empty, "b")->size_bytes, 0);
    safetensors_close(empty);
    safetensors_close(NULL);
}

static void safetensors_knows_dtypes_that_are_not_computed_with(void **state) {
    (void)state;
    static const struct {
        const char *name;
        unsigned bytes_of_eight;
    } dtypes[] = {{"BOOL", 8},    {"U8", 8},          {"I8", 8},         {"U16", 16},
                  {"I16", 16},    {"U32", 32},        {"I32", 32},       {"U64", 64},
                  {"I64", 64},    {"F64", 64},        {"C64", 64},       {"F8_E5M2", 8},
                  {"F8_E4M3", 8}, {"F8_E8M0", 8},     {"F6_E2M3", 6},    {"F6_E3M2", 6},
                  {"F4", 4},      {"F8_E5M2FNUZ", 8}, {"F8_E4M3FNUZ", 8}};
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        char header[256];
        snprintf(header, sizeof(header),
                 "{\"a\":{\"dtype\":\"%s\",\"shape\":[4,2],\"data_offsets\":[0,%u]}}",
                 dtypes[i].name, dtypes[i].bytes_of_eight);
        struct safetensors *safetensors = parse_ok(header, dtypes[i].bytes_of_eight);
        const struct safetensors_tensor *tensor = safetensors_find(safetensors, "a");
        assert_int_equal(tensor->dtype, DTYPE_NONE);
        assert_string_equal(tensor->dtype_name, dtypes[i].name);
        safetensors_close(safetensors);
    }
}

#define TENSOR(name, dtype, shape, offsets)                                                        \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void safetensors_refuses_wrong_layouts(void **state) {
    (void)state;
    refused("{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[4,12]") "}", 12,
            STATUS_INVALID, "tensor b starts at data byte 4, overlapping");
    refused("{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[0,8]") "}", 8,
            STATUS_INVALID, "overlapping");
    refused("{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[12,20]") "}", 20,
            STATUS_INVALID, "tensor b starts at data byte 12, leaving a hole after");
    refused("{" TENSOR("a", "F32", "[2]", "[4,12]") "}", 12, STATUS_INVALID, "leaving a hole");
    refused("{" TENSOR("a", "F32", "[2]", "[0,8]") "}", 7, STATUS_INVALID,
            "tensor a ends at data byte 8, the file has 7: it is truncated");
    refused("{" TENSOR("a", "F32", "[2]", "[0,8]") "}", 9, STATUS_INVALID,
            "1 bytes after the last tensor");
    refused("{}", 1, STATUS_INVALID, "1 bytes after the last tensor");
    refused("{" TENSOR("a", "F32", "[2]", "[8,0]") "}", 8, STATUS_INVALID, "two rising numbers");
    refused("{" TENSOR("a", "F32", "[2]", "[0]") "}", 8, STATUS_INVALID, "two rising numbers");
    refused("{" TENSOR("a", "F32", "[2]", "[0,8,8]") "}", 8, STATUS_INVALID, "two rising numbers");
}

static void safetensors_refuses_sizes_that_do_not_fit_the_shape(void **state) {
    (void)state;
    refused("{" TENSOR("a", "F32", "[3]", "[0,8]") "}", 8, STATUS_INVALID,
            "tensor a: shape and dtype are 12 bytes, data_offsets are 8");
    refused("{" TENSOR("a", "BF16", "[2,2]", "[0,16]") "}", 16, STATUS_INVALID, "8 bytes");
    refused("{" TENSOR("a", "F4", "[3]", "[0,1]") "}", 1, STATUS_INVALID, "whole number of bytes");
    // Products that wrap to something small.
    refused("{" TENSOR("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0, STATUS_INVALID,
            "below 2^61");
    refused("{" TENSOR("a", "F32", "[4611686018427387905,1]", "[0,4]") "}", 4, STATUS_INVALID,
            "below 2^61");
    refused("{" TENSOR("a", "U8", "[9223372036854775807,2]", "[0,0]") "}", 0, STATUS_INVALID,
            "below 2^61");
    refused("{" TENSOR("a", "F32", "[18446744073709551617]", "[0,4]") "}", 4, STATUS_INVALID,
            "header: ");
    refused("{" TENSOR("a", "F32", "[-1]", "[0,4]") "}", 4, STATUS_INVALID, "between");
    refused("{" TENSOR("a", "F32", "[1]", "[-4,0]") "}", 4, STATUS_INVALID, "between");
    refused("{" TENSOR("a", "F32", "[1]", "[0,18446744073709551616]") "}", 4, STATUS_INVALID,
            "header: ");
    refused("{" TENSOR("a", "U8", "[9223372036854775807]", "[0,9223372036854775807]") "}", 4,
            STATUS_INVALID, "below 2^61");
    refused("{" TENSOR("a", "U8", "[2305843009213693951]", "[0,2305843009213693951]") "}", 4,
            STATUS_INVALID, "truncated");
    refused("{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, STATUS_INVALID,
            "more than 8 dimensions");
    refused("{" TENSOR("a", "F32", "[1.0]", "[0,4]") "}", 4, STATUS_INVALID, "line 1");
}

static void safetensors_refuses_malformed_headers(void **state) {
    (void)state;
    static const char *const malformed[] = {
        "{",
        "{}x",
        "{\"a\":{}}",
        "{\"a\":1}",
        "{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],}}",
        "{\"__metadata__\":{\"a\":1}}",
        "{\"__metadata__\":{},\"__metadata__\":{}}",
        "{\"a\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
    };
    for (size_t i = 0; i < sizeof(malformed) / sizeof(malformed[0]); i++)
        refused(malformed[i], 4, STATUS_INVALID, "header: ");
    refused(" {}", 0, STATUS_INVALID, "does not start with '{'");
    refused("[]", 0, STATUS_INVALID, "does not start with '{'");
    refused("", 0, STATUS_INVALID, "does not start with '{'");
    refused("{" TENSOR("a\\n", "F32", "[1]", "[0,4]") "}", 4, STATUS_INVALID, "control");
    refused("{" TENSOR("a\\u0000", "F32", "[1]", "[0,4]") "}", 4, STATUS_INVALID, "control");
    refused("{" TENSOR("a", "F128", "[1]", "[0,16]") "}", 16, STATUS_UNSUPPORTED,
            "tensor a has an unknown dtype");
}

static void safetensors_refuses_duplicates(void **state) {
    (void)state;
    refused("{" TENSOR("a", "F32", "[1]", "[0,4]") "," TENSOR("a", "F32", "[1]", "[4,8]") "}", 8,
            STATUS_INVALID, "tensor a is there twice");
    refused("{" TENSOR("a", "F32", "[1]", "[0,4]") "," TENSOR("\\u0061", "F32", "[1]", "[4,8]") "}",
            8, STATUS_INVALID, "tensor a is there twice");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"shape\":[1]}}", 4,
            STATUS_INVALID, "a field twice");
}

static void safetensors_refuses_every_prefix_of_a_header(void **state) {
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"}," TENSOR("a\\u00e9", "F32", "[1]", "[0,4]") "}";
    for (size_t size_bytes = 0; size_bytes < strlen(header); size_bytes++) {
        struct safetensors *safetensors;
        char *exact = malloc(size_bytes + 1);
        assert_non_null(exact);
        memcpy(exact + 1, header, size_bytes);
        assert_int_equal(
            safetensors_parse(exact + 1, size_bytes, 8 + size_bytes + 4, &safetensors, NULL),
            STATUS_INVALID);
        free(exact);
    }
    safetensors_close(parse_ok(header, 4));
}

static void safetensors_checks_the_header_size(void **state) {
    (void)state;
    static const struct {
        uint64_t header_bytes, file_bytes;
        enum status status;
    } cases[] = {
        {2, 10, STATUS_OK},
        {2, 9, STATUS_INVALID},
        {0, 7, STATUS_INVALID},
        {100000000, 100000008, STATUS_OK},
        {100000001, UINT64_MAX, STATUS_INVALID},
        {UINT64_MAX, UINT64_MAX, STATUS_INVALID},
        {UINT64_MAX - 7, 16, STATUS_INVALID},
        {INT64_MAX, 16, STATUS_INVALID},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t prefix[SAFETENSORS_PREFIX_BYTES];
        for (int j = 0; j < SAFETENSORS_PREFIX_BYTES; j++)
            prefix[j] = (uint8_t)(cases[i].header_bytes >> (8 * j));
        uint64_t header_bytes;
        assert_int_equal(safetensors_header_bytes(prefix, cases[i].file_bytes, &header_bytes, NULL),
                         cases[i].status);
        if (cases[i].status == STATUS_OK) assert_int_equal(header_bytes, cases[i].header_bytes);
    }
    struct safetensors *safetensors;
    assert_int_equal(safetensors_parse("{}", 2, 9, &safetensors, NULL), STATUS_INVALID);
}

static void safetensors_holds_many_tensors(void **state) {
    (void)state;
    enum { COUNT = 3000 };
    char *header = NULL;
    size_t size_bytes;
    FILE *out = open_memstream(&header, &size_bytes);
    assert_non_null(out);
    for (int i = 0; i < COUNT; i++) // stored in an order that is neither that of names nor random
        fprintf(out, "%s\"t%d\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                i == 0 ? "{" : ",", i, 4 * (COUNT - 1 - i), 4 * (COUNT - i));
    fprintf(out, "}");
    fclose(out);
    struct safetensors *safetensors = parse_ok(header, 4 * COUNT);
    for (int i = 0; i < COUNT; i++) {
        char name[16];
        snprintf(name, sizeof(name), "t%d", i);
        const struct safetensors_tensor *tensor = safetensors_find(safetensors, name);
        assert_non_null(tensor);
        assert_int_equal(tensor->file_offset, 8 + size_bytes + 4 * (COUNT - 1 - (unsigned)i));
    }
    safetensors_close(safetensors);
    free(header);
}

static void safetensors_writes_shapes(void **state) {
    (void)state;
    static const uint64_t dimensions[] = {2, UINT64_MAX};
    char text[32], tiny[4];
    safetensors_shape_write(2, dimensions, text, sizeof(text));
    assert_string_equal(text, "(2, 18446744073709551615)");
    safetensors_shape_write(0, dimensions, text, sizeof(text));
    assert_string_equal(text, "()");
    safetensors_shape_write(2, dimensions, tiny, sizeof(tiny));
    assert_string_equal(tiny, "(2,");
}

// -- files ----------------------------------------------------------------------------------------

static void file_refused(const char *path, enum status expected, const char *words) {
    struct safetensors *safetensors;
    struct error error;
    int fd = -1;
    assert_int_equal(safetensors_open(path, &safetensors, &fd, &error), expected);
    assert_int_equal(fd, -1);
    if (strstr(error.text, words) == NULL || strstr(error.text, path) != error.text)
        fail_msg("'%s' lacks '%s'", error.text, words);
}

static void write_bytes(const char *path, const void *data, size_t size_bytes) {
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, size_bytes, out), size_bytes);
    assert_int_equal(fclose(out), 0);
}

static void safetensors_open_refuses_what_is_no_such_file(void **state) {
    (void)state;
    char directory[] = "/tmp/safetensors_test.XXXXXX", path[64];
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/a.safetensors", directory);
    file_refused(path, STATUS_NOT_FOUND, "No such file");
    file_refused(directory, STATUS_IO, "not a regular file");
    assert_int_equal(mkfifo(path, 0600), 0); // must not wait for a writer
    file_refused(path, STATUS_IO, "not a regular file");
    assert_int_equal(unlink(path), 0);
    write_bytes(path, "", 0);
    file_refused(path, STATUS_INVALID, "0 bytes");
    write_bytes(path, "\2\0\0\0\0\0\0", 7);
    file_refused(path, STATUS_INVALID, "7 bytes");
    write_bytes(path, "\377\377\377\377\377\377\377\377{}", 10);
    file_refused(path, STATUS_INVALID, "header of 18446744073709551615 bytes, the limit is");
    write_bytes(path, "\3\0\0\0\0\0\0\0{}", 10);
    file_refused(path, STATUS_INVALID, "header of 3 bytes in a file of 10");
    write_bytes(path, "\2\0\0\0\0\0\0\0{}", 10);
    struct safetensors *safetensors;
    int fd;
    assert_int_equal(safetensors_open(path, &safetensors, &fd, NULL), STATUS_OK);
    close(fd);
    safetensors_close(safetensors);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(safetensors_finds_tensors_by_name),
        cmocka_unit_test(safetensors_takes_empty_files_and_empty_tensors),
        cmocka_unit_test(safetensors_knows_dtypes_that_are_not_computed_with),
        cmocka_unit_test(safetensors_refuses_wrong_layouts),
        cmocka_unit_test(safetensors_refuses_sizes_that_do_not_fit_the_shape),
        cmocka_unit_test(safetensors_refuses_malformed_headers),
        cmocka_unit_test(safetensors_refuses_duplicates),
        cmocka_unit_test(safetensors_refuses_every_prefix_of_a_header),
        cmocka_unit_test(safetensors_checks_the_header_size),
        cmocka_unit_test(safetensors_holds_many_tensors),
        cmocka_unit_test(safetensors_writes_shapes),
        cmocka_unit_test(safetensors_open_refuses_what_is_no_such_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
