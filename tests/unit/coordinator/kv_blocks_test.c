#include "coordinator/kv_blocks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"

struct content {
    uint32_t tokens[KV_BLOCK_POSITION_COUNT];
};

static struct content content_of(uint32_t number) {
    struct content content;
    for (uint32_t i = 0; i < KV_BLOCK_POSITION_COUNT; i++)
        content.tokens[i] = number * 100 + i;
    return content;
}

static uint32_t find(struct kv_blocks *blocks, uint32_t parent_id, const char *salt,
                     uint32_t number) {
    struct content content = content_of(number);
    struct kv_block_key key = {.parent_id = parent_id, .salt = salt, .tokens = content.tokens};
    return kv_blocks_find(blocks, &key);
}

// Takes a block and says that it holds this.
static uint32_t fill(struct kv_blocks *blocks, uint32_t parent_id, const char *salt,
                     uint32_t number) {
    struct content content = content_of(number);
    struct kv_block_key key = {.parent_id = parent_id, .salt = salt, .tokens = content.tokens};
    return kv_blocks_publish(blocks, &key, kv_blocks_take(blocks));
}

static struct kv_blocks *open_cached(uint32_t block_count) {
    struct kv_blocks *blocks;
    assert_int_equal(kv_blocks_open_cached(block_count, 7, &blocks), STATUS_OK);
    return blocks;
}

static void blocks_are_found_by_tokens_parent_and_salt(void **state) {
    (void)state;
    struct kv_blocks *blocks = open_cached(8);
    uint32_t root = fill(blocks, KV_BLOCK_NONE, "a", 1);
    uint32_t child = fill(blocks, root, NULL, 2);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, "a", 1), root);
    assert_int_equal(find(blocks, root, NULL, 2), child);
    assert_int_equal(kv_blocks_reference_count(blocks, root), 2);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, "b", 1), KV_BLOCK_NONE);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, NULL, 1), KV_BLOCK_NONE);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, "a", 2), KV_BLOCK_NONE);
    assert_int_equal(find(blocks, child, NULL, 2), KV_BLOCK_NONE);
    kv_blocks_close(blocks);
}

static void one_other_token_is_another_block(void **state) {
    (void)state;
    struct kv_blocks *blocks = open_cached(8);
    uint32_t root = fill(blocks, KV_BLOCK_NONE, NULL, 1);
    for (uint32_t i = 0; i < KV_BLOCK_POSITION_COUNT; i++) {
        struct content content = content_of(1);
        content.tokens[i]++;
        struct kv_block_key key = {.parent_id = KV_BLOCK_NONE, .tokens = content.tokens};
        assert_int_equal(kv_blocks_find(blocks, &key), KV_BLOCK_NONE);
    }
    assert_int_equal(find(blocks, KV_BLOCK_NONE, NULL, 1), root);
    kv_blocks_close(blocks);
}

static void blocks_stay_cached_until_they_are_taken_least_recently_used_first(void **state) {
    (void)state;
    struct kv_blocks *blocks = open_cached(3);
    uint32_t first = fill(blocks, KV_BLOCK_NONE, NULL, 1);
    uint32_t second = fill(blocks, KV_BLOCK_NONE, NULL, 2);
    kv_blocks_give(blocks, first);
    kv_blocks_give(blocks, second);
    assert_int_equal(kv_blocks_free_count(blocks), 3);
    assert_int_equal(kv_blocks_cached_count(blocks), 2);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, NULL, 1), first);
    kv_blocks_give(blocks, first);
    // The blank one, then the second, which was used before the first.
    uint32_t blank = kv_blocks_take(blocks);
    assert_true(blank != first && blank != second);
    assert_int_equal(kv_blocks_cached_count(blocks), 2);
    assert_int_equal(kv_blocks_take(blocks), second);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, NULL, 2), KV_BLOCK_NONE);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, NULL, 1), first);
    assert_int_equal(kv_blocks_free_count(blocks), 0);
    kv_blocks_close(blocks);
}

static void a_block_leaves_the_cache_before_the_one_it_continues(void **state) {
    (void)state;
    struct kv_blocks *blocks = open_cached(3);
    uint32_t ids[3] = {0};
    for (uint32_t i = 0; i < 3; i++)
        ids[i] = fill(blocks, i == 0 ? KV_BLOCK_NONE : ids[i - 1], NULL, i);
    for (uint32_t i = 3; i > 0; i--)
        kv_blocks_give(blocks, ids[i - 1]);
    for (uint32_t i = 3; i > 0; i--)
        assert_int_equal(kv_blocks_take(blocks), ids[i - 1]);
    kv_blocks_close(blocks);
}

static void the_first_block_of_equal_ones_is_kept(void **state) {
    (void)state;
    struct kv_blocks *blocks = open_cached(4);
    uint32_t first = fill(blocks, KV_BLOCK_NONE, NULL, 1);
    uint32_t again = fill(blocks, KV_BLOCK_NONE, NULL, 1);
    assert_int_equal(again, first);
    assert_int_equal(kv_blocks_reference_count(blocks, first), 2);
    assert_int_equal(kv_blocks_free_count(blocks), 3);
    assert_int_equal(kv_blocks_cached_count(blocks), 0);
    kv_blocks_close(blocks);
}

static void nothing_is_known_after_forgetting(void **state) {
    (void)state;
    struct kv_blocks *blocks = open_cached(4);
    uint32_t root = fill(blocks, KV_BLOCK_NONE, NULL, 1);
    uint32_t child = fill(blocks, root, NULL, 2);
    kv_blocks_give(blocks, child);
    kv_blocks_give(blocks, root);
    kv_blocks_forget(blocks);
    assert_int_equal(kv_blocks_free_count(blocks), 4);
    assert_int_equal(kv_blocks_cached_count(blocks), 0);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, NULL, 1), KV_BLOCK_NONE);
    for (int i = 0; i < 4; i++)
        (void)kv_blocks_take(blocks);
    assert_int_equal(kv_blocks_free_count(blocks), 0);
    kv_blocks_close(blocks);
}

static void without_a_cache_nothing_is_found(void **state) {
    (void)state;
    struct kv_blocks *blocks;
    assert_int_equal(kv_blocks_open(2, &blocks), STATUS_OK);
    uint32_t block_id = fill(blocks, KV_BLOCK_NONE, NULL, 1);
    assert_int_equal(find(blocks, KV_BLOCK_NONE, NULL, 1), KV_BLOCK_NONE);
    kv_blocks_give(blocks, block_id);
    assert_int_equal(kv_blocks_cached_count(blocks), 0);
    assert_int_equal(kv_blocks_free_count(blocks), 2);
    kv_blocks_close(blocks);
}

// Chains that are taken and given at random: counts add up, and what is found is what was put.
static void chains_keep_their_contents(void **state) {
    (void)state;
    enum { BLOCK_COUNT = 24, CHAIN_COUNT = 6, LENGTH = 5 };
    struct kv_blocks *blocks = open_cached(BLOCK_COUNT);
    uint32_t chains[CHAIN_COUNT][LENGTH] = {{0}}, lengths[CHAIN_COUNT] = {0},
             roots[CHAIN_COUNT] = {0};
    uint64_t hit_count = 0;
    for (uint64_t draw = 0; draw < 20000; draw += 2) {
        uint32_t c = (uint32_t)(rng_uniform(3, draw) * CHAIN_COUNT);
        while (lengths[c] > 0)
            kv_blocks_give(blocks, chains[c][--lengths[c]]);
        roots[c] = (uint32_t)(rng_uniform(3, draw + 1) * 8);
        for (uint32_t i = 0; i < LENGTH && kv_blocks_free_count(blocks) > 0; i++) {
            uint32_t parent_id = i == 0 ? KV_BLOCK_NONE : chains[c][i - 1];
            uint32_t block_id = find(blocks, parent_id, NULL, roots[c] * LENGTH + i);
            hit_count += block_id != KV_BLOCK_NONE ? 1 : 0;
            if (block_id == KV_BLOCK_NONE)
                block_id = fill(blocks, parent_id, NULL, roots[c] * LENGTH + i);
            chains[c][lengths[c]++] = block_id;
        }
        // Equal chains have equal blocks, others have none in common.
        for (uint32_t a = 0; a < CHAIN_COUNT; a++)
            for (uint32_t i = 0; i < lengths[a] && i < lengths[c]; i++)
                assert_int_equal(chains[a][i] == chains[c][i], roots[a] == roots[c]);
    }
    assert_true(hit_count > 10000);
    for (uint32_t c = 0; c < CHAIN_COUNT; c++)
        while (lengths[c] > 0)
            kv_blocks_give(blocks, chains[c][--lengths[c]]);
    assert_int_equal(kv_blocks_free_count(blocks), BLOCK_COUNT);
    kv_blocks_close(blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_found_by_tokens_parent_and_salt),
        cmocka_unit_test(one_other_token_is_another_block),
        cmocka_unit_test(blocks_stay_cached_until_they_are_taken_least_recently_used_first),
        cmocka_unit_test(a_block_leaves_the_cache_before_the_one_it_continues),
        cmocka_unit_test(the_first_block_of_equal_ones_is_kept),
        cmocka_unit_test(nothing_is_known_after_forgetting),
        cmocka_unit_test(without_a_cache_nothing_is_found),
        cmocka_unit_test(chains_keep_their_contents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
