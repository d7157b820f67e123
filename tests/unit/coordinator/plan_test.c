#include "coordinator/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void plan_even_covers_every_layer_once(void **state) {
    (void)state;
    for (uint32_t layers = 1; layers <= 70; layers++) {
        for (uint32_t stages = 1; stages <= layers && stages <= PIPELINE_STAGE_COUNT_MAX;
             stages++) {
            struct plan plan;
            assert_int_equal(plan_even(layers, stages, &plan, NULL), STATUS_OK);
            uint32_t next = 0;
            for (uint32_t i = 0; i < stages; i++) {
                assert_int_equal(plan.layer_firsts[i], next);
                assert_in_range(plan.layer_counts[i], layers / stages,
                                (layers + stages - 1) / stages);
                next += plan.layer_counts[i];
            }
            assert_int_equal(next, layers);
        }
    }
}

static void plan_even_refuses_more_stages_than_layers(void **state) {
    (void)state;
    struct plan plan;
    struct error error;
    assert_int_equal(plan_even(8, 9, &plan, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "stages is 9"));
    assert_non_null(strstr(error.text, "1 to 8"));
    assert_int_equal(plan_even(8, 0, &plan, &error), STATUS_INVALID);
    assert_int_equal(plan_even(1000, PIPELINE_STAGE_COUNT_MAX + 1, &plan, &error), STATUS_INVALID);
}

static void plan_parse_reads_layer_counts(void **state) {
    (void)state;
    struct plan plan;
    assert_int_equal(plan_parse("5,1,2", 8, &plan, NULL), STATUS_OK);
    assert_int_equal(plan.stage_count, 3);
    assert_int_equal(plan.layer_counts[0], 5);
    assert_int_equal(plan.layer_firsts[1], 5);
    assert_int_equal(plan.layer_counts[1], 1);
    assert_int_equal(plan.layer_firsts[2], 6);
    assert_int_equal(plan.layer_counts[2], 2);
}

static void plan_parse_refuses_what_is_not_a_split(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",      "5",          "5,4",  "5,,3", ",5,3", "5,3,", "0,8",   "8,0",
        "-5,13", "5;3",        "5, 3", "five", "5,3x", "9",    "5,3,0", "99999999999999999999,3",
        "1e1",   "4294967304",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct plan plan;
        struct error error = {0};
        assert_int_equal(plan_parse(texts[i], 8, &plan, &error), STATUS_INVALID);
        assert_non_null(strstr(error.text, "layers"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_even_covers_every_layer_once),
        cmocka_unit_test(plan_even_refuses_more_stages_than_layers),
        cmocka_unit_test(plan_parse_reads_layer_counts),
        cmocka_unit_test(plan_parse_refuses_what_is_not_a_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
