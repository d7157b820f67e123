// The sampler against a slow and obvious one that sorts the whole vocabulary, against cases worked
// out by hand, and against the distribution that it should draw from.
#include "stage/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/rng.h"
#include "stage/backend.h"

enum { VOCABULARY_MAX = 6000, RANDOM_CASE_COUNT = 6000, TOP_MAX = REQUEST_TOP_LOGPROB_COUNT_MAX };
static const uint64_t RANDOM_SEED = 20240611;

struct random {
    uint64_t seed, position;
};

static double random_unit(struct random *random) {
    return rng_uniform(random->seed, random->position++);
}

static uint32_t random_below(struct random *random, uint32_t bound) {
    return (uint32_t)(random_unit(random) * bound);
}

static struct frame_sequence plain_sequence(void) {
    return (struct frame_sequence){
        .sequence_id = 7, .temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

// -- the slow sampler -----------------------------------------------------------------------------

struct candidate {
    uint32_t token;
    double logit;
    double weight;
};

static int more_likely_first(const void *a, const void *b) {
    const struct candidate *left = a;
    const struct candidate *right = b;
    if (left->weight != right->weight) return left->weight > right->weight ? -1 : 1;
    return left->token < right->token ? -1 : left->token > right->token;
}

static int lower_id_first(const void *a, const void *b) {
    const struct candidate *left = a;
    const struct candidate *right = b;
    return left->token < right->token ? -1 : left->token > right->token;
}

static double sum_of(const struct candidate *candidates, uint32_t count) {
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += candidates[i].weight;
    return sum;
}

static void slow_penalize(struct candidate *c, const struct frame_sequence *s,
                          const struct frame_bias *biases, const struct frame_history *history) {
    for (uint32_t i = 0; i < s->history_count; i++) {
        const struct frame_history *h = &history[s->history_first + i];
        double x = c[h->token_id].logit;
        x = x > 0 ? x / s->repetition_penalty : x * s->repetition_penalty;
        if (h->output_count > 0) x -= s->presence_penalty;
        x -= (double)s->frequency_penalty * h->output_count;
        c[h->token_id].logit = (float)x;
    }
    for (uint32_t i = 0; i < s->bias_count; i++) {
        const struct frame_bias *b = &biases[s->bias_first + i];
        c[b->token_id].logit = (float)(c[b->token_id].logit + b->bias);
    }
}

// Returns how many of the candidates, most likely first, the filters keep.
static uint32_t slow_filter(const struct candidate *c, const struct frame_sequence *s,
                            uint32_t count) {
    if (s->top_k > 0 && s->top_k < count) count = s->top_k;
    if (s->top_p < 1) {
        double wanted = (double)s->top_p * sum_of(c, count);
        double sum = c[0].weight;
        uint32_t kept = 1;
        while (kept < count && sum < wanted)
            sum += c[kept++].weight;
        count = kept;
    }
    while (count > 1 && c[count - 1].weight < (double)s->min_p * c[0].weight)
        count--;
    return count;
}

static uint32_t slow_draw(const float *logits, uint32_t count, const struct frame_sequence *s,
                          uint64_t position, const struct frame_bias *biases,
                          const struct frame_history *history) {
    static struct candidate c[VOCABULARY_MAX];
    for (uint32_t i = 0; i < count; i++)
        c[i] = (struct candidate){.token = i, .logit = logits[i]};
    slow_penalize(c, s, biases, history);
    double max = -INFINITY;
    for (uint32_t i = 0; i < count; i++)
        max = fmax(max, c[i].logit);
    for (uint32_t i = 0; i < count; i++)
        c[i].weight = s->temperature > 0 ? exp((c[i].logit - max) / s->temperature)
                                         : (double)(c[i].logit == max);
    qsort(c, count, sizeof(c[0]), more_likely_first);
    if (s->temperature == 0) return c[0].token;
    uint32_t kept = slow_filter(c, s, count);
    qsort(c, kept, sizeof(c[0]), lower_id_first);
    double target = rng_uniform(s->seed, position) * sum_of(c, kept);
    double sum = 0;
    for (uint32_t i = 0; i < kept; i++) {
        sum += c[i].weight;
        if (sum > target) return c[i].token;
    }
    return c[kept - 1].token;
}

// -- random cases ---------------------------------------------------------------------------------

struct sampler_case {
    uint32_t vocabulary_size;
    float logits[VOCABULARY_MAX];
    struct frame_sequence sequence;
    uint64_t position;
    struct frame_bias biases[12];
    struct frame_history history[VOCABULARY_MAX];
};

static float random_pick(struct random *random, const float *values, uint32_t count) {
    return values[random_below(random, count)];
}

static void random_penalties(struct random *random, struct sampler_case *c) {
    static const float penalties[] = {-2, -0.5f, 0, 0.25f, 1, 2};
    static const float biases[] = {-100, -3, -0.5f, 0, 1, 100};
    struct frame_sequence *s = &c->sequence;
    s->repetition_penalty = random_pick(random, (float[]){0.5f, 1, 1.1f, 1.5f, 10}, 5);
    s->presence_penalty = random_pick(random, penalties, 6);
    s->frequency_penalty = random_pick(random, penalties, 6);
    // Entries before the sequence's own belong to another sequence and must not count.
    s->history_first = random_below(random, 3);
    uint32_t entry = s->history_first;
    for (uint32_t token = 0; token < c->vocabulary_size && entry < VOCABULARY_MAX; token++) {
        if (random_below(random, 3) > 0) continue;
        c->history[entry++] = (struct frame_history){token, random_below(random, 4)};
    }
    s->history_count = entry - s->history_first;
    s->bias_first = random_below(random, 3);
    s->bias_count = random_below(random, 10);
    for (uint32_t i = 0; i < 12; i++) {
        c->biases[i].token_id = random_below(random, c->vocabulary_size);
        c->biases[i].bias = random_pick(random, biases, 6);
    }
}

static void random_case(struct random *random, struct sampler_case *c) {
    memset(c, 0, sizeof(*c));
    // Some are large enough for every kind of shortcut, most are small and quick to sort.
    uint32_t vocabulary_max = random_below(random, 20) == 0 ? VOCABULARY_MAX : 600;
    c->vocabulary_size = 1 + random_below(random, vocabulary_max);
    float spread = random_pick(random, (float[]){0, 0.01f, 1, 4, 30}, 5);
    // Logits on a coarse grid tie often.
    bool ties = random_below(random, 3) == 0;
    for (uint32_t i = 0; i < c->vocabulary_size; i++) {
        float x = (float)(random_unit(random) * 2 - 1) * spread;
        c->logits[i] = ties ? roundf(x) : x;
        if (random_below(random, 50) == 0) c->logits[i] = -INFINITY;
    }
    c->logits[random_below(random, c->vocabulary_size)] = spread;
    c->position = random_below(random, 100000);
    struct frame_sequence *s = &c->sequence;
    *s = plain_sequence();
    s->seed = (uint64_t)(random_unit(random) * 0x1p53);
    s->temperature = random_pick(random, (float[]){0, 1e-6f, 0.3f, 0.7f, 1, 1.3f, 100}, 7);
    s->top_k = random_below(random, 3) == 0 ? random_below(random, c->vocabulary_size + 5) : 0;
    if (random_below(random, 2) == 0)
        s->top_p = random_pick(random, (float[]){0, 1e-9f, 0.1f, 0.5f, 0.9f, 0.999f}, 6);
    if (random_below(random, 3) == 0)
        s->min_p = random_pick(random, (float[]){1e-6f, 0.05f, 0.3f, 1}, 4);
    if (random_below(random, 2) == 0) random_penalties(random, c);
}

static void sampler_draws_what_a_full_sort_draws(void **state) {
    (void)state;
    static struct sampler_case c;
    struct random random = {.seed = RANDOM_SEED};
    print_message("seed %llu\n", (unsigned long long)RANDOM_SEED);
    for (int i = 0; i < RANDOM_CASE_COUNT; i++) {
        random_case(&random, &c);
        struct sampler *sampler;
        assert_int_equal(sampler_open(c.vocabulary_size, &sampler), STATUS_OK);
        struct frame_sample sample;
        const struct frame_view frame = {.biases = c.biases, .history = c.history};
        sampler_draw(sampler, c.logits, &c.sequence, c.position, &frame, &sample, NULL);
        sampler_close(sampler);
        assert_int_equal(sample.outcome, FRAME_SAMPLE_DRAWN);
        uint32_t slow =
            slow_draw(c.logits, c.vocabulary_size, &c.sequence, c.position, c.biases, c.history);
        if (sample.token_id != slow)
            fail_msg("case %d: drew %u, the slow sampler %u", i, sample.token_id, slow);
    }
}

// History with one more of this token in the output.
static void add_output(struct sampler_case *c, uint32_t token_id) {
    for (uint32_t i = 0; i < c->sequence.history_count; i++) {
        struct frame_history *seen = &c->history[c->sequence.history_first + i];
        if (seen->token_id != token_id) continue;
        seen->output_count++;
        return;
    }
    c->history[c->sequence.history_first + c->sequence.history_count++] =
        (struct frame_history){.token_id = token_id, .output_count = 1};
}

static void sampler_counts_a_token_that_history_is_too_old_for(void **state) {
    (void)state;
    static struct sampler_case c;
    struct random random = {.seed = RANDOM_SEED + 1};
    uint32_t differing_count = 0;
    for (int i = 0; i < RANDOM_CASE_COUNT; i++) {
        random_case(&random, &c);
        if (c.sequence.history_count == 0) continue;
        struct sampler *sampler;
        assert_int_equal(sampler_open(c.vocabulary_size, &sampler), STATUS_OK);
        // Half of them in the history already.
        uint32_t tokens[] = {0, 0, random_below(&random, c.vocabulary_size)};
        if (i % 2 == 0) tokens[2] = c.history[c.sequence.history_first].token_id;
        struct frame_view frame = {.biases = c.biases, .history = c.history, .tokens = tokens};
        struct frame_sample samples[3];
        sampler_draw(sampler, c.logits, &c.sequence, c.position, &frame, &samples[0], NULL);
        c.sequence.token_lag = 1;
        c.sequence.row_first = 2;
        sampler_draw(sampler, c.logits, &c.sequence, c.position, &frame, &samples[1], NULL);
        c.sequence.token_lag = 0;
        add_output(&c, tokens[2]);
        sampler_draw(sampler, c.logits, &c.sequence, c.position, &frame, &samples[2], NULL);
        sampler_close(sampler);
        assert_int_equal(samples[1].token_id, samples[2].token_id);
        differing_count += samples[0].token_id != samples[1].token_id ? 1 : 0;
    }
    assert_true(differing_count > 20); // or the test shows nothing
}

// -- single behaviours ----------------------------------------------------------------------------

static struct frame_sample draw(const float *logits, uint32_t count,
                                const struct frame_sequence *sequence, uint64_t position,
                                const struct frame_bias *biases,
                                const struct frame_history *history, struct frame_top *tops) {
    struct sampler *sampler;
    assert_int_equal(sampler_open(count, &sampler), STATUS_OK);
    struct frame_sample sample;
    // The frame is read only.
    const struct frame_view frame = {.biases = (struct frame_bias *)biases,
                                     .history = (struct frame_history *)history};
    sampler_draw(sampler, logits, sequence, position, &frame, &sample, tops);
    sampler_close(sampler);
    assert_int_equal(sample.sequence_id, sequence->sequence_id);
    return sample;
}

static void sampler_draws_each_token_as_often_as_its_probability(void **state) {
    (void)state;
    enum { COUNT = 8, DRAW_COUNT = 40000 };
    const float logits[COUNT] = {0, 1, -1, 2, 0.5f, -2, 1.5f, 0};
    struct frame_sequence sequence = plain_sequence();
    sequence.seed = 99;
    sequence.temperature = 0.8f;
    double weights[COUNT];
    double total = 0;
    for (int i = 0; i < COUNT; i++)
        total += weights[i] = exp(logits[i] / (double)sequence.temperature);
    uint32_t counts[COUNT] = {0};
    struct sampler *sampler;
    assert_int_equal(sampler_open(COUNT, &sampler), STATUS_OK);
    for (uint64_t position = 0; position < DRAW_COUNT; position++) {
        struct frame_sample sample;
        sampler_draw(sampler, logits, &sequence, position, &(struct frame_view){0}, &sample, NULL);
        counts[sample.token_id]++;
    }
    sampler_close(sampler);
    double chi_square = 0;
    for (int i = 0; i < COUNT; i++) {
        double expected = DRAW_COUNT * weights[i] / total;
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    // The 0.999 quantile for 7 degrees of freedom; seed and positions are fixed.
    assert_true(chi_square < 24.3);
}

static void sampler_draws_the_same_for_the_same_seed_and_position(void **state) {
    (void)state;
    float logits[100];
    for (int i = 0; i < 100; i++)
        logits[i] = (float)(i % 7) * 0.1f;
    struct frame_sequence sequence = plain_sequence();
    int different_count = 0;
    for (uint64_t position = 0; position < 50; position++) {
        sequence.seed = 5;
        uint32_t first = draw(logits, 100, &sequence, position, NULL, NULL, NULL).token_id;
        assert_int_equal(draw(logits, 100, &sequence, position, NULL, NULL, NULL).token_id, first);
        sequence.seed = 6;
        different_count +=
            draw(logits, 100, &sequence, position, NULL, NULL, NULL).token_id != first;
    }
    assert_true(different_count > 40);
}

static void sampler_takes_the_lowest_id_of_equal_logits_when_greedy(void **state) {
    (void)state;
    const float logits[] = {1, 3, 2, 3, 3};
    struct frame_sequence sequence = plain_sequence();
    sequence.temperature = 0;
    assert_int_equal(draw(logits, 5, &sequence, 0, NULL, NULL, NULL).token_id, 1);
}

// Which of `count` tokens appear in many draws, as a set of bits.
static uint32_t tokens_drawn(const float *logits, uint32_t count, struct frame_sequence *sequence) {
    uint32_t set = 0;
    for (uint64_t position = 0; position < 400; position++)
        set |= 1u << draw(logits, count, sequence, position, NULL, NULL, NULL).token_id;
    return set;
}

static void sampler_filters_keep_lower_ids_of_equal_probabilities(void **state) {
    (void)state;
    const float logits[] = {0, 1, 0, 1, 0, 1};
    struct frame_sequence sequence = plain_sequence();
    sequence.top_k = 2;
    assert_int_equal(tokens_drawn(logits, 6, &sequence), 0x0a);
    sequence.top_k = 4;
    assert_int_equal(tokens_drawn(logits, 6, &sequence), 0x2b);
    sequence.top_k = 0;
    const float equal[] = {2, 2, 2, 2};
    sequence.top_p = 0.5f;
    assert_int_equal(tokens_drawn(equal, 4, &sequence), 0x3);
    sequence.top_p = 0.51f;
    assert_int_equal(tokens_drawn(equal, 4, &sequence), 0x7);
}

static void sampler_keeps_at_least_the_most_likely_token(void **state) {
    (void)state;
    const float logits[] = {0.1f, 0.3f, 0.2f};
    struct frame_sequence sequence = plain_sequence();
    sequence.top_p = 0;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x2);
    sequence.top_p = 1e-30f;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x2);
    sequence.top_p = 1;
    sequence.min_p = 1;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x2);
    sequence.min_p = 0;
    sequence.top_k = 1;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x2);
}

static void sampler_top_p_counts_what_top_k_kept(void **state) {
    (void)state;
    // Probabilities 4/9, 2/9, 1/9, 1/9, 1/9; after top-k 2 they are 2/3 and 1/3.
    const float ln2 = 0.693147181f;
    const float logits[] = {2 * ln2, ln2, 0, 0, 0};
    struct frame_sequence sequence = plain_sequence();
    sequence.top_p = 0.6f;
    assert_int_equal(tokens_drawn(logits, 5, &sequence), 0x3);
    sequence.top_k = 2;
    assert_int_equal(tokens_drawn(logits, 5, &sequence), 0x1);
}

static void sampler_ignores_top_k_beyond_the_vocabulary(void **state) {
    (void)state;
    const float logits[] = {0, 0, 0};
    struct frame_sequence sequence = plain_sequence();
    sequence.top_k = UINT32_MAX;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x7);
}

static void sampler_survives_extreme_logits_and_temperatures(void **state) {
    (void)state;
    const float logits[] = {-3e38f, 1.001f, 1, 3e38f, -INFINITY};
    struct frame_sequence sequence = plain_sequence();
    sequence.temperature = 1e-6f;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x2);
    assert_int_equal(tokens_drawn(logits, 5, &sequence), 0x8);
    sequence.temperature = 1e-45f;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x2);
    sequence.temperature = 100;
    assert_int_equal(tokens_drawn(logits, 3, &sequence), 0x6);
}

static void sampler_penalizes_as_worked_out_by_hand(void **state) {
    (void)state;
    struct frame_sequence sequence = plain_sequence();
    sequence.temperature = 0;
    sequence.history_count = 1;
    // Repetition: 4 / 2 = 2 is less than 2.5, 4 / 1.5 = 2.67 is not; -1 * 2 = -2 is less than -1.5.
    const float logits[] = {4, 2.5f};
    const struct frame_history in_prompt[] = {{0, 0}};
    sequence.repetition_penalty = 2;
    assert_int_equal(draw(logits, 2, &sequence, 0, NULL, in_prompt, NULL).token_id, 1);
    sequence.repetition_penalty = 1.5f;
    assert_int_equal(draw(logits, 2, &sequence, 0, NULL, in_prompt, NULL).token_id, 0);
    const float negative[] = {-1, -1.5f};
    sequence.repetition_penalty = 2;
    assert_int_equal(draw(negative, 2, &sequence, 0, NULL, in_prompt, NULL).token_id, 1);
    // Presence and frequency are for tokens of the output only.
    sequence.repetition_penalty = 1;
    sequence.presence_penalty = 2;
    sequence.frequency_penalty = 2;
    assert_int_equal(draw(logits, 2, &sequence, 0, NULL, in_prompt, NULL).token_id, 0);
    const struct frame_history in_output[] = {{0, 3}};
    sequence.presence_penalty = 1.4f; // 4 - 1.4 = 2.6
    sequence.frequency_penalty = 0;
    assert_int_equal(draw(logits, 2, &sequence, 0, NULL, in_output, NULL).token_id, 0);
    sequence.presence_penalty = 1.6f; // 2.4
    assert_int_equal(draw(logits, 2, &sequence, 0, NULL, in_output, NULL).token_id, 1);
    sequence.presence_penalty = 0;
    sequence.frequency_penalty = 0.4f; // 4 - 3 * 0.4 = 2.8
    assert_int_equal(draw(logits, 2, &sequence, 0, NULL, in_output, NULL).token_id, 0);
    sequence.presence_penalty = 0.4f; // 2.4
    assert_int_equal(draw(logits, 2, &sequence, 0, NULL, in_output, NULL).token_id, 1);
}

static void sampler_adds_biases(void **state) {
    (void)state;
    const float logits[] = {30, 0, -30};
    const struct frame_bias biases[] = {{0, 100}, {2, 100}, {0, -100}};
    struct frame_sequence sequence = plain_sequence();
    sequence.bias_first = 1;
    sequence.bias_count = 1;
    assert_int_equal(draw(logits, 3, &sequence, 0, biases, NULL, NULL).token_id, 2);
    sequence.bias_count = 2;
    sequence.temperature = 0;
    assert_int_equal(draw(logits, 3, &sequence, 0, biases, NULL, NULL).token_id, 2);
    sequence.bias_first = 2;
    sequence.bias_count = 1;
    assert_int_equal(draw(logits, 3, &sequence, 0, biases, NULL, NULL).token_id, 1);
}

static void sampler_refuses_logits_that_are_not_finite(void **state) {
    (void)state;
    struct frame_sequence sequence = plain_sequence();
    sequence.flags = FRAME_SAMPLE | FRAME_LOGPROBS;
    sequence.top_logprob_count = 2;
    const float bad[][3] = {{1, NAN, 0},
                            {NAN, 1, 0},
                            {0, 1, INFINITY},
                            {-INFINITY, -INFINITY, -INFINITY},
                            {-INFINITY, -INFINITY, NAN}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        for (int greedy = 0; greedy < 2; greedy++) {
            sequence.temperature = greedy ? 0 : 1;
            struct frame_top tops[2];
            struct frame_sample sample = draw(bad[i], 3, &sequence, 0, NULL, NULL, tops);
            assert_int_equal(sample.outcome, FRAME_SAMPLE_NOT_FINITE);
            assert_int_equal(sample.token_id, 0);
            assert_int_equal(sample.top_count, 0);
        }
    }
    const float one_left[] = {-INFINITY, -1e30f, -INFINITY};
    sequence.flags = FRAME_SAMPLE;
    assert_int_equal(tokens_drawn(one_left, 3, &sequence), 0x2);
}

static void sampler_gives_logprobs_of_the_logits_before_everything(void **state) {
    (void)state;
    const float logits[] = {1, 3, 2, 3, -INFINITY};
    struct frame_sequence sequence = plain_sequence();
    sequence.flags = FRAME_SAMPLE | FRAME_LOGPROBS;
    sequence.top_logprob_count = 3;
    sequence.temperature = 0;
    sequence.bias_count = 1;
    const struct frame_bias biases[] = {{2, 100}};
    struct frame_top tops[TOP_MAX];
    struct frame_sample sample = draw(logits, 5, &sequence, 0, biases, NULL, tops);
    double log_total = log(exp(1) + exp(3) + exp(2) + exp(3));
    assert_int_equal(sample.token_id, 2);
    assert_true(fabs(sample.logprob - (2 - log_total)) < 1e-6);
    assert_int_equal(sample.top_count, 3);
    const uint32_t order[] = {1, 3, 2};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(tops[i].token_id, order[i]);
        assert_true(fabs(tops[i].logprob - (logits[order[i]] - log_total)) < 1e-6);
    }
    sequence.top_logprob_count = TOP_MAX; // more than there are tokens
    sample = draw(logits, 5, &sequence, 0, biases, NULL, tops);
    assert_int_equal(sample.top_count, 5);
    assert_int_equal(tops[4].token_id, 4);
    sequence.flags = FRAME_SAMPLE;
    sample = draw(logits, 5, &sequence, 0, biases, NULL, tops);
    assert_int_equal(sample.top_count, 0);
    assert_true(sample.logprob == 0);
}

static void sampler_top_logprobs_are_the_head_of_a_full_sort(void **state) {
    (void)state;
    static struct sampler_case c;
    static struct candidate sorted[VOCABULARY_MAX];
    struct random random = {.seed = RANDOM_SEED + 1};
    for (int i = 0; i < 500; i++) {
        random_case(&random, &c);
        c.sequence.flags = FRAME_SAMPLE | FRAME_LOGPROBS;
        c.sequence.top_logprob_count = random_below(&random, TOP_MAX + 1);
        struct frame_top tops[TOP_MAX];
        struct frame_sample sample =
            draw(c.logits, c.vocabulary_size, &c.sequence, c.position, c.biases, c.history, tops);
        for (uint32_t t = 0; t < c.vocabulary_size; t++)
            sorted[t] = (struct candidate){.token = t, .weight = c.logits[t]};
        qsort(sorted, c.vocabulary_size, sizeof(sorted[0]), more_likely_first);
        uint32_t wanted = c.sequence.top_logprob_count;
        assert_int_equal(sample.top_count, wanted < c.vocabulary_size ? wanted : c.vocabulary_size);
        for (uint32_t t = 0; t < sample.top_count; t++)
            assert_int_equal(tops[t].token_id, sorted[t].token);
    }
}

// -- in a team ------------------------------------------------------------------------------------

enum { TEAM_COUNT = 4, TEAM_VOCABULARY_SIZE = 3000, TEAM_DRAW_COUNT = 50 };

struct team_draws {
    struct sampler *samplers[TEAM_COUNT];
    float *logits; // (TEAM_DRAW_COUNT, TEAM_VOCABULARY_SIZE)
    struct {
        struct frame_sample sample;
        struct frame_top tops[TOP_MAX];
        uint32_t run_count;
    } draws[TEAM_DRAW_COUNT];
};

static void team_draw(void *ctx, uint32_t index, uint32_t thread_index) {
    struct team_draws *team = ctx;
    struct frame_sequence sequence = plain_sequence();
    sequence.flags = FRAME_SAMPLE | FRAME_LOGPROBS;
    sequence.top_logprob_count = index % TOP_MAX;
    sequence.top_k = index % 3 == 0 ? 40 : 0;
    sequence.top_p = index % 2 == 0 ? 0.9f : 1;
    sampler_draw(team->samplers[thread_index], team->logits + (size_t)index * TEAM_VOCABULARY_SIZE,
                 &sequence, index, &(struct frame_view){0}, &team->draws[index].sample,
                 team->draws[index].tops);
    team->draws[index].run_count++;
}

static void sampler_draws_the_same_in_a_team(void **state) {
    (void)state;
    static struct team_draws alone, together;
    struct random random = {.seed = RANDOM_SEED + 2};
    float *logits = calloc((size_t)TEAM_DRAW_COUNT * TEAM_VOCABULARY_SIZE, sizeof(*logits));
    assert_non_null(logits);
    for (int i = 0; i < TEAM_DRAW_COUNT * TEAM_VOCABULARY_SIZE; i++)
        logits[i] = (float)random_unit(&random) * 10;
    alone.logits = together.logits = logits;
    for (int t = 0; t < TEAM_COUNT; t++) {
        assert_int_equal(sampler_open(TEAM_VOCABULARY_SIZE, &together.samplers[t]), STATUS_OK);
        alone.samplers[t] = together.samplers[t];
    }
    for (uint32_t i = 0; i < TEAM_DRAW_COUNT; i++)
        team_draw(&alone, i, 0);
    struct backend_config config = {.thread_count = TEAM_COUNT, .variant = "auto"};
    struct backend *backend;
    assert_int_equal(backend_cpu_open(&config, &backend, NULL), STATUS_OK);
    backend_parallel(backend, TEAM_DRAW_COUNT, TEAM_DRAW_COUNT * TEAM_VOCABULARY_SIZE, team_draw,
                     &together);
    assert_memory_equal(alone.draws, together.draws, sizeof(alone.draws));
    backend_close(backend);
    for (int t = 0; t < TEAM_COUNT; t++)
        sampler_close(together.samplers[t]);
    free(logits);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sampler_draws_what_a_full_sort_draws),
        cmocka_unit_test(sampler_counts_a_token_that_history_is_too_old_for),
        cmocka_unit_test(sampler_draws_each_token_as_often_as_its_probability),
        cmocka_unit_test(sampler_draws_the_same_for_the_same_seed_and_position),
        cmocka_unit_test(sampler_takes_the_lowest_id_of_equal_logits_when_greedy),
        cmocka_unit_test(sampler_filters_keep_lower_ids_of_equal_probabilities),
        cmocka_unit_test(sampler_keeps_at_least_the_most_likely_token),
        cmocka_unit_test(sampler_top_p_counts_what_top_k_kept),
        cmocka_unit_test(sampler_ignores_top_k_beyond_the_vocabulary),
        cmocka_unit_test(sampler_survives_extreme_logits_and_temperatures),
        cmocka_unit_test(sampler_penalizes_as_worked_out_by_hand),
        cmocka_unit_test(sampler_adds_biases),
        cmocka_unit_test(sampler_refuses_logits_that_are_not_finite),
        cmocka_unit_test(sampler_gives_logprobs_of_the_logits_before_everything),
        cmocka_unit_test(sampler_top_logprobs_are_the_head_of_a_full_sort),
        cmocka_unit_test(sampler_draws_the_same_in_a_team),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
