// Looking names up in descriptor sets: the project's own, and one made here with extensions.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "proto/descriptors.h"
#include "transport/rpc_descriptors.h"
#include "transport/rpc_wire.h"

#define INFERENCE_FILE "stagecoach/v1/inference.proto"

static struct rpc_descriptors own(void) {
    return (struct rpc_descriptors){descriptors_begin, descriptors_size_bytes()};
}

static void assert_named(const struct rpc_descriptors_file *file, const char *name) {
    struct rpc_wire_field field = rpc_wire_first(rpc_wire_of(file->data, file->size_bytes), 1);
    assert_true(rpc_wire_text_is(&field, name));
}

static void files_are_found_by_name(void **state) {
    (void)state;
    struct rpc_descriptors set = own();
    struct rpc_descriptors_file file;
    assert_true(rpc_descriptors_find_file(&set, INFERENCE_FILE, &file));
    assert_named(&file, INFERENCE_FILE);
    assert_true(rpc_descriptors_find_file(&set, "grpc/health/v1/health.proto", &file));
    const char *const wrong[] = {"", "inference.proto", "stagecoach/v1/inference.prot",
                                 INFERENCE_FILE "x", "/" INFERENCE_FILE};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_false(rpc_descriptors_find_file(&set, wrong[i], &file));
}

static void everything_with_a_name_is_found(void **state) {
    (void)state;
    const struct {
        const char *symbol, *file;
    } cases[] = {
        {"stagecoach.v1.Inference", INFERENCE_FILE},
        {"stagecoach.v1.Inference.Generate", INFERENCE_FILE},
        {"stagecoach.v1.GenerateRequest", INFERENCE_FILE},
        {"stagecoach.v1.GenerateRequest.stop", INFERENCE_FILE},
        {"stagecoach.v1.GenerateRequest.prompt", INFERENCE_FILE}, // a oneof
        {"stagecoach.v1.Control", "stagecoach/v1/control.proto"},
        {"stagecoach.v1.FailureKind", "stagecoach/v1/control.proto"},
        {"stagecoach.v1.FAILURE_KIND_LOAD", "stagecoach/v1/control.proto"},
        {"grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"},
        {"grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"},
        {"grpc.health.v1.HealthListResponse.StatusesEntry.key", "grpc/health/v1/health.proto"},
        {"grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"},
        {"grpc.reflection.v1alpha.ServerReflection", "grpc/reflection/v1alpha/reflection.proto"},
    };
    struct rpc_descriptors set = own();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rpc_descriptors_file file;
        if (!rpc_descriptors_find_symbol(&set, cases[i].symbol, &file))
            fail_msg("%s is not found", cases[i].symbol);
        assert_named(&file, cases[i].file);
    }
}

static void nothing_else_is_found(void **state) {
    (void)state;
    const char *const symbols[] = {
        "",
        ".",
        "stagecoach",
        "stagecoach.v1",
        "stagecoach.v1.",
        ".stagecoach.v1.Inference",
        "stagecoach.v1.Inference.",
        "stagecoach.v1.Inferenc",
        "stagecoach.v1.Inference2",
        "stagecoach.v1.Inference.Generate.x",
        "stagecoach.v1..Inference",
        "stagecoach.v1.GenerateRequest.stop.max_tokens",
        "stagecoach.v1.FailureKind.FAILURE_KIND_LOAD", // values are beside their enum
        "stagecoach.v2.Inference",
        "Inference",
    };
    struct rpc_descriptors set = own();
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        struct rpc_descriptors_file file;
        if (rpc_descriptors_find_symbol(&set, symbols[i], &file))
            fail_msg("'%s' is found", symbols[i]);
    }
}

static void messages_are_told_from_the_rest(void **state) {
    (void)state;
    struct rpc_descriptors set = own();
    assert_true(rpc_descriptors_has_message(&set, "stagecoach.v1.GenerateRequest"));
    assert_true(
        rpc_descriptors_has_message(&set, "grpc.health.v1.HealthListResponse.StatusesEntry"));
    assert_false(rpc_descriptors_has_message(&set, "stagecoach.v1.Inference"));
    assert_false(rpc_descriptors_has_message(&set, "stagecoach.v1.FailureKind"));
    assert_false(rpc_descriptors_has_message(&set, "stagecoach.v1.GenerateRequest.stop"));
}

// -- a set with extensions and imports -----------------------------------------------------------

struct bytes {
    uint8_t data[1024];
    size_t size_bytes;
};

static void put(struct bytes *bytes, uint8_t id, const void *data, size_t size_bytes) {
    assert_true(size_bytes < 128 && bytes->size_bytes + size_bytes + 2 <= sizeof(bytes->data));
    bytes->data[bytes->size_bytes++] = (uint8_t)(id << 3 | RPC_WIRE_BYTES);
    bytes->data[bytes->size_bytes++] = (uint8_t)size_bytes;
    memcpy(bytes->data + bytes->size_bytes, data, size_bytes);
    bytes->size_bytes += size_bytes;
}

static void put_text(struct bytes *bytes, uint8_t id, const char *text) {
    put(bytes, id, text, strlen(text));
}

static void put_bytes(struct bytes *bytes, uint8_t id, const struct bytes *inner) {
    put(bytes, id, inner->data, inner->size_bytes);
}

static struct bytes extension(const char *name, const char *extendee, uint8_t number) {
    struct bytes bytes = {0};
    put_text(&bytes, 1, name);
    put_text(&bytes, 2, extendee);
    bytes.data[bytes.size_bytes++] = 3 << 3 | RPC_WIRE_VARINT;
    bytes.data[bytes.size_bytes++] = number;
    return bytes;
}

// a.proto: message p.Base. b.proto imports a: extends it by 10, and by 11 inside message q.Outer.
// c.proto imports b and a, has no package and nothing in it but message Alone.
static struct bytes extended_set(void) {
    struct bytes a = {0}, b = {0}, c = {0}, base = {0}, outer = {0}, alone = {0}, set = {0};
    put_text(&base, 1, "Base");
    put_text(&a, 1, "a.proto");
    put_text(&a, 2, "p");
    put_bytes(&a, 4, &base);
    struct bytes inner = extension("inner", ".p.Base", 11),
                 other = extension("other", ".q.Outer", 12);
    put_text(&outer, 1, "Outer");
    put_bytes(&outer, 6, &inner);
    struct bytes top = extension("top", ".p.Base", 10);
    put_text(&b, 1, "b.proto");
    put_text(&b, 2, "q");
    put_text(&b, 3, "a.proto");
    put_bytes(&b, 4, &outer);
    put_bytes(&b, 7, &top);
    put_bytes(&b, 7, &other);
    put_text(&alone, 1, "Alone");
    put_text(&c, 1, "c.proto");
    put_text(&c, 3, "b.proto");
    put_text(&c, 3, "a.proto");
    put_bytes(&c, 4, &alone);
    put_bytes(&set, 1, &a);
    put_bytes(&set, 1, &b);
    put_bytes(&set, 1, &c);
    return set;
}

static void extensions_are_found_by_message_and_number(void **state) {
    (void)state;
    struct bytes bytes = extended_set();
    struct rpc_descriptors set = {bytes.data, bytes.size_bytes};
    struct rpc_descriptors_file file;
    assert_true(rpc_descriptors_find_extension(&set, "p.Base", 10, &file));
    assert_named(&file, "b.proto");
    assert_true(rpc_descriptors_find_extension(&set, "p.Base", 11, &file));
    assert_true(rpc_descriptors_find_extension(&set, "q.Outer", 12, &file));
    assert_false(rpc_descriptors_find_extension(&set, "p.Base", 12, &file));
    assert_false(rpc_descriptors_find_extension(&set, "q.Base", 10, &file));
    assert_false(rpc_descriptors_find_extension(&set, "Base", 10, &file));
    assert_false(rpc_descriptors_find_extension(&set, "p.Base", -1, &file));
    assert_true(rpc_descriptors_find_symbol(&set, "q.top", &file));
    assert_true(rpc_descriptors_find_symbol(&set, "q.Outer.inner", &file));
}

static void extension_numbers_are_listed_as_far_as_there_is_room(void **state) {
    (void)state;
    struct bytes bytes = extended_set();
    struct rpc_descriptors set = {bytes.data, bytes.size_bytes};
    int32_t numbers[3] = {-1, -1, -1};
    assert_int_equal(rpc_descriptors_extensions(&set, "p.Base", numbers, 3), 2);
    assert_int_equal(numbers[0] + numbers[1], 21);
    assert_int_equal(numbers[2], -1);
    numbers[1] = -1;
    assert_int_equal(rpc_descriptors_extensions(&set, "p.Base", numbers, 1), 2);
    assert_int_equal(numbers[1], -1);
    assert_int_equal(rpc_descriptors_extensions(&set, "p.Base", NULL, 0), 2);
    assert_int_equal(rpc_descriptors_extensions(&set, "Alone", numbers, 3), 0);
}

static void a_file_comes_with_its_imports_each_once(void **state) {
    (void)state;
    struct bytes bytes = extended_set();
    struct rpc_descriptors set = {bytes.data, bytes.size_bytes};
    assert_int_equal(rpc_descriptors_file_count(&set), 3);
    struct rpc_descriptors_file file, files[3];
    assert_true(rpc_descriptors_find_symbol(&set, "Alone", &file));
    assert_int_equal(rpc_descriptors_with_imports(&set, &file, files), 3);
    assert_named(&files[0], "c.proto");
    assert_named(&files[1], "b.proto");
    assert_named(&files[2], "a.proto");
    assert_true(rpc_descriptors_find_file(&set, "b.proto", &file));
    assert_int_equal(rpc_descriptors_with_imports(&set, &file, files), 2);
    assert_true(rpc_descriptors_find_file(&set, "a.proto", &file));
    assert_int_equal(rpc_descriptors_with_imports(&set, &file, files), 1);
    assert_named(&files[0], "a.proto");
}

static void a_set_that_is_cut_ends_there(void **state) {
    (void)state;
    struct bytes bytes = extended_set();
    for (size_t size_bytes = 0; size_bytes < bytes.size_bytes; size_bytes++) {
        struct rpc_descriptors set = {bytes.data, size_bytes};
        struct rpc_descriptors_file file;
        assert_false(rpc_descriptors_find_file(&set, "c.proto", &file));
        assert_true(rpc_descriptors_file_count(&set) < 3);
        assert_false(rpc_descriptors_find_symbol(&set, "Alone", &file));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_are_found_by_name),
        cmocka_unit_test(everything_with_a_name_is_found),
        cmocka_unit_test(nothing_else_is_found),
        cmocka_unit_test(messages_are_told_from_the_rest),
        cmocka_unit_test(extensions_are_found_by_message_and_number),
        cmocka_unit_test(extension_numbers_are_listed_as_far_as_there_is_room),
        cmocka_unit_test(a_file_comes_with_its_imports_each_once),
        cmocka_unit_test(a_set_that_is_cut_ends_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
