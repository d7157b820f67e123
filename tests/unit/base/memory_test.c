#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

// Sanitizers must let an allocation fail, as the C library does.
const char *__asan_default_options(void);
const char *__tsan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void) {
    return "allocator_may_return_null=1";
}

static void size_products_and_sums_are_refused_when_they_overflow(void **state) {
    (void)state;
    size_t out = 42;
    assert_true(size_multiply(0, SIZE_MAX, &out));
    assert_int_equal(out, 0);
    assert_true(size_multiply(SIZE_MAX, 1, &out));
    assert_true(out == SIZE_MAX);
    assert_true(size_multiply((size_t)1 << 32, ((size_t)1 << 32) - 1, &out));
    out = 42;
    assert_false(size_multiply((size_t)1 << 32, (size_t)1 << 32, &out));
    assert_false(size_multiply(SIZE_MAX, 2, &out));
    assert_false(size_multiply(SIZE_MAX, SIZE_MAX, &out));
    assert_false(size_add(SIZE_MAX, 1, &out));
    assert_false(size_add(SIZE_MAX / 2 + 1, SIZE_MAX / 2 + 1, &out));
    assert_int_equal(out, 42);
    assert_true(size_add(SIZE_MAX, 0, &out));
    assert_true(out == SIZE_MAX);
    assert_true(size_add(3, 4, &out));
    assert_int_equal(out, 7);
}

static void memory_arrays_are_zeroed_and_never_wrap_around(void **state) {
    (void)state;
    unsigned char *bytes = memory_array(100, 7);
    assert_non_null(bytes);
    for (size_t i = 0; i < 700; i++)
        assert_int_equal(bytes[i], 0);
    memset(bytes, 1, 700);
    volatile size_t half = SIZE_MAX / 2 + 1; // hidden from the compiler, which would warn
    assert_null(memory_array(half, 2));
    assert_null(memory_resize(bytes, half, 2));
    assert_int_equal(bytes[699], 1); // still there
    unsigned char *grown = memory_resize(bytes, 200, 7);
    assert_non_null(grown);
    assert_int_equal(grown[699], 1);
    grown[1399] = 1;
    free(grown);
    void *none = memory_array(0, 8);
    assert_non_null(none);
    none = memory_resize(none, 0, 8);
    assert_non_null(none);
    free(none);
}

static void buffer_grows_to_its_limit_and_stays_terminated(void **state) {
    (void)state;
    enum { LIMIT_BYTES = 1000 };
    struct buffer buffer;
    buffer_init(&buffer, LIMIT_BYTES);
    assert_null(buffer.data);
    buffer_clear(&buffer);
    for (size_t i = 0; i < LIMIT_BYTES; i++) {
        char byte = (char)('a' + i % 26);
        assert_int_equal(buffer_append(&buffer, &byte, 1), STATUS_OK);
        assert_int_equal(buffer.size_bytes, i + 1);
        assert_int_equal(buffer.data[i + 1], '\0');
    }
    for (size_t i = 0; i < LIMIT_BYTES; i++)
        assert_int_equal(buffer.data[i], 'a' + i % 26);
    assert_int_equal(buffer_append(&buffer, "x", 1), STATUS_EXHAUSTED);
    assert_int_equal(buffer.size_bytes, LIMIT_BYTES);
    assert_int_equal(strlen(buffer.data), LIMIT_BYTES);
    assert_int_equal(buffer_append(&buffer, NULL, 0), STATUS_OK);
    buffer_clear(&buffer);
    assert_int_equal(buffer.size_bytes, 0);
    assert_string_equal(buffer.data, "");
    assert_int_equal(buffer_append(&buffer, "abc", 3), STATUS_OK);
    assert_string_equal(buffer.data, "abc");
    buffer_fini(&buffer);
    assert_null(buffer.data);
    buffer_fini(&buffer);
}

static void buffer_takes_one_large_piece(void **state) {
    (void)state;
    static char piece[100000];
    memset(piece, 'p', sizeof(piece));
    struct buffer buffer;
    buffer_init(&buffer, sizeof(piece));
    assert_int_equal(buffer_append(&buffer, piece, sizeof(piece)), STATUS_OK);
    assert_int_equal(strlen(buffer.data), sizeof(piece));
    buffer_fini(&buffer);

    buffer_init(&buffer, sizeof(piece) - 1);
    assert_int_equal(buffer_append(&buffer, piece, sizeof(piece)), STATUS_EXHAUSTED);
    assert_null(buffer.data);
    buffer_fini(&buffer);
}

static void buffer_refuses_sizes_that_wrap_around(void **state) {
    (void)state;
    struct buffer buffer;
    buffer_init(&buffer, SIZE_MAX);
    assert_int_equal(buffer_append(&buffer, "abc", 3), STATUS_OK);
    // None of these may read from the piece, or double for ever.
    volatile size_t sizes[] = {SIZE_MAX, SIZE_MAX - 2, SIZE_MAX - 3, SIZE_MAX - 4,
                               SIZE_MAX / 2 + 1};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        assert_int_not_equal(buffer_append(&buffer, "abc", sizes[i]), STATUS_OK);
        assert_int_equal(buffer.size_bytes, 3);
        assert_string_equal(buffer.data, "abc");
    }
    buffer_fini(&buffer);
}

// -- files ---------------------------------------------------------------------------------------

static char folder[64];

static const char *path_of(const char *name) {
    static char path[128];
    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static const char *file_with(const void *data, size_t size_bytes) {
    const char *path = path_of("file");
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size_bytes), size_bytes);
    close(fd);
    return path;
}

static int make_folder(void **state) {
    (void)state;
    (void)snprintf(folder, sizeof(folder), "/tmp/memory_test.XXXXXX");
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int remove_folder(void **state) {
    (void)state;
    (void)unlink(path_of("file"));
    (void)unlink(path_of("fifo"));
    return rmdir(folder);
}

static void file_is_read_whole_and_terminated(void **state) {
    (void)state;
    static const char content[] = "one\0two\n";
    for (size_t size = 0; size <= sizeof(content); size++) {
        char *data = NULL;
        size_t size_bytes = 99;
        assert_int_equal(
            file_read(file_with(content, size), sizeof(content), &data, &size_bytes, NULL),
            STATUS_OK);
        assert_int_equal(size_bytes, size);
        assert_memory_equal(data, content, size);
        assert_int_equal(data[size], '\0');
        free(data);
    }
}

static void file_beyond_the_limit_is_refused_with_both_sizes(void **state) {
    (void)state;
    struct error error = {0};
    char *data = NULL;
    size_t size_bytes = 99;
    const char *path = file_with("12345", 5);
    assert_int_equal(file_read(path, 4, &data, &size_bytes, &error), STATUS_EXHAUSTED);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, "5 bytes"));
    assert_non_null(strstr(error.text, "limit is 4"));
    assert_null(data);
    assert_int_equal(size_bytes, 99);
    assert_int_equal(file_read(path, 5, &data, &size_bytes, &error), STATUS_OK);
    free(data);
}

static void expect_unreadable(const char *path, enum status expected) {
    struct error error = {0};
    char *data = NULL;
    size_t size_bytes = 99;
    assert_int_equal(file_read(path, 1 << 20, &data, &size_bytes, &error), expected);
    assert_int_equal(strncmp(error.text, path, strlen(path)), 0);
    assert_true(strlen(error.text) > strlen(path) + 2);
    assert_null(data);
    assert_int_equal(size_bytes, 99);
}

static void file_that_cannot_be_read_is_named(void **state) {
    (void)state;
    expect_unreadable(path_of("missing"), STATUS_NOT_FOUND);
    expect_unreadable("", STATUS_NOT_FOUND);
    expect_unreadable(folder, STATUS_IO);
    (void)file_with("x", 1);
    expect_unreadable(path_of("file/below"), STATUS_IO);
    expect_unreadable("/dev/null", STATUS_IO);
    if (geteuid() == 0) return; // may read everything
    assert_int_equal(chmod(path_of("file"), 0), 0);
    expect_unreadable(path_of("file"), STATUS_IO);
}

static void file_read_does_not_wait_at_a_pipe(void **state) {
    (void)state;
    assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
    alarm(20); // ends the test where it waits
    expect_unreadable(path_of("fifo"), STATUS_IO);
    alarm(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(size_products_and_sums_are_refused_when_they_overflow),
        cmocka_unit_test(memory_arrays_are_zeroed_and_never_wrap_around),
        cmocka_unit_test(buffer_grows_to_its_limit_and_stays_terminated),
        cmocka_unit_test(buffer_takes_one_large_piece),
        cmocka_unit_test(buffer_refuses_sizes_that_wrap_around),
        cmocka_unit_test(file_is_read_whole_and_terminated),
        cmocka_unit_test(file_beyond_the_limit_is_refused_with_both_sizes),
        cmocka_unit_test(file_that_cannot_be_read_is_named),
        cmocka_unit_test(file_read_does_not_wait_at_a_pipe),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
