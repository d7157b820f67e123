#include "stage/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/rng.h"

// Probabilities are computed in double and kept as whole numbers of 2^-52 of the largest one. Sums
// of whole numbers are exact, so neither the set that a filter keeps nor the draw depends on the
// order of a sum; and what this rounds away is less than a 53-bit random number can reach.
enum { WEIGHT_BITS = 52, DIGIT_BITS = 11, BIN_COUNT = 1 << DIGIT_BITS, DIGIT_COUNT = 5 };
static const uint64_t WEIGHT_MAX = 1ull << WEIGHT_BITS;
static_assert(DIGIT_BITS * DIGIT_COUNT > WEIGHT_BITS, "digits cover a weight, WEIGHT_MAX included");
static_assert(MODEL_VOCABULARY_SIZE_MAX <= 1 << (127 - WEIGHT_BITS - 53),
              "a sum of weights times a 53-bit number fits in a mass_t");

typedef unsigned __int128 mass_t; // a sum of weights

struct bin {
    mass_t mass;
    uint32_t count;
};

struct sampler {
    uint32_t vocabulary_size;
    double *scores;    // logits after penalties and biases
    uint64_t *weights; // WEIGHT_MAX * exp((score - largest score) / temperature)
    struct bin bins[BIN_COUNT];
};

// Tokens ordered by falling weight, equal ones by rising id, are cut here: those with a larger
// weight stay, and the first tie_count of those with this weight.
struct cut {
    uint64_t weight;
    uint32_t tie_count;
};

enum status sampler_open(uint32_t vocabulary_size, struct sampler **sampler_out) {
    CHECK(vocabulary_size > 0 && vocabulary_size <= MODEL_VOCABULARY_SIZE_MAX);
    struct sampler *sampler = memory_array(1, sizeof(*sampler));
    if (sampler == NULL) return STATUS_NO_MEMORY;
    sampler->vocabulary_size = vocabulary_size;
    sampler->scores = memory_array(vocabulary_size, sizeof(*sampler->scores));
    sampler->weights = memory_array(vocabulary_size, sizeof(*sampler->weights));
    if (sampler->scores == NULL || sampler->weights == NULL) {
        sampler_close(sampler);
        return STATUS_NO_MEMORY;
    }
    *sampler_out = sampler;
    return STATUS_OK;
}

void sampler_close(struct sampler *sampler) {
    if (sampler == NULL) return;
    free(sampler->weights);
    free(sampler->scores);
    free(sampler);
}

// False when one is NaN or +infinity, or all are -infinity.
static bool logits_are_usable(const float *logits, uint32_t count, float *max_out) {
    float max = -INFINITY;
    bool all_below_infinity = true;
    for (uint32_t i = 0; i < count; i++) {
        all_below_infinity &= logits[i] < INFINITY; // false for NaN as well
        max = logits[i] > max ? logits[i] : max;
    }
    *max_out = max;
    return all_below_infinity && max > -INFINITY;
}

static void scores_fill(struct sampler *sampler, const float *logits,
                        const struct frame_sequence *sequence, const struct frame_bias *biases,
                        const struct frame_history *history) {
    double *scores = sampler->scores;
    for (uint32_t i = 0; i < sampler->vocabulary_size; i++)
        scores[i] = logits[i];
    for (uint32_t i = 0; i < sequence->history_count; i++) {
        const struct frame_history *seen = &history[sequence->history_first + i];
        CHECK(seen->token_id < sampler->vocabulary_size);
        double *score = &scores[seen->token_id];
        if (*score > 0)
            *score /= (double)sequence->repetition_penalty;
        else
            *score *= (double)sequence->repetition_penalty;
        if (seen->output_count == 0) continue;
        *score -= (double)sequence->presence_penalty +
                  (double)sequence->frequency_penalty * (double)seen->output_count;
    }
    for (uint32_t i = 0; i < sequence->bias_count; i++) {
        const struct frame_bias *bias = &biases[sequence->bias_first + i];
        CHECK(bias->token_id < sampler->vocabulary_size);
        scores[bias->token_id] += (double)bias->bias;
    }
}

// The first of the largest.
static uint32_t best_token(const double *scores, uint32_t count) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (scores[i] > scores[best]) best = i;
    return best;
}

static mass_t weights_fill(struct sampler *sampler, double score_max, double temperature) {
    mass_t total = 0;
    for (uint32_t i = 0; i < sampler->vocabulary_size; i++) {
        double probability = exp((sampler->scores[i] - score_max) / temperature);
        sampler->weights[i] = (uint64_t)(probability * (double)WEIGHT_MAX + 0.5);
        total += sampler->weights[i];
    }
    return total;
}

// Counts, by one digit, the weights that agree with `prefix` in all higher digits.
static void bins_fill(struct sampler *sampler, uint64_t prefix, unsigned shift) {
    for (uint32_t b = 0; b < BIN_COUNT; b++)
        sampler->bins[b] = (struct bin){0};
    for (uint32_t i = 0; i < sampler->vocabulary_size; i++) {
        uint64_t weight = sampler->weights[i];
        if (weight >> shift >> DIGIT_BITS != prefix) continue;
        struct bin *bin = &sampler->bins[(weight >> shift) & (BIN_COUNT - 1)];
        bin->mass += weight;
        bin->count++;
    }
}

// The shortest start of the order that holds `count` tokens or `mass`, whichever comes first (both
// at least 1, and not more than all tokens have). mass_out: what it holds.
// A radix selection: each pass over the weights fixes one digit of the weight at the cut.
static struct cut cut_find(struct sampler *sampler, uint32_t count, mass_t mass, mass_t *mass_out) {
    uint64_t prefix = 0;
    uint32_t count_before = 0;
    mass_t mass_before = 0;
    for (unsigned digit = DIGIT_COUNT; digit-- > 0;) {
        bins_fill(sampler, prefix, digit * DIGIT_BITS);
        uint32_t b = BIN_COUNT - 1;
        while (b > 0 && count_before + sampler->bins[b].count < count &&
               mass_before + sampler->bins[b].mass < mass) {
            count_before += sampler->bins[b].count;
            mass_before += sampler->bins[b].mass;
            b--;
        }
        prefix = prefix << DIGIT_BITS | b;
    }
    CHECK(prefix > 0 && count > count_before && mass > mass_before);
    struct cut cut = {.weight = prefix, .tie_count = count - count_before};
    mass_t ties_for_mass = (mass - mass_before + prefix - 1) / prefix;
    if (ties_for_mass < cut.tie_count) cut.tie_count = (uint32_t)ties_for_mass;
    *mass_out = mass_before + (mass_t)cut.tie_count * prefix;
    return cut;
}

static struct cut cut_by_filters(struct sampler *sampler, const struct frame_sequence *sequence,
                                 mass_t total) {
    struct cut cut = {0}; // all that have a weight
    if (sequence->top_k > 0 && sequence->top_k < sampler->vocabulary_size)
        cut = cut_find(sampler, sequence->top_k, total, &total);
    if (sequence->top_p < 1) {
        // Top-k kept a start of the same order, and this is a start of that one.
        double wanted = ceil((double)sequence->top_p * (double)total);
        mass_t mass = wanted < 1 ? 1 : (mass_t)wanted;
        cut = cut_find(sampler, sampler->vocabulary_size, mass < total ? mass : total, &total);
    }
    if (sequence->min_p > 0) {
        uint64_t least = (uint64_t)ceil((double)sequence->min_p * (double)WEIGHT_MAX);
        if (least > WEIGHT_MAX) least = WEIGHT_MAX;
        if (least > cut.weight) cut = (struct cut){.weight = least - 1};
    }
    return cut;
}

static bool cut_keeps(const struct cut *cut, uint64_t weight, uint32_t *tie_count) {
    if (weight > cut->weight) return true;
    return weight == cut->weight && (*tie_count)++ < cut->tie_count;
}

// The token at which the running sum of the kept weights, by rising id, passes uniform * their sum.
static uint32_t draw_within(const struct sampler *sampler, struct cut cut, double uniform) {
    uint32_t ties = 0;
    mass_t total = 0;
    for (uint32_t i = 0; i < sampler->vocabulary_size; i++)
        if (cut_keeps(&cut, sampler->weights[i], &ties)) total += sampler->weights[i];
    mass_t target = total * (uint64_t)(uniform * 0x1p53) >> 53;
    ties = 0;
    mass_t sum = 0;
    for (uint32_t i = 0; i < sampler->vocabulary_size; i++) {
        if (!cut_keeps(&cut, sampler->weights[i], &ties)) continue;
        sum += sampler->weights[i];
        if (sum > target) return i;
    }
    CHECK(!"the kept weights sum to more than the target");
    return 0;
}

// log of the sum of exp(logits).
static double log_sum(const float *logits, uint32_t count, float max) {
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - (double)max);
    return (double)max + log(sum);
}

// The most likely tokens by insertion into a short list. Returns how many there are.
static uint32_t top_fill(const float *logits, uint32_t count, uint32_t wanted, double log_total,
                         struct frame_top *top_out) {
    if (wanted > count) wanted = count;
    if (wanted == 0) return 0;
    uint32_t held = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (held == wanted && logits[i] <= logits[top_out[held - 1].token_id]) continue;
        uint32_t place = held < wanted ? held++ : held - 1;
        for (; place > 0 && logits[top_out[place - 1].token_id] < logits[i]; place--)
            top_out[place] = top_out[place - 1];
        top_out[place].token_id = i;
    }
    for (uint32_t i = 0; i < held; i++)
        top_out[i].logprob = (float)((double)logits[top_out[i].token_id] - log_total);
    return held;
}

void sampler_draw(struct sampler *sampler, const float *logits,
                  const struct frame_sequence *sequence, uint64_t position,
                  const struct frame_bias *biases, const struct frame_history *history,
                  struct frame_sample *sample_out, struct frame_top *top_out) {
    uint32_t count = sampler->vocabulary_size;
    *sample_out = (struct frame_sample){.sequence_id = sequence->sequence_id,
                                        .outcome = FRAME_SAMPLE_NOT_FINITE};
    float logit_max;
    if (!logits_are_usable(logits, count, &logit_max)) return;
    scores_fill(sampler, logits, sequence, biases, history);
    uint32_t token = best_token(sampler->scores, count);
    double score_max = sampler->scores[token];
    if (!isfinite(score_max)) return;
    if (sequence->temperature > 0) {
        mass_t total = weights_fill(sampler, score_max, sequence->temperature);
        struct cut cut = cut_by_filters(sampler, sequence, total);
        token = draw_within(sampler, cut, rng_uniform(sequence->seed, position));
    }
    sample_out->outcome = FRAME_SAMPLE_DRAWN;
    sample_out->token_id = token;
    if (!(sequence->flags & FRAME_LOGPROBS)) return;
    double log_total = log_sum(logits, count, logit_max);
    sample_out->logprob = (float)((double)logits[token] - log_total);
    sample_out->top_count =
        top_fill(logits, count, sequence->top_logprob_count, log_total, top_out);
}
