// rope: inverse frequencies of rotary position embeddings and the table of rotations.
#include <math.h>

#include "base/check.h"
#include "stage/backend.h"

static const double pi = 3.14159265358979323846;

// Checkpoints were trained, and are run everywhere, with inverse frequencies and angles rounded to
// f32; a table without this rounding is truer to the formula but not to the model (at position 300
// its angles differ by up to 1e-5, at 100000 by 4e-3). So each step that Hugging Face transformers
// rounds to f32 (modeling_rope_utils.py) is rounded here, in the same order, and the rest is
// double.

// 1 / theta^(2j / head_size)
static float frequency_default(const struct model_config *config, uint32_t j) {
    float exponent = (float)(2 * j) / (float)config->head_size;
    return 1.0f / (float)pow(config->rope.theta, (double)exponent);
}

// Llama 3.1: long waves are slowed by `factor`, short ones are not, and in between, by the number
// of waves in the original context, a mixture.
static float frequency_llama3(const struct rope_config *rope, float frequency) {
    float original = (float)rope->original_position_count;
    float low_wave = (float)((double)rope->original_position_count / rope->low_freq_factor);
    float high_wave = (float)((double)rope->original_position_count / rope->high_freq_factor);
    float factor = (float)rope->factor;
    float wave = (1.0f / frequency) * (float)(2 * pi);
    if (wave > low_wave) return frequency / factor;
    if (wave < high_wave) return frequency;
    float range = (float)(rope->high_freq_factor - rope->low_freq_factor);
    float smooth = ((1.0f / wave) * original - (float)rope->low_freq_factor) / range;
    return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

static float frequency_scaled(const struct model_config *config, uint32_t j) {
    float frequency = frequency_default(config, j);
    switch (config->rope.kind) {
    case ROPE_DEFAULT:
        return frequency;
    case ROPE_LINEAR:
        return frequency / (float)config->rope.factor;
    case ROPE_LLAMA3:
        return frequency_llama3(&config->rope, frequency);
    }
    CHECK(false);
}

void rope_table_fill(const struct model_config *config, uint32_t position_count, float *out) {
    uint32_t half = config->head_size / 2;
    for (uint32_t j = 0; j < half; j++) {
        float frequency = frequency_scaled(config, j);
        for (uint32_t position = 0; position < position_count; position++) {
            float angle = (float)position * frequency;
            float *pair = out + ((size_t)position * half + j) * 2;
            pair[0] = (float)cos((double)angle);
            pair[1] = (float)sin((double)angle);
        }
    }
}
