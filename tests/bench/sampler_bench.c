// Time of one sampler_draw on one thread, by vocabulary and setting. The logits are drawn from a
// normal distribution with a few likely tokens above it, as language models give them.
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "stage/sampler.h"

enum { REPEAT_COUNT = 15, DRAW_COUNT = 8, ROW_COUNT = 4, HISTORY_COUNT = 1000, TOP_COUNT = 20 };

static double now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec * 1e-3;
}

static const struct setting {
    const char *name;
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k, top_logprob_count;
} settings[] = {
    {"greedy", 0, 1, 0, 1, 0, 0},
    {"temperature", 0.7f, 1, 0, 1, 0, 0},
    {"top_k_top_p", 0.7f, 0.9f, 0, 1, 40, 0},
    {"top_p", 0.7f, 0.9f, 0, 1, 0, 0},
    {"min_p", 0.7f, 1, 0.05f, 1, 0, 0},
    {"greedy_logprobs_20", 0, 1, 0, 1, 0, TOP_COUNT},
    {"greedy_penalties", 0, 1, 0, 1.1f, 0, 0},
    {"top_k_top_p_penalties", 0.7f, 0.9f, 0, 1.1f, 40, 0},
};
enum { SETTING_COUNT = sizeof(settings) / sizeof(settings[0]) };

static void logits_fill(float *logits, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        double radius = sqrt(-2 * log(1 - rng_uniform(1, 2 * (uint64_t)i)));
        logits[i] = (float)(2.5 * radius * cos(6.283185307179586 * rng_uniform(1, 2 * i + 1)));
        if (i % 4999 == 17) logits[i] += 12; // so a few tokens hold most of the mass
    }
}

static int by_value(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

// The median over repetitions of the mean of some draws; rows alternate as in a batch.
static double draw_us(struct sampler *sampler, const float *logits, uint32_t vocabulary_size,
                      const struct setting *setting, const struct frame_history *history) {
    struct frame_sequence sequence = {
        .seed = 1,
        .temperature = setting->temperature,
        .top_k = setting->top_k,
        .top_p = setting->top_p,
        .min_p = setting->min_p,
        .repetition_penalty = setting->repetition_penalty,
        .history_count = setting->repetition_penalty == 1 ? 0 : HISTORY_COUNT,
        .flags = FRAME_SAMPLE | (setting->top_logprob_count > 0 ? FRAME_LOGPROBS : 0),
        .top_logprob_count = setting->top_logprob_count,
    };
    const struct frame_view frame = {.history = (struct frame_history *)history}; // is only read
    double times[REPEAT_COUNT];
    uint64_t position = 0;
    for (int r = 0; r < REPEAT_COUNT; r++) {
        double begin = now_us();
        for (int i = 0; i < DRAW_COUNT; i++, position++) {
            struct frame_sample sample;
            struct frame_top tops[TOP_COUNT];
            sampler_draw(sampler, logits + position % ROW_COUNT * vocabulary_size, &sequence,
                         position, &frame, &sample, tops);
            if (sample.outcome != FRAME_SAMPLE_DRAWN) abort();
        }
        times[r] = (now_us() - begin) / DRAW_COUNT;
    }
    qsort(times, REPEAT_COUNT, sizeof(times[0]), by_value);
    return times[REPEAT_COUNT / 2];
}

static void measure(uint32_t vocabulary_size, double *us_out) {
    struct sampler *sampler;
    float *logits = malloc((size_t)ROW_COUNT * vocabulary_size * sizeof(*logits));
    struct frame_history *history = calloc(HISTORY_COUNT, sizeof(*history));
    if (logits == NULL || history == NULL || sampler_open(vocabulary_size, &sampler) != STATUS_OK)
        abort();
    logits_fill(logits, ROW_COUNT * vocabulary_size);
    for (uint32_t i = 0; i < HISTORY_COUNT; i++)
        history[i].token_id = i * (vocabulary_size / HISTORY_COUNT);
    for (int s = 0; s < SETTING_COUNT; s++)
        us_out[s] = draw_us(sampler, logits, vocabulary_size, &settings[s], history);
    sampler_close(sampler);
    free(history);
    free(logits);
}

int main(int argc, char **argv) {
    bool is_json = argc > 1 && strcmp(argv[1], "--json") == 0;
    static const uint32_t sizes[] = {32000, 151936};
    double us[2][SETTING_COUNT];
    printf("%-24s %12s %12s   us a draw, one thread\n", "vocabulary", "32000", "151936");
    for (int v = 0; v < 2; v++)
        measure(sizes[v], us[v]);
    for (int s = 0; s < SETTING_COUNT; s++)
        printf("%-24s %12.1f %12.1f\n", settings[s].name, us[0][s], us[1][s]);
    if (!is_json) return 0;
    printf("{\"benchmark\":\"sampler\",\"unit\":\"us\"");
    for (int v = 0; v < 2; v++) {
        printf(",\"%" PRIu32 "\":{", sizes[v]);
        for (int s = 0; s < SETTING_COUNT; s++)
            printf("%s\"%s\":%.1f", s > 0 ? "," : "", settings[s].name, us[v][s]);
        printf("}");
    }
    printf("}\n");
    return 0;
}
