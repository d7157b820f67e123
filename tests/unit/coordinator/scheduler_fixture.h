// A scheduler with blocks and sequences of its own, for tests.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/scheduler.h"

enum { SEQUENCE_COUNT = 64 };

struct fixture {
    struct kv_blocks *blocks;
    struct scheduler *scheduler;
    struct scheduler_config config;
    struct scheduler_pick picks[64];
    struct sequence sequences[SEQUENCE_COUNT];
    uint32_t sequence_count;
};

static inline void open_fixture(struct fixture *f, struct scheduler_config config,
                                uint32_t block_count) {
    memset(f, 0, sizeof(*f));
    f->config = config;
    assert_int_equal(kv_blocks_open_cached(block_count, 1, &f->blocks), STATUS_OK);
    assert_int_equal(scheduler_open(&config, f->blocks, &f->scheduler), STATUS_OK);
}

static inline void close_fixture(struct fixture *f) {
    for (uint32_t i = 0; i < f->sequence_count; i++) {
        scheduler_remove(f->scheduler, &f->sequences[i]);
        f->sequences[i].in_flight_count = 0;
        sequence_fini(&f->sequences[i]);
    }
    assert_int_equal(kv_blocks_free_count(f->blocks), kv_blocks_total_count(f->blocks));
    scheduler_close(f->scheduler);
    kv_blocks_close(f->blocks);
}

// Has a prompt of its own, and waits for nobody; scheduler_add is yet to come.
static inline struct sequence *make(struct fixture *f, uint32_t prompt_count) {
    assert_true(f->sequence_count < SEQUENCE_COUNT);
    uint32_t *prompt = calloc(prompt_count, sizeof(*prompt));
    for (uint32_t i = 0; i < prompt_count; i++)
        prompt[i] = f->sequence_count * 1000 + i;
    struct sequence *sequence = &f->sequences[f->sequence_count++];
    assert_int_equal(sequence_init(sequence, prompt, prompt_count), STATUS_OK);
    sequence->sampling.repetition_penalty = 1;
    free(prompt);
    return sequence;
}

static inline struct sequence *add(struct fixture *f, uint32_t prompt_count) {
    struct sequence *sequence = make(f, prompt_count);
    assert_int_equal(scheduler_add(f->scheduler, sequence), STATUS_OK);
    return sequence;
}

// The pick of a sequence in a microbatch of so many; NULL: it has none.
static inline const struct scheduler_pick *pick_of(const struct fixture *f, uint32_t pick_count,
                                                   const struct sequence *sequence) {
    for (uint32_t i = 0; i < pick_count; i++)
        if (f->picks[i].sequence == sequence) return &f->picks[i];
    return NULL;
}

// Every row that draws and whose token is not known yet gets one.
static inline void draw_all(struct fixture *f, uint32_t token_id) {
    for (uint32_t i = 0; i < f->sequence_count; i++) {
        struct sequence *sequence = &f->sequences[i];
        if (sequence->state != SEQUENCE_RUNNING) continue;
        while (sequence->token_count <= sequence->issued_count)
            assert_int_equal(sequence_append(sequence, token_id), STATUS_OK);
    }
}
