#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/ring.h"

enum { CAPACITY_COUNT = 64, THREAD_COUNT = 2, ENTRY_COUNT = 1000000 };

static void ring_is_first_in_first_out_between_empty_and_full(void **state) {
    (void)state;
    int values[8];
    struct ring *ring;
    assert_int_equal(ring_open(8, &ring), STATUS_OK);
    assert_null(ring_take(ring));
    for (int round = 0; round < 100; round++) {
        int count = round % 8 + 1; // so that the first cell moves around
        for (int i = 0; i < count; i++)
            assert_true(ring_give(ring, &values[i]));
        if (count == 8) {
            assert_false(ring_give(ring, &values[0]));
            assert_false(ring_give(ring, &values[0]));
        }
        for (int i = 0; i < count; i++)
            assert_ptr_equal(ring_take(ring), &values[i]);
        assert_null(ring_take(ring));
        assert_null(ring_take(ring));
    }
    ring_close(ring);
}

static void ring_takes_again_once_there_is_room(void **state) {
    (void)state;
    int values[3];
    struct ring *ring;
    assert_int_equal(ring_open(2, &ring), STATUS_OK);
    assert_true(ring_give(ring, &values[0]));
    assert_true(ring_give(ring, &values[1]));
    for (int i = 0; i < 1000; i++) {
        assert_false(ring_give(ring, &values[(i + 2) % 3]));
        assert_ptr_equal(ring_take(ring), &values[i % 3]);
        assert_true(ring_give(ring, &values[(i + 2) % 3]));
    }
    ring_close(ring); // entries inside are not its own
    ring_close(NULL);
}

// Plain memory: ThreadSanitizer sees whether the ring orders its use.
struct entry {
    uint32_t producer, number, taken_count;
};

struct crowd {
    struct ring *ring;
    struct entry *entries; // the producers' parts one after the other
    _Atomic uint32_t taken_count;
    _Atomic uint32_t disorder_count;
};

struct member {
    struct crowd *crowd;
    uint32_t index;
};

static void *produce(void *arg) {
    struct member *member = arg;
    struct crowd *crowd = member->crowd;
    for (uint32_t i = 0; i < ENTRY_COUNT / THREAD_COUNT; i++) {
        struct entry *entry = &crowd->entries[member->index * (ENTRY_COUNT / THREAD_COUNT) + i];
        entry->producer = member->index;
        entry->number = i + 1;
        while (!ring_give(crowd->ring, entry))
            sched_yield();
    }
    return NULL;
}

static void *consume(void *arg) {
    struct member *member = arg;
    struct crowd *crowd = member->crowd;
    uint32_t last[THREAD_COUNT] = {0};
    while (atomic_load(&crowd->taken_count) < ENTRY_COUNT) {
        struct entry *entry = ring_take(crowd->ring);
        if (entry == NULL) {
            sched_yield();
            continue;
        }
        entry->taken_count++;
        // One consumer sees the entries of one producer in the order in which they were given.
        if (entry->number <= last[entry->producer]) atomic_fetch_add(&crowd->disorder_count, 1);
        last[entry->producer] = entry->number;
        atomic_fetch_add(&crowd->taken_count, 1);
    }
    return NULL;
}

static void ring_loses_and_doubles_nothing_between_threads(void **state) {
    (void)state;
    struct crowd crowd = {.entries = calloc(ENTRY_COUNT, sizeof(struct entry))};
    assert_non_null(crowd.entries);
    assert_int_equal(ring_open(CAPACITY_COUNT, &crowd.ring), STATUS_OK);
    pthread_t threads[2 * THREAD_COUNT];
    struct member members[2 * THREAD_COUNT];
    for (uint32_t i = 0; i < 2 * THREAD_COUNT; i++) {
        members[i] = (struct member){&crowd, i / 2};
        assert_int_equal(
            pthread_create(&threads[i], NULL, i % 2 == 0 ? produce : consume, &members[i]), 0);
    }
    for (int i = 0; i < 2 * THREAD_COUNT; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(crowd.disorder_count, 0);
    assert_int_equal(crowd.taken_count, ENTRY_COUNT);
    for (size_t i = 0; i < ENTRY_COUNT; i++)
        assert_int_equal(crowd.entries[i].taken_count, 1);
    assert_null(ring_take(crowd.ring));
    ring_close(crowd.ring);
    free(crowd.entries);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ring_is_first_in_first_out_between_empty_and_full),
        cmocka_unit_test(ring_takes_again_once_there_is_room),
        cmocka_unit_test(ring_loses_and_doubles_nothing_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
