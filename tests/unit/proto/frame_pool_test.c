#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/frame_pool.h"

static void pool_lends_each_frame_once(void **state) {
    (void)state;
    struct frame_pool *pool;
    assert_int_equal(frame_pool_open(3, 1000, &pool), STATUS_OK);
    assert_int_equal(frame_pool_count(pool), 3);
    assert_int_equal(frame_pool_capacity_bytes(pool), 1000);
    struct frame *frames[3];
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(frame_pool_free_count(pool), 3 - i);
        frames[i] = frame_pool_take(pool);
        assert_non_null(frames[i]);
        assert_true(frames[i]->capacity_bytes >= 1000);
        assert_int_equal((uintptr_t)frames[i]->data % FRAME_ALIGNMENT, 0);
        memset(frames[i]->data, (int)i, frames[i]->capacity_bytes);
        for (uint32_t j = 0; j < i; j++)
            assert_ptr_not_equal(frames[i], frames[j]);
    }
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(frames[i]->data[999], i);
    assert_null(frame_pool_take(pool));
    frame_pool_give(pool, frames[1]);
    assert_ptr_equal(frame_pool_take(pool), frames[1]); // the one used last
    assert_null(frame_pool_take(pool));
    frame_pool_close(pool); // with all frames lent
    frame_pool_close(NULL);
}

static void pool_may_be_empty(void **state) {
    (void)state;
    struct frame_pool *pool;
    assert_int_equal(frame_pool_open(0, 1000, &pool), STATUS_OK);
    assert_null(frame_pool_take(pool));
    frame_pool_close(pool);
}

static void pool_without_memory_is_refused(void **state) {
    (void)state;
    struct frame_pool *pool = NULL;
    volatile size_t huge = SIZE_MAX - 1;
    assert_int_equal(frame_pool_open(2, huge, &pool), STATUS_NO_MEMORY);
    assert_null(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_lends_each_frame_once),
        cmocka_unit_test(pool_may_be_empty),
        cmocka_unit_test(pool_without_memory_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
