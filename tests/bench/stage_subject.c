#include "tests/bench/stage_subject.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/memory.h"

enum { EPOCH = 1 };

static const char SHAPE_1B[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"dtype\": "
    "\"bfloat16\", \"hidden_size\": 2048, \"intermediate_size\": 5632, \"num_hidden_layers\": 22, "
    "\"num_attention_heads\": 32, \"num_key_value_heads\": 4, \"head_dim\": 64, \"vocab_size\": "
    "32000, \"max_position_embeddings\": 16384, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
    "\"tie_word_embeddings\": false, \"eos_token_id\": 2}\n";

struct subject {
    struct backend *backend;
    struct engine *engine;
    struct engine_sizes sizes;
    struct model_config config;
    struct assignment assignment;
    struct frame *in, *out;
    uint64_t step;
};

// -- opening --------------------------------------------------------------------------------------

// A folder with nothing but config.json, which the engine reads its shape from.
static enum status shape_write(char *directory, struct error *error) {
    char path[4096];
    if (mkdtemp(directory) == NULL)
        return error_set(error, STATUS_IO, "%s: cannot be made", directory);
    snprintf(path, sizeof(path), "%s/config.json", directory);
    FILE *file = fopen(path, "w");
    if (file == NULL) return error_set(error, STATUS_IO, "%s: cannot be written", path);
    bool is_written = fputs(SHAPE_1B, file) >= 0;
    if (fclose(file) == 0 && is_written) return STATUS_OK;
    return error_set(error, STATUS_IO, "%s: cannot be written", path);
}

static void shape_remove(const char *directory) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/config.json", directory);
    (void)unlink(path);
    (void)rmdir(directory);
}

static void assignment_fill(struct subject *subject, const struct subject_config *config,
                            const char *directory) {
    struct assignment *a = &subject->assignment;
    uint32_t block_count = config->position_count_max / KV_BLOCK_POSITION_COUNT + 1;
    *a = (struct assignment){
        .epoch = EPOCH,
        .stage_count = 1,
        .layer_count = config->layer_count > 0 ? config->layer_count : subject->config.layer_count,
        .model_digest = subject->config.digest,
        .activation_dtype = config->activation_dtype,
        .kv_dtype = config->kv_dtype,
        .kv_block_count = block_count * config->sequence_count_max,
        .kv_block_positions = KV_BLOCK_POSITION_COUNT,
        .row_count_max = config->row_count_max,
        .sequence_count_max = config->sequence_count_max,
        .credit_count = 1,
        .position_count_max = config->position_count_max,
        .load_format = LOAD_FORMAT_DUMMY,
        .weight_format = config->weight_format,
    };
    snprintf(a->model_path, sizeof(a->model_path), "%s", directory);
}

static enum status engine_start(struct subject *subject, const struct subject_config *config,
                                const char *directory, struct error *error) {
    enum status status = model_config_read(directory, &subject->config, error);
    if (status != STATUS_OK) return status;
    assignment_fill(subject, config, directory);
    struct backend_config backend = {.thread_count = config->thread_count,
                                     .variant = config->variant};
    status = backend_cpu_open(&backend, &subject->backend, error);
    if (status != STATUS_OK) return status;
    status = engine_open(subject->backend, clock_system(), &subject->engine);
    if (status != STATUS_OK) return error_set(error, status, "no memory for an engine");
    status = engine_load(subject->engine, &subject->assignment, NULL, NULL, &subject->sizes, error);
    if (status != STATUS_OK) return status;
    size_t frame_bytes = engine_frame_bytes(subject->engine);
    status = frame_open(frame_bytes, &subject->in);
    if (status == STATUS_OK) status = frame_open(frame_bytes, &subject->out);
    if (status == STATUS_OK) return status;
    return error_set(error, status, "no memory for frames of %zu bytes", frame_bytes);
}

enum status subject_open(const struct subject_config *config, struct subject **subject_out,
                         struct error *error) {
    struct subject *subject = memory_array(1, sizeof(*subject));
    if (subject == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for a stage");
    char made[] = "/tmp/stage-bench-XXXXXX";
    enum status status = STATUS_OK;
    if (config->model_directory == NULL) status = shape_write(made, error);
    if (status == STATUS_OK)
        status =
            engine_start(subject, config,
                         config->model_directory != NULL ? config->model_directory : made, error);
    if (config->model_directory == NULL) shape_remove(made);
    if (status != STATUS_OK) {
        subject_close(subject);
        return status;
    }
    *subject_out = subject;
    return STATUS_OK;
}

void subject_close(struct subject *subject) {
    if (subject == NULL) return;
    frame_close(subject->in);
    frame_close(subject->out);
    engine_close(subject->engine);
    backend_close(subject->backend);
    free(subject);
}

// -- a step ---------------------------------------------------------------------------------------

static uint32_t blocks_of(uint32_t position_count) {
    return (position_count + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
}

static void sequence_write(const struct subject *subject, const struct frame_view *view, uint32_t i,
                           const struct subject_step *step) {
    uint32_t block_count = blocks_of(step->position_first + step->row_count);
    uint32_t sequence_blocks =
        subject->assignment.kv_block_count / subject->assignment.sequence_count_max;
    uint32_t row_first = i * step->row_count, block_first = i * block_count;
    view->sequences[i] = (struct frame_sequence){
        .sequence_id = 1 + i,
        .seed = 1 + i,
        .row_first = row_first,
        .row_count = step->row_count,
        .position_first = step->position_first,
        .block_first = block_first,
        .block_count = block_count,
        .flags = step->is_sampled ? FRAME_SAMPLE : 0,
        // Without top-k, random weights would make it dear: all tokens are about as likely.
        .temperature = 0.7f,
        .top_k = 40,
        .top_p = 0.9f,
        .repetition_penalty = 1,
    };
    for (uint32_t r = 0; r < step->row_count; r++)
        view->tokens[row_first + r] =
            (step->position_first + r + 1) * (7919 + 2 * i) % subject->config.vocabulary_size;
    for (uint32_t b = 0; b < block_count; b++)
        view->blocks[block_first + b] = i * sequence_blocks + b;
}

void subject_run(struct subject *subject, const struct subject_step *step) {
    uint32_t block_count = blocks_of(step->position_first + step->row_count);
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .epoch = EPOCH,
                                  .step = ++subject->step,
                                  .row_count = step->row_count * step->sequence_count,
                                  .sequence_count = step->sequence_count,
                                  .block_count = block_count * step->sequence_count};
    struct frame_view view;
    CHECK(frame_format(subject->in, &wanted, &view) == STATUS_OK);
    for (uint32_t i = 0; i < step->sequence_count; i++)
        sequence_write(subject, &view, i, step);
    struct error error = {0};
    struct frame_view in, out;
    if (engine_check(subject->engine, subject->in, &in, &error) != STATUS_OK) {
        fprintf(stderr, "step %llu: %s\n", (unsigned long long)subject->step, error.text);
        abort();
    }
    engine_step(subject->engine, &in, subject->out, &out);
    CHECK(out.header->sample_count == (step->is_sampled ? step->sequence_count : 0));
}

// -- what it needs --------------------------------------------------------------------------------

struct work subject_work(const struct subject *subject, const struct subject_step *step) {
    const struct model_config *config = &subject->config;
    double layer_count = subject->assignment.layer_count;
    double head_count = model_embedding_parameter_count(config);
    double layers_count = layer_count * model_layer_parameter_count(config);
    // Of the weights' bytes, the table of the embedding is not read through.
    double embedding_bytes =
        config->tied_embeddings ? 0 : head_count * (double)dtype_size_bytes(config->dtype);
    double bytes = (double)subject->sizes.weight_bytes - embedding_bytes;
    if (!step->is_sampled) bytes -= bytes * head_count / (head_count + layers_count);
    double first = step->position_first, rows = step->row_count, sequences = step->sequence_count;
    double position_bytes = layer_count * (double)model_kv_element_count(config) *
                            (double)dtype_size_bytes(subject->assignment.kv_dtype);
    double seen = rows * (first + 1) + rows * (rows - 1) / 2; // pairs of a row and a position
    double attention = 4.0 * layer_count * config->head_count * config->head_size * seen;
    return (struct work){
        .bytes = bytes + position_bytes * (first + rows) * sequences,
        .operations = 2 * sequences * (layers_count * rows + (step->is_sampled ? head_count : 0)),
        .f32_operations = attention * sequences,
    };
}

enum limit subject_unit(const struct subject *subject) {
    const struct assignment *a = &subject->assignment;
    if (a->weight_format == WEIGHT_FORMAT_INT8 && limits_has(LIMIT_INT8)) return LIMIT_INT8;
    bool has_pairs = strcmp(backend_variant(subject->backend), "avx512bf16") == 0;
    bool is_bf16 = a->weight_format == WEIGHT_FORMAT_CHECKPOINT &&
                   a->activation_dtype == DTYPE_BF16 && subject->config.dtype == DTYPE_BF16;
    return has_pairs && is_bf16 ? LIMIT_BF16 : LIMIT_F32;
}

const struct backend *subject_backend(const struct subject *subject) {
    return subject->backend;
}

const struct engine_sizes *subject_sizes(const struct subject *subject) {
    return &subject->sizes;
}

uint32_t subject_layer_count(const struct subject *subject) {
    return subject->assignment.layer_count;
}
