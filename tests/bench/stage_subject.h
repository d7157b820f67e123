// stage_subject: one stage that holds a whole model of random weights, fed with frames as the
// coordinator would write them.
#pragma once

#include "proto/model_config.h"
#include "proto/weight_format.h"
#include "stage/engine.h"
#include "tests/bench/measure.h"

struct subject_config {
    const char *model_directory; // whose config.json gives the shape; NULL: the 1.1B shape
    const char *variant;
    uint32_t thread_count;
    uint32_t layer_count; // 0: all that the shape has
    enum weight_format weight_format;
    enum dtype activation_dtype, kv_dtype;
    uint32_t row_count_max, sequence_count_max, position_count_max;
};

struct subject;

// Makes the weights, which takes some seconds. Any failure of engine or backend is passed on.
MUST_USE enum status subject_open(const struct subject_config *config, struct subject **subject_out,
                                  struct error *error);
void subject_close(struct subject *subject); // NULL allowed

// One step: the rows position_first .. position_first + row_count - 1 of each of the first
// sequence_count sequences. Draws a token for each when is_sampled. Aborts when the stage refuses.
struct subject_step {
    uint32_t sequence_count;
    uint32_t position_first, row_count; // of each sequence
    bool is_sampled;
};
void subject_run(struct subject *subject, const struct subject_step *step);

// What the step must read and compute: all matrices once, the KV memory of the positions seen, the
// head when tokens are drawn. The rows of the embedding, and everything that is not a product or
// attention, are not counted.
struct work subject_work(const struct subject *subject, const struct subject_step *step);
// The unit that computes the products.
enum limit subject_unit(const struct subject *subject);

const struct backend *subject_backend(const struct subject *subject);
const struct engine_sizes *subject_sizes(const struct subject *subject);
uint32_t subject_layer_count(const struct subject *subject);
