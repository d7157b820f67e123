#include "stage/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/rng.h"
#include "stage/cpu/logits.h"

// A vocabulary is never sorted, and seldom walked more than once. The walk keeps the largest logit
// of each block of tokens; blocks without a token that can be drawn are not looked at again. What
// is left are the candidates, and the filters work on them alone.
//
// Weights are whole numbers of 2^-52 of the largest one (logits.h). Sums of whole numbers are
// exact, so neither the set that a filter keeps nor the draw depends on the order of a sum; and
// what this rounds away is less than a 53-bit random number can reach.
typedef unsigned __int128 mass_t; // a sum of weights
static const uint64_t WEIGHT_MAX = 1ull << LOGITS_WEIGHT_BITS;
static const mass_t MASS_NONE = (mass_t)1 << 100; // more than all weights have
static_assert(MODEL_VOCABULARY_SIZE_MAX <= 1 << (127 - LOGITS_WEIGHT_BITS - 53),
              "a sum of weights times a 53-bit number fits in a mass_t");

enum { DIGIT_BITS = 8, BIN_COUNT = 1 << DIGIT_BITS, KEY_BITS = 32 };

struct bin {
    mass_t mass;
    uint32_t count;
};

struct candidate {
    int32_t key; // of the score
    uint32_t token_id;
    uint64_t weight;
};

struct sampler {
    uint32_t vocabulary_size;
    uint32_t block_count;
    const struct logits_passes *passes;
    float *scores;                // logits after penalties and biases
    int32_t *maxima;              // of the blocks of the row walked last
    uint64_t *masses;             // of each LOGITS_MASS_COUNT tokens
    struct candidate *candidates; // by rising id
    uint32_t candidate_count;
    struct bin bins[BIN_COUNT];
};

// Logits or scores whose maxima are in the sampler.
struct row {
    const float *values;
    uint32_t best; // token with the largest, the first of them
};

// Tokens ordered by falling score, equal ones by rising id, are cut here: those with a larger score
// stay, and the first tie_count of those with this score.
struct cut {
    int32_t key;
    uint32_t tie_count;
};

enum status sampler_open(uint32_t vocabulary_size, struct sampler **sampler_out) {
    CHECK(vocabulary_size > 0 && vocabulary_size <= MODEL_VOCABULARY_SIZE_MAX);
    struct sampler *sampler = memory_array(1, sizeof(*sampler));
    if (sampler == NULL) return STATUS_NO_MEMORY;
    sampler->vocabulary_size = vocabulary_size;
    sampler->block_count = (vocabulary_size + LOGITS_BLOCK_COUNT - 1) / LOGITS_BLOCK_COUNT;
    sampler->passes = logits_passes_supported()[0];
    sampler->scores = memory_array(vocabulary_size, sizeof(*sampler->scores));
    sampler->maxima = memory_array(sampler->block_count, sizeof(*sampler->maxima));
    sampler->masses =
        memory_array(vocabulary_size / LOGITS_MASS_COUNT + 1, sizeof(*sampler->masses));
    sampler->candidates = memory_array(vocabulary_size, sizeof(*sampler->candidates));
    if (sampler->scores == NULL || sampler->maxima == NULL || sampler->masses == NULL ||
        sampler->candidates == NULL) {
        sampler_close(sampler);
        return STATUS_NO_MEMORY;
    }
    *sampler_out = sampler;
    return STATUS_OK;
}

void sampler_close(struct sampler *sampler) {
    if (sampler == NULL) return;
    free(sampler->candidates);
    free(sampler->masses);
    free(sampler->maxima);
    free(sampler->scores);
    free(sampler);
}

// -- the whole vocabulary -------------------------------------------------------------------------

static bool has_penalties(const struct frame_sequence *sequence) {
    return sequence->repetition_penalty != 1 || sequence->presence_penalty != 0 ||
           sequence->frequency_penalty != 0;
}

static bool is_adjusted(const struct frame_sequence *sequence) {
    return sequence->history_count > 0 || sequence->bias_count > 0 ||
           (sequence->token_lag > 0 && has_penalties(sequence));
}

// Computed in double, and rounded to float.
static float penalize(const struct frame_sequence *sequence, float logit, uint64_t output_count) {
    double score = (double)logit;
    if (score > 0)
        score /= (double)sequence->repetition_penalty;
    else
        score *= (double)sequence->repetition_penalty;
    if (output_count > 0)
        score -= (double)sequence->presence_penalty +
                 (double)sequence->frequency_penalty * (double)output_count;
    return (float)score;
}

static void scores_penalize(struct sampler *sampler, const struct frame_sequence *sequence,
                            const struct frame_view *frame) {
    float *scores = sampler->scores;
    // The history is older than this token.
    bool has_newer = sequence->token_lag > 0;
    uint32_t newer_id = has_newer ? frame->tokens[sequence->row_first] : 0;
    CHECK(newer_id < sampler->vocabulary_size);
    for (uint32_t i = 0; i < sequence->history_count; i++) {
        const struct frame_history *seen = &frame->history[sequence->history_first + i];
        CHECK(seen->token_id < sampler->vocabulary_size);
        uint64_t output_count = seen->output_count;
        if (has_newer && seen->token_id == newer_id) {
            output_count++;
            has_newer = false;
        }
        scores[seen->token_id] = penalize(sequence, scores[seen->token_id], output_count);
    }
    if (has_newer) scores[newer_id] = penalize(sequence, scores[newer_id], 1);
}

static void scores_fill(struct sampler *sampler, const float *logits,
                        const struct frame_sequence *sequence, const struct frame_view *frame) {
    float *scores = sampler->scores;
    memcpy(scores, logits, sampler->vocabulary_size * sizeof(*scores));
    scores_penalize(sampler, sequence, frame);
    for (uint32_t i = 0; i < sequence->bias_count; i++) {
        const struct frame_bias *bias = &frame->biases[sequence->bias_first + i];
        CHECK(bias->token_id < sampler->vocabulary_size);
        scores[bias->token_id] += bias->bias;
    }
}

// False when a value is NaN or +infinity, or all are -infinity.
static bool row_walk(struct sampler *sampler, const float *values, struct row *row_out) {
    const int32_t *maxima = sampler->maxima;
    int32_t least = sampler->passes->maxima(values, sampler->vocabulary_size, sampler->maxima);
    uint32_t block = 0;
    for (uint32_t b = 1; b < sampler->block_count; b++)
        if (maxima[b] > maxima[block]) block = b;
    if (least < logits_key(-INFINITY) || maxima[block] >= logits_key(INFINITY) ||
        maxima[block] == logits_key(-INFINITY))
        return false;
    uint32_t best = block * LOGITS_BLOCK_COUNT;
    while (logits_key(values[best]) != maxima[block])
        best++;
    *row_out = (struct row){.values = values, .best = best};
    return true;
}

static struct logits_scale scale_of(const struct row *row, double temperature) {
    return (struct logits_scale){.largest = (double)row->values[row->best],
                                 .scale = 1 / temperature};
}

static mass_t masses_fill(struct sampler *sampler, const struct row *row,
                          struct logits_scale scale) {
    mass_t total = 0;
    uint32_t count = sampler->vocabulary_size;
    for (uint32_t first = 0; first < count; first += LOGITS_MASS_COUNT) {
        uint32_t part = count - first < LOGITS_MASS_COUNT ? count - first : LOGITS_MASS_COUNT;
        uint64_t mass = sampler->passes->mass(row->values + first, part, scale);
        sampler->masses[first / LOGITS_MASS_COUNT] = mass;
        total += mass;
    }
    return total;
}

static mass_t target_of(mass_t total, double uniform) {
    return total * (uint64_t)(uniform * 0x1p53) >> 53;
}

// The token at which the running sum of all weights, by rising id, passes uniform * their sum.
static uint32_t draw_any(struct sampler *sampler, const struct row *row, struct logits_scale scale,
                         double uniform) {
    mass_t target = target_of(masses_fill(sampler, row, scale), uniform);
    uint32_t first = 0;
    for (; sampler->masses[first / LOGITS_MASS_COUNT] <= target; first += LOGITS_MASS_COUNT)
        target -= sampler->masses[first / LOGITS_MASS_COUNT];
    for (; first < sampler->vocabulary_size; first += LOGITS_BLOCK_COUNT) {
        uint64_t weights[LOGITS_BLOCK_COUNT];
        uint32_t left = sampler->vocabulary_size - first;
        uint32_t count = left < LOGITS_BLOCK_COUNT ? left : LOGITS_BLOCK_COUNT;
        sampler->passes->weigh(row->values + first, count, scale, weights);
        for (uint32_t i = 0; i < count; i++) {
            if (weights[i] > target) return first + i;
            target -= weights[i];
        }
    }
    CHECK(!"the weights sum to more than the target");
    return 0;
}

// -- candidates -----------------------------------------------------------------------------------

static void candidates_weigh(struct sampler *sampler, const struct row *row,
                             struct logits_scale scale) {
    float values[LOGITS_BLOCK_COUNT];
    uint64_t weights[LOGITS_BLOCK_COUNT];
    for (uint32_t first = 0; first < sampler->candidate_count; first += LOGITS_BLOCK_COUNT) {
        struct candidate *candidates = &sampler->candidates[first];
        uint32_t left = sampler->candidate_count - first;
        uint32_t count = left < LOGITS_BLOCK_COUNT ? left : LOGITS_BLOCK_COUNT;
        for (uint32_t i = 0; i < count; i++)
            values[i] = row->values[candidates[i].token_id];
        sampler->passes->weigh(values, count, scale, weights);
        for (uint32_t i = 0; i < count; i++)
            candidates[i].weight = weights[i];
    }
}

// Makes candidates of the tokens whose keys are not below key_min.
static void candidates_gather(struct sampler *sampler, const struct row *row, int32_t key_min,
                              struct logits_scale scale) {
    uint32_t held = 0;
    for (uint32_t b = 0; b < sampler->block_count; b++) {
        if (sampler->maxima[b] < key_min) continue;
        uint32_t first = b * LOGITS_BLOCK_COUNT;
        uint32_t left = sampler->vocabulary_size - first;
        uint32_t end = first + (left < LOGITS_BLOCK_COUNT ? left : LOGITS_BLOCK_COUNT);
        for (uint32_t i = first; i < end; i++) {
            int32_t key = logits_key(row->values[i]);
            if (key < key_min) continue;
            sampler->candidates[held++] = (struct candidate){.key = key, .token_id = i};
        }
    }
    sampler->candidate_count = held;
    candidates_weigh(sampler, row, scale);
}

static mass_t candidates_mass(const struct sampler *sampler) {
    mass_t mass = 0;
    for (uint32_t i = 0; i < sampler->candidate_count; i++)
        mass += sampler->candidates[i].weight;
    return mass;
}

// Counts, by one digit, the candidates that agree with `prefix` in all higher digits.
static void bins_fill(struct sampler *sampler, uint64_t prefix, unsigned shift) {
    memset(sampler->bins, 0, sizeof(sampler->bins));
    for (uint32_t i = 0; i < sampler->candidate_count; i++) {
        // As unsigned numbers of the same order.
        uint64_t key = (uint32_t)sampler->candidates[i].key ^ (uint32_t)INT32_MIN;
        if (key >> shift >> DIGIT_BITS != prefix) continue;
        struct bin *bin = &sampler->bins[(key >> shift) & (BIN_COUNT - 1)];
        bin->mass += sampler->candidates[i].weight;
        bin->count++;
    }
}

// The shortest start of the candidates' order that holds `count` of them or `mass`, whichever comes
// first. Both are at least 1, and all candidates have one of them.
// A radix selection: each pass over the candidates fixes one digit of the key at the cut.
static struct cut cut_find(struct sampler *sampler, uint32_t count, mass_t mass) {
    uint32_t prefix = 0;
    uint32_t count_before = 0;
    mass_t mass_before = 0;
    uint32_t b = 0;
    for (unsigned shift = KEY_BITS; shift > 0;) {
        shift -= DIGIT_BITS;
        bins_fill(sampler, prefix, shift);
        b = BIN_COUNT - 1;
        while (b > 0 && count_before + sampler->bins[b].count < count &&
               mass_before + sampler->bins[b].mass < mass) {
            count_before += sampler->bins[b].count;
            mass_before += sampler->bins[b].mass;
            b--;
        }
        prefix = prefix << DIGIT_BITS | b;
    }
    CHECK(sampler->bins[b].count > 0 && count > count_before && mass > mass_before);
    struct cut cut = {.key = (int32_t)(prefix ^ (uint32_t)INT32_MIN),
                      .tie_count = count - count_before};
    mass_t weight = sampler->bins[b].mass / sampler->bins[b].count; // equal keys, equal weights
    if (weight == 0) return cut;
    mass_t ties_for_mass = (mass - mass_before + weight - 1) / weight;
    if (ties_for_mass < cut.tie_count) cut.tie_count = (uint32_t)ties_for_mass;
    return cut;
}

static void candidates_keep(struct sampler *sampler, struct cut cut) {
    uint32_t held = 0, ties = 0;
    for (uint32_t i = 0; i < sampler->candidate_count; i++) {
        struct candidate candidate = sampler->candidates[i];
        if (candidate.key < cut.key) continue;
        if (candidate.key == cut.key && ties++ >= cut.tie_count) continue;
        sampler->candidates[held++] = candidate;
    }
    sampler->candidate_count = held;
}

static void candidates_keep_weight(struct sampler *sampler, uint64_t weight_min) {
    uint32_t held = 0;
    for (uint32_t i = 0; i < sampler->candidate_count; i++)
        if (sampler->candidates[i].weight >= weight_min)
            sampler->candidates[held++] = sampler->candidates[i];
    sampler->candidate_count = held;
}

// The token at which the running sum of the candidates' weights passes uniform * their sum.
static uint32_t draw_candidate(const struct sampler *sampler, double uniform) {
    mass_t target = target_of(candidates_mass(sampler), uniform);
    for (uint32_t i = 0; i < sampler->candidate_count; i++) {
        const struct candidate *candidate = &sampler->candidates[i];
        if (candidate->weight > target) return candidate->token_id;
        target -= candidate->weight;
    }
    CHECK(!"the candidates' weights sum to more than the target");
    return 0;
}

// -- filters --------------------------------------------------------------------------------------

// A key that `count` tokens reach, and not many more: as many blocks have a largest key like that.
static int32_t key_of_count(struct sampler *sampler, uint32_t count) {
    if (count > sampler->block_count) return INT32_MIN;
    for (uint32_t b = 0; b < sampler->block_count; b++)
        sampler->candidates[b] = (struct candidate){.key = sampler->maxima[b]};
    sampler->candidate_count = sampler->block_count;
    return cut_find(sampler, count, MASS_NONE).key;
}

// A key that all tokens reach whose weight is at least exp(-reach) of the largest. Rounding may
// make it lower than it needs to be.
static int32_t key_of_reach(struct logits_scale scale, double reach) {
    return logits_key(nextafterf((float)(scale.largest - reach / scale.scale), -INFINITY));
}

static mass_t mass_wanted(mass_t total, const struct frame_sequence *sequence) {
    double wanted = ceil((double)sequence->top_p * (double)total);
    if (wanted < 1) return 1;
    return (mass_t)wanted < total ? (mass_t)wanted : total;
}

// Gathers all tokens that top-p keeps, and some more.
static void gather_mass(struct sampler *sampler, const struct row *row, struct logits_scale scale,
                        mass_t wanted) {
    // Most often the first reach has the mass. Weights end at exp(-37), so the last one has all.
    for (int reach = 4; reach <= 64; reach *= 2) {
        candidates_gather(sampler, row, key_of_reach(scale, reach), scale);
        if (candidates_mass(sampler) >= wanted) return;
    }
    CHECK(!"all weights together have the mass");
}

// Makes candidates of the tokens that the filters keep; at least one filter is on.
static void filter(struct sampler *sampler, const struct row *row, struct logits_scale scale,
                   const struct frame_sequence *sequence) {
    bool has_top_k = sequence->top_k > 0 && sequence->top_k < sampler->vocabulary_size;
    if (has_top_k) {
        candidates_gather(sampler, row, key_of_count(sampler, sequence->top_k), scale);
        candidates_keep(sampler, cut_find(sampler, sequence->top_k, MASS_NONE));
    }
    if (sequence->top_p < 1) {
        mass_t total = has_top_k ? candidates_mass(sampler) : masses_fill(sampler, row, scale);
        mass_t wanted = mass_wanted(total, sequence);
        if (!has_top_k) gather_mass(sampler, row, scale, wanted);
        candidates_keep(sampler, cut_find(sampler, sampler->candidate_count, wanted));
    }
    if (sequence->min_p > 0) {
        double least = ceil((double)sequence->min_p * (double)WEIGHT_MAX);
        if (!has_top_k && !(sequence->top_p < 1)) {
            double reach = 0.001 - log((double)sequence->min_p); // some room for the rounding
            candidates_gather(sampler, row, key_of_reach(scale, reach), scale);
        }
        candidates_keep_weight(sampler, least < (double)WEIGHT_MAX ? (uint64_t)least : WEIGHT_MAX);
    }
}

static uint32_t draw(struct sampler *sampler, const struct row *row,
                     const struct frame_sequence *sequence, double uniform) {
    struct logits_scale scale = scale_of(row, (double)sequence->temperature);
    bool has_top_k = sequence->top_k > 0 && sequence->top_k < sampler->vocabulary_size;
    if (!has_top_k && !(sequence->top_p < 1) && !(sequence->min_p > 0))
        return draw_any(sampler, row, scale, uniform);
    filter(sampler, row, scale, sequence);
    return draw_candidate(sampler, uniform);
}

// -- log-probabilities ----------------------------------------------------------------------------

// log of the sum of exp(logits).
static double log_sum(struct sampler *sampler, const struct row *row) {
    double sum = (double)masses_fill(sampler, row, scale_of(row, 1)) / (double)WEIGHT_MAX;
    return (double)row->values[row->best] + log(sum);
}

// The most likely tokens by insertion into a short list. Returns how many there are.
static uint32_t top_fill(struct sampler *sampler, const struct row *row, uint32_t wanted,
                         double log_total, struct frame_top *top_out) {
    if (wanted > sampler->vocabulary_size) wanted = sampler->vocabulary_size;
    if (wanted == 0) return 0;
    candidates_gather(sampler, row, key_of_count(sampler, wanted), scale_of(row, 1));
    const float *logits = row->values;
    uint32_t held = 0;
    for (uint32_t i = 0; i < sampler->candidate_count; i++) {
        uint32_t token = sampler->candidates[i].token_id;
        if (held == wanted && logits[token] <= logits[top_out[held - 1].token_id]) continue;
        uint32_t place = held < wanted ? held++ : held - 1;
        for (; place > 0 && logits[top_out[place - 1].token_id] < logits[token]; place--)
            top_out[place] = top_out[place - 1];
        top_out[place].token_id = token;
    }
    for (uint32_t i = 0; i < held; i++)
        top_out[i].logprob = (float)((double)logits[top_out[i].token_id] - log_total);
    return held;
}

void sampler_draw(struct sampler *sampler, const float *logits,
                  const struct frame_sequence *sequence, uint64_t position,
                  const struct frame_view *frame, struct frame_sample *sample_out,
                  struct frame_top *top_out) {
    *sample_out = (struct frame_sample){.sequence_id = sequence->sequence_id,
                                        .outcome = FRAME_SAMPLE_NOT_FINITE};
    const float *scores = logits;
    if (is_adjusted(sequence)) {
        scores_fill(sampler, logits, sequence, frame);
        scores = sampler->scores;
    }
    struct row row;
    if (!row_walk(sampler, scores, &row)) return; // penalties leave no NaN or infinity finite
    uint32_t token = row.best;
    if (sequence->temperature > 0)
        token = draw(sampler, &row, sequence, rng_uniform(sequence->seed, position));
    if (sequence->flags & FRAME_LOGPROBS) {
        if (scores != logits && !row_walk(sampler, logits, &row)) return;
        double log_total = log_sum(sampler, &row);
        sample_out->logprob = (float)((double)logits[token] - log_total);
        sample_out->top_count =
            top_fill(sampler, &row, sequence->top_logprob_count, log_total, top_out);
    }
    sample_out->outcome = FRAME_SAMPLE_DRAWN;
    sample_out->token_id = token;
}
