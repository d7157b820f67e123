#include "coordinator/archive.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

static uint32_t number(const uint8_t *bytes, size_t size_bytes) {
    uint32_t value = 0;
    for (size_t i = 0; i < size_bytes; i++)
        value |= (uint32_t)bytes[i] << (8 * i);
    return value;
}

// Reads the file of a directory entry back; returns the entry after it.
static const uint8_t *expect_file(const struct archive *archive, const uint8_t *entry,
                                  const char *name, const void *data, size_t size_bytes) {
    const uint8_t *bytes = (const uint8_t *)archive->bytes.data;
    size_t name_bytes = strlen(name);
    assert_int_equal(number(entry, 4), 0x02014b50);
    assert_int_equal(number(entry + 10, 2), 8);
    assert_int_equal(number(entry + 24, 4), size_bytes);
    assert_int_equal(number(entry + 28, 2), name_bytes);
    assert_memory_equal(entry + 46, name, name_bytes);
    const uint8_t *local = bytes + number(entry + 42, 4);
    assert_int_equal(number(local, 4), 0x04034b50);
    assert_memory_equal(local + 4, entry + 6, 26); // versions to lengths are the same in both
    assert_memory_equal(local + 30, name, name_bytes);
    uint8_t *plain = malloc(size_bytes + 1);
    z_stream stream = {.next_in = (Bytef *)local + 30 + name_bytes,
                       .avail_in = number(entry + 20, 4),
                       .next_out = plain,
                       .avail_out = (uInt)size_bytes + 1};
    assert_int_equal(inflateInit2(&stream, -15), Z_OK);
    assert_int_equal(inflate(&stream, Z_FINISH), Z_STREAM_END);
    assert_int_equal(stream.total_out, size_bytes);
    assert_int_equal(stream.avail_in, 0);
    assert_int_equal(inflateEnd(&stream), Z_OK);
    assert_memory_equal(plain, data, size_bytes);
    assert_int_equal(number(entry + 16, 4), crc32(0, plain, (uInt)size_bytes));
    free(plain);
    return entry + 46 + name_bytes;
}

static void archive_has_its_files(void **state) {
    (void)state;
    char *large = malloc(300000);
    for (size_t i = 0; i < 300000; i++)
        large[i] = (char)(i * i >> 7);
    struct archive archive;
    archive_init(&archive, 1 << 20);
    assert_int_equal(archive_add(&archive, "a.json", "{}", 2), STATUS_OK);
    assert_int_equal(archive_add(&archive, "empty", "", 0), STATUS_OK);
    assert_int_equal(archive_add(&archive, "large", large, 300000), STATUS_OK);
    assert_int_equal(archive_finish(&archive), STATUS_OK);
    const uint8_t *bytes = (const uint8_t *)archive.bytes.data;
    const uint8_t *end = bytes + archive.bytes.size_bytes - 22;
    assert_int_equal(number(end, 4), 0x06054b50);
    assert_int_equal(number(end + 8, 2), 3);
    assert_int_equal(number(end + 10, 2), 3);
    const uint8_t *entry = bytes + number(end + 16, 4);
    assert_ptr_equal(entry + number(end + 12, 4), end);
    entry = expect_file(&archive, entry, "a.json", "{}", 2);
    entry = expect_file(&archive, entry, "empty", "", 0);
    entry = expect_file(&archive, entry, "large", large, 300000);
    assert_ptr_equal(entry, end);
    archive_fini(&archive);
    free(large);
}

static void archive_of_nothing_is_an_archive(void **state) {
    (void)state;
    struct archive archive;
    archive_init(&archive, 100);
    assert_int_equal(archive_finish(&archive), STATUS_OK);
    assert_int_equal(archive.bytes.size_bytes, 22);
    archive_fini(&archive);
}

static void archive_keeps_its_limit(void **state) {
    (void)state;
    struct archive archive;
    char data[400];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (char)(i * 2654435761u >> 13);
    archive_init(&archive, 300);
    assert_int_equal(archive_add(&archive, "a", data, sizeof(data)), STATUS_EXHAUSTED);
    archive_fini(&archive);
    archive_init(&archive, 60);
    assert_int_equal(archive_add(&archive, "a", "", 0), STATUS_OK);
    assert_int_equal(archive_finish(&archive), STATUS_EXHAUSTED);
    archive_fini(&archive);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(archive_has_its_files),
        cmocka_unit_test(archive_of_nothing_is_an_archive),
        cmocka_unit_test(archive_keeps_its_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
