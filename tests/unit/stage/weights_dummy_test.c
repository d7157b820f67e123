// Weights that are made up from a configuration alone.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "stage/weights.h"

static const struct weights_source dummy = {NULL, LOAD_FORMAT_DUMMY};

// Odd sizes, so that tensors end within a piece.
static const struct model_config small = {
    .layer_count = 4,
    .hidden_size = 66,
    .head_count = 3,
    .kv_head_count = 1,
    .head_size = 22,
    .ffn_size = 131,
    .vocabulary_size = 301,
    .position_count_max = 128,
    .attention_bias = true,
    .mlp_bias = true,
    .dtype = DTYPE_BF16,
};
static const struct weights_range whole = {0, 4, true, true};

static struct weights *open_ok(const struct model_config *config, struct weights_range range) {
    struct weights *weights;
    struct error error;
    enum status status = weights_open(&dummy, config, &range, NULL, NULL, &weights, &error);
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error.text);
    return weights;
}

static size_t element_count(const struct tensor *tensor) {
    return (size_t)tensor->row_count * tensor->column_count;
}

static float element(const struct tensor *tensor, size_t index) {
    uint16_t half;
    float value;
    if (tensor->dtype == DTYPE_F32) {
        memcpy(&value, (const char *)tensor->data + index * sizeof(value), sizeof(value));
        return value;
    }
    memcpy(&half, (const char *)tensor->data + index * sizeof(half), sizeof(half));
    return tensor->dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

static void check_shape(const struct tensor *tensor, uint32_t row_count, uint32_t column_count) {
    assert_non_null(tensor->data);
    assert_int_equal((uintptr_t)tensor->data % 64, 0);
    assert_int_equal(tensor->dtype, DTYPE_BF16);
    assert_int_equal(tensor->row_count, row_count);
    assert_int_equal(tensor->column_count, column_count);
}

static void dummy_weights_have_the_shapes_of_the_config(void **state) {
    (void)state;
    struct weights *weights = open_ok(&small, whole);
    assert_int_equal(weights->layer_count, 4);
    uint64_t parameter_count = 66 + 2 * model_embedding_parameter_count(&small);
    for (uint32_t i = 0; i < 4; i++) {
        const struct layer_weights *layer = &weights->layers[i];
        check_shape(&layer->attention_norm, 1, 66);
        check_shape(&layer->q, 66, 66);
        check_shape(&layer->k, 22, 66);
        check_shape(&layer->v_bias, 1, 22);
        check_shape(&layer->o, 66, 66);
        check_shape(&layer->gate, 131, 66);
        check_shape(&layer->down, 66, 131);
        check_shape(&layer->down_bias, 1, 66);
        parameter_count += model_layer_parameter_count(&small);
    }
    check_shape(&weights->embedding, 301, 66);
    check_shape(&weights->final_norm, 1, 66);
    check_shape(&weights->head, 301, 66);
    assert_int_equal(weights->weight_bytes, 2 * parameter_count);
    assert_true(weights->mapped_bytes >= weights->weight_bytes);
    assert_int_equal(weights->mapped_bytes % 4096, 0);
    weights_close(weights);
}

static void dummy_weights_lack_what_the_config_lacks(void **state) {
    (void)state;
    struct model_config config = small;
    config.attention_bias = config.mlp_bias = false;
    config.dtype = DTYPE_NONE;
    struct weights *weights = open_ok(&config, (struct weights_range){1, 2, false, false});
    assert_null(weights->embedding.data);
    assert_null(weights->final_norm.data);
    assert_null(weights->head.data);
    assert_null(weights->layers[0].q_bias.data);
    assert_null(weights->layers[1].up_bias.data);
    assert_int_equal(weights->layers[1].up.dtype, DTYPE_BF16); // where config.json names none
    weights_close(weights);
}

static void same_values(const struct tensor *a, const struct tensor *b) {
    assert_int_equal(element_count(a), element_count(b));
    assert_memory_equal(a->data, b->data, element_count(a) * dtype_size_bytes(a->dtype));
}

static void dummy_values_do_not_depend_on_the_range(void **state) {
    (void)state;
    struct model_config config = small;
    for (int is_tied = 0; is_tied < 2; is_tied++) {
        config.tied_embeddings = is_tied;
        struct weights *all = open_ok(&config, whole);
        assert_int_equal(all->head.data == all->embedding.data, is_tied);
        struct weights *first = open_ok(&config, (struct weights_range){0, 1, true, false});
        struct weights *last = open_ok(&config, (struct weights_range){1, 3, false, true});
        same_values(&first->embedding, &all->embedding);
        same_values(&last->head, &all->head);
        same_values(&first->layers[0].down, &all->layers[0].down);
        for (uint32_t i = 0; i < 3; i++) {
            same_values(&last->layers[i].q, &all->layers[i + 1].q);
            same_values(&last->layers[i].k_bias, &all->layers[i + 1].k_bias);
            same_values(&last->layers[i].gate, &all->layers[i + 1].gate);
        }
        weights_close(last);
        weights_close(first);
        weights_close(all);
    }
}

static void dummy_values_differ_between_tensors(void **state) {
    (void)state;
    struct weights *weights = open_ok(&small, whole);
    const struct layer_weights *layer = &weights->layers[0];
    size_t bytes = element_count(&layer->k) * 2;
    assert_memory_not_equal(layer->k.data, layer->v.data, bytes);
    assert_memory_not_equal(layer->k.data, weights->layers[1].k.data, bytes);
    assert_memory_not_equal(weights->head.data, weights->embedding.data, bytes);
    weights_close(weights);
}

// The same on every machine, in every version: these are the values themselves.
static void dummy_values_are_known(void **state) {
    (void)state;
    struct model_config config = small;
    config.dtype = DTYPE_F32;
    struct weights *weights = open_ok(&config, (struct weights_range){0, 1, true, false});
    static const int32_t sums[] = {-33, -287, 29,   165,
                                   114, -5,   -139, -101}; // of four bytes, less their mean
    float scale = (float)(1 / sqrt(66) / 147.79999);
    for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++)
        assert_float_equal(element(&weights->embedding, i), (float)sums[i] * scale, 0);
    weights_close(weights);
}

static void dummy_values_are_rounded_to_the_dtype(void **state) {
    (void)state;
    struct model_config config = small;
    struct weights *weights[3];
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (int i = 0; i < 3; i++) {
        config.dtype = dtypes[i];
        weights[i] = open_ok(&config, whole);
        assert_int_equal(weights[i]->head.dtype, dtypes[i]);
    }
    for (size_t i = 0; i < element_count(&weights[0]->head); i++) {
        float exact = element(&weights[0]->head, i);
        assert_float_equal(element(&weights[1]->head, i), bf16_to_f32(f32_to_bf16(exact)), 0);
        assert_float_equal(element(&weights[2]->head, i), f16_to_f32(f32_to_f16(exact)), 0);
    }
    for (int i = 0; i < 3; i++)
        weights_close(weights[i]);
}

// Mean, deviation, and correlation of neighbours, of a tensor that should be noise.
static void check_noise(const struct tensor *tensor, double deviation) {
    size_t count = element_count(tensor);
    double sum = 0, squares = 0, neighbours = 0;
    for (size_t i = 0; i < count; i++) {
        double value = (double)element(tensor, i) / deviation;
        sum += value;
        squares += value * value;
        if (i > 0) neighbours += value * (double)element(tensor, i - 1) / deviation;
        assert_true(fabs(value) < 3.6);
    }
    double noise = 1 / sqrt((double)count);
    assert_true(fabs(sum / (double)count) < 5 * noise);
    assert_true(fabs(squares / (double)count - 1) < 5 * noise + 0.001);
    assert_true(fabs(neighbours / (double)count) < 5 * noise);
}

static void dummy_values_keep_the_size_of_activations(void **state) {
    (void)state;
    struct weights *weights = open_ok(&small, whole);
    for (uint32_t i = 0; i < 4; i++) {
        const struct layer_weights *layer = &weights->layers[i];
        check_noise(&layer->q, 1 / sqrt(66));
        check_noise(&layer->gate, 1 / sqrt(66));
        check_noise(&layer->o, 1 / sqrt(66) / sqrt(2 * 4));
        check_noise(&layer->down, 1 / sqrt(131) / sqrt(2 * 4));
        check_noise(&layer->gate_bias, 0.02);
        for (size_t j = 0; j < 66; j++)
            assert_float_equal(element(&layer->ffn_norm, j), 1, 0);
    }
    check_noise(&weights->embedding, 1 / sqrt(66));
    assert_float_equal(element(&weights->final_norm, 65), 1, 0);
    weights_close(weights);
}

struct progress {
    uint64_t call_count, done_bytes, total_bytes;
    uint64_t stop_after; // calls; 0: never
};

static bool on_progress(void *ctx, uint64_t bytes_done, uint64_t bytes_total) {
    struct progress *progress = ctx;
    if (progress->call_count++ == 0)
        assert_int_equal(bytes_done, 0);
    else
        assert_true(bytes_done > progress->done_bytes);
    assert_true(bytes_done - progress->done_bytes <= WEIGHTS_READ_STEP_BYTES + 4096);
    progress->done_bytes = bytes_done;
    progress->total_bytes = bytes_total;
    return progress->call_count != progress->stop_after;
}

static void dummy_weights_report_progress(void **state) {
    (void)state;
    struct model_config config = small;
    config.vocabulary_size = 100000; // an embedding of several steps
    struct progress progress = {0};
    struct weights *weights;
    assert_int_equal(weights_open(&dummy, &config, &whole, on_progress, &progress, &weights, NULL),
                     STATUS_OK);
    assert_int_equal(progress.done_bytes, weights->mapped_bytes);
    assert_int_equal(progress.total_bytes, weights->mapped_bytes);
    assert_true(progress.call_count > weights->mapped_bytes / WEIGHTS_READ_STEP_BYTES);
    weights_close(weights);
}

static void dummy_weights_can_be_cancelled(void **state) {
    (void)state;
    struct model_config config = small;
    config.vocabulary_size = 100000;
    for (uint64_t stop = 1; stop < 70; stop += stop < 4 ? 1 : 13) {
        struct progress progress = {.stop_after = stop};
        struct weights *weights = NULL;
        assert_int_equal(
            weights_open(&dummy, &config, &whole, on_progress, &progress, &weights, NULL),
            STATUS_CANCELLED);
        assert_int_equal(progress.call_count, stop);
        assert_null(weights);
    }
}

static void dummy_weights_beyond_memory_are_refused(void **state) {
    (void)state;
    struct model_config config = small; // 2^46 bytes a matrix, of which there are 12
    config.hidden_size = config.ffn_size = UINT32_C(1) << 22;
    config.layer_count = 1024;
    struct weights *weights = NULL;
    struct error error;
    enum status status = weights_open(&dummy, &config, &(struct weights_range){0, 1024, true, true},
                                      NULL, NULL, &weights, &error);
    assert_int_equal(status, STATUS_NO_MEMORY);
    assert_non_null(strstr(error.text, "bytes of made-up weights"));
    assert_null(weights);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dummy_weights_have_the_shapes_of_the_config),
        cmocka_unit_test(dummy_weights_lack_what_the_config_lacks),
        cmocka_unit_test(dummy_values_do_not_depend_on_the_range),
        cmocka_unit_test(dummy_values_differ_between_tensors),
        cmocka_unit_test(dummy_values_are_known),
        cmocka_unit_test(dummy_values_are_rounded_to_the_dtype),
        cmocka_unit_test(dummy_values_keep_the_size_of_activations),
        cmocka_unit_test(dummy_weights_report_progress),
        cmocka_unit_test(dummy_weights_can_be_cancelled),
        cmocka_unit_test(dummy_weights_beyond_memory_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
