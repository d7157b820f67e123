#include "stage/engine.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/model.h"
#include "stage/quantize.h"
#include "stage/sampler.h"

// Rows whose logits are computed together: bounds the memory for logits of large vocabularies.
enum { LOGIT_ROW_COUNT = 32 };

struct engine {
    struct backend *backend;
    struct clock clock;
    struct model_config config;
    struct weights *weights;     // NULL: nothing is loaded
    struct quantized *quantized; // what weights point to; NULL: they are the checkpoint's
    struct model *model;
    // Last stage only: one for each thread of the backend.
    struct sampler **samplers;
    uint32_t sampler_count;
    struct assignment assignment;
    struct frame_limits limits; // of the frames that come in
    struct batch_sequence *sequences;
    uint32_t *sampled;     // sequences that are sampled
    uint32_t *sample_rows; // the row of each of them
    struct batch batch;
    atomic_uint_fast64_t progress_count; // layers computed, in all
};

enum status engine_open(struct backend *backend, struct clock clock, struct engine **engine_out) {
    struct engine *engine = calloc(1, sizeof(*engine));
    if (engine == NULL) return STATUS_NO_MEMORY;
    engine->backend = backend;
    engine->clock = clock;
    *engine_out = engine;
    return STATUS_OK;
}

static void unload(struct engine *engine) {
    for (uint32_t i = 0; i < engine->sampler_count; i++)
        sampler_close(engine->samplers[i]);
    free(engine->samplers);
    model_close(engine->model);
    quantized_close(engine->quantized);
    weights_close(engine->weights);
    free(engine->sequences);
    free(engine->sampled);
    free(engine->sample_rows);
    engine->samplers = NULL;
    engine->sampler_count = 0;
    engine->model = NULL;
    engine->quantized = NULL;
    engine->weights = NULL;
    engine->sequences = NULL;
    engine->sampled = NULL;
    engine->sample_rows = NULL;
}

void engine_close(struct engine *engine) {
    if (engine == NULL) return;
    unload(engine);
    free(engine);
}

// -- loading --------------------------------------------------------------------------------------

static void set_limits(struct engine *engine, const struct assignment *a) {
    engine->limits = (struct frame_limits){
        .epoch = a->epoch,
        .row_count_max = a->row_count_max,
        .sequence_count_max = a->sequence_count_max,
        .position_count_max = a->position_count_max,
        .kv_block_count = a->kv_block_count,
        .vocabulary_size = engine->config.vocabulary_size,
        .token_lag_max = a->token_lag_max,
        .hidden_size = engine->config.hidden_size,
        .dtype = a->activation_dtype,
        .has_payload = !assignment_is_first(a),
        .kind = FRAME_STEP,
    };
}

// Whether what is loaded serves the new assignment too: only epoch, credits and the lag of tokens
// may differ.
static bool is_loaded(const struct engine *engine, const struct assignment *a) {
    const struct assignment *b = &engine->assignment;
    return engine->weights != NULL && strcmp(a->model_path, b->model_path) == 0 &&
           a->model_digest == b->model_digest && assignment_is_first(a) == assignment_is_first(b) &&
           assignment_is_last(a) == assignment_is_last(b) && a->layer_first == b->layer_first &&
           a->layer_count == b->layer_count && a->activation_dtype == b->activation_dtype &&
           a->kv_dtype == b->kv_dtype && a->kv_block_count == b->kv_block_count &&
           a->row_count_max == b->row_count_max && a->sequence_count_max == b->sequence_count_max &&
           a->position_count_max == b->position_count_max && a->load_format == b->load_format &&
           a->weight_format == b->weight_format;
}

static enum status open_samplers(struct engine *engine) {
    uint32_t thread_count = backend_thread_count(engine->backend);
    engine->samplers = memory_array(thread_count, sizeof(*engine->samplers));
    if (engine->samplers == NULL) return STATUS_NO_MEMORY;
    enum status status = STATUS_OK;
    while (status == STATUS_OK && engine->sampler_count < thread_count) {
        status =
            sampler_open(engine->config.vocabulary_size, &engine->samplers[engine->sampler_count]);
        if (status == STATUS_OK) engine->sampler_count++;
    }
    return status;
}

static enum status open_model(struct engine *engine, const struct assignment *a,
                              struct error *error) {
    struct model_options options = {
        .activation_dtype = a->activation_dtype,
        .kv_dtype = a->kv_dtype,
        .kv_block_count = a->kv_block_count,
        .row_count_max = a->row_count_max,
        .sample_count_max = LOGIT_ROW_COUNT,
        .position_count_max = a->position_count_max,
        .weight_format = a->weight_format,
    };
    enum status status = model_open(engine->backend, &engine->config, engine->weights, &options,
                                    &engine->model, error);
    if (status != STATUS_OK) return status;
    engine->sequences = memory_array(a->sequence_count_max, sizeof(*engine->sequences));
    engine->sampled = memory_array(a->sequence_count_max, sizeof(*engine->sampled));
    engine->sample_rows = memory_array(a->sequence_count_max, sizeof(*engine->sample_rows));
    if (engine->sequences == NULL || engine->sampled == NULL || engine->sample_rows == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for %" PRIu32 " sequences",
                         a->sequence_count_max);
    if (!assignment_is_last(a)) return STATUS_OK;
    status = open_samplers(engine);
    return status == STATUS_OK ? status : error_set(error, status, "no memory for samplers");
}

static struct engine_sizes sizes_of(const struct engine *engine) {
    return (struct engine_sizes){
        .weight_bytes = engine->weights->weight_bytes,
        .mapped_bytes = engine->weights->mapped_bytes,
        .kv_bytes = model_kv_bytes(engine->model),
    };
}

enum status engine_load(struct engine *engine, const struct assignment *assignment,
                        weights_progress_fn *progress, void *progress_ctx,
                        struct engine_sizes *sizes_out, struct error *error) {
    if (is_loaded(engine, assignment)) {
        engine->assignment = *assignment;
        set_limits(engine, assignment);
        *sizes_out = sizes_of(engine);
        return STATUS_OK;
    }
    unload(engine);
    enum status status = model_config_read(assignment->model_path, &engine->config, error);
    if (status != STATUS_OK) return status;
    if (engine->config.digest != assignment->model_digest)
        return error_set(error, STATUS_INVALID,
                         "%.300s/config.json is not the coordinator's: another model or version",
                         assignment->model_path);
    status = assignment_check(assignment, &engine->config, error);
    if (status != STATUS_OK) return status;
    struct weights_range range = {
        .layer_first = assignment->layer_first,
        .layer_count = assignment->layer_count,
        .is_first = assignment_is_first(assignment),
        .is_last = assignment_is_last(assignment),
    };
    const struct weights_source source = {assignment->model_path, assignment->load_format};
    status = weights_open(&source, &engine->config, &range, progress, progress_ctx,
                          &engine->weights, error);
    if (status == STATUS_OK && assignment->weight_format != WEIGHT_FORMAT_CHECKPOINT)
        status = quantized_open(engine->backend, engine->weights, progress, progress_ctx,
                                &engine->quantized, error);
    if (status == STATUS_OK) status = open_model(engine, assignment, error);
    if (status != STATUS_OK) {
        unload(engine);
        return status;
    }
    engine->assignment = *assignment;
    set_limits(engine, assignment);
    *sizes_out = sizes_of(engine);
    return STATUS_OK;
}

size_t engine_frame_bytes(const struct engine *engine) {
    return frame_capacity_bytes(&engine->limits);
}

// -- a step ---------------------------------------------------------------------------------------

static void fill_batch(struct engine *engine, const struct frame_view *view) {
    uint32_t sequence_count = view->header->sequence_count;
    for (uint32_t i = 0; i < sequence_count; i++) {
        const struct frame_sequence *s = &view->sequences[i];
        engine->sequences[i] = (struct batch_sequence){
            .row_first = s->row_first,
            .row_count = s->row_count,
            .position_first = s->position_first,
            .blocks = &view->blocks[s->block_first],
        };
    }
    engine->batch = (struct batch){
        .row_count = view->header->row_count,
        .sequence_count = sequence_count,
        .sequences = engine->sequences,
    };
}

// The same rows with this stage's activations.
static void write_step(struct engine *engine, const struct frame_view *in, struct frame *out,
                       struct frame_view *out_view) {
    struct frame_header wanted = *in->header;
    wanted.hidden_size = engine->config.hidden_size;
    wanted.dtype = (uint16_t)engine->assignment.activation_dtype;
    enum status status = frame_format(out, &wanted, out_view);
    CHECK(status == STATUS_OK); // frames have the capacity of the largest that limits allow
    // Equal counts give equal tables.
    size_t tables_bytes = in->header->payload_offset - sizeof(struct frame_header);
    memcpy(out->data + sizeof(struct frame_header),
           (const uint8_t *)in->header + sizeof(struct frame_header), tables_bytes);
    model_emit(engine->model, wanted.row_count, out_view->payload);
}

static uint32_t top_count_of(const struct engine *engine, const struct frame_sequence *s) {
    if (!(s->flags & FRAME_LOGPROBS)) return 0;
    uint32_t vocabulary_size = engine->config.vocabulary_size;
    return s->top_logprob_count < vocabulary_size ? s->top_logprob_count : vocabulary_size;
}

struct sample_job {
    const struct engine *engine;
    const struct frame_view *in;
    const struct frame_view *out;
    const float *logits;
    uint32_t first; // sample of the first row of logits
};

static void write_sample(void *ctx, uint32_t index, uint32_t thread_index) {
    const struct sample_job *job = ctx;
    const struct engine *engine = job->engine;
    const struct frame_sequence *s = &job->in->sequences[engine->sampled[job->first + index]];
    struct frame_sample *sample = &job->out->samples[job->first + index];
    uint32_t top_first = sample->top_first;
    sampler_draw(engine->samplers[thread_index],
                 job->logits + (size_t)index * engine->config.vocabulary_size, s,
                 (uint64_t)s->position_first + s->row_count, job->in, sample,
                 &job->out->tops[top_first]);
    sample->top_first = top_first;
    sample->top_count = top_count_of(engine, s);
}

static void write_samples(struct engine *engine, const struct frame_view *in,
                          const struct frame_view *out) {
    uint32_t top_first = 0;
    uint32_t sample_count = out->header->sample_count;
    for (uint32_t i = 0; i < sample_count; i++) {
        out->samples[i].top_first = top_first;
        top_first += top_count_of(engine, &in->sequences[engine->sampled[i]]);
    }
    for (uint32_t first = 0; first < sample_count; first += LOGIT_ROW_COUNT) {
        uint32_t count =
            sample_count - first < LOGIT_ROW_COUNT ? sample_count - first : LOGIT_ROW_COUNT;
        struct sample_job job = {
            .engine = engine,
            .in = in,
            .out = out,
            .logits = model_logits(engine->model, &engine->sample_rows[first], count),
            .first = first,
        };
        backend_parallel(engine->backend, count, (uint64_t)count * engine->config.vocabulary_size,
                         write_sample, &job);
    }
}

static void write_result(struct engine *engine, const struct frame_view *in, struct frame *out,
                         struct frame_view *out_view) {
    struct frame_header wanted = {
        .kind = FRAME_RESULT,
        .epoch = in->header->epoch,
        .step = in->header->step,
        .row_count = in->header->row_count,
        .sequence_count = in->header->sequence_count,
    };
    for (uint32_t i = 0; i < in->header->sequence_count; i++) {
        const struct frame_sequence *s = &in->sequences[i];
        if (!(s->flags & FRAME_SAMPLE)) continue;
        engine->sampled[wanted.sample_count] = i;
        engine->sample_rows[wanted.sample_count++] = s->row_first + s->row_count - 1;
        wanted.top_count += top_count_of(engine, s);
    }
    enum status status = frame_format(out, &wanted, out_view);
    CHECK(status == STATUS_OK);
    write_samples(engine, in, out_view);
}

enum status engine_check(const struct engine *engine, struct frame *in, struct frame_view *view_out,
                         struct error *error) {
    CHECK(engine->weights != NULL);
    return frame_parse(in, &engine->limits, view_out, error);
}

enum status engine_check_result(const struct engine *engine, struct frame *result,
                                struct frame_view *view_out, struct error *error) {
    CHECK(engine->weights != NULL);
    struct frame_limits limits = engine->limits;
    limits.kind = FRAME_RESULT;
    return frame_parse(result, &limits, view_out, error);
}

static void write_times(const struct frame_header *in, struct frame_header *out, uint64_t own_ns) {
    out->compute_ns = in->compute_ns + own_ns;
    out->slowest_ns = own_ns > in->slowest_ns ? own_ns : in->slowest_ns;
}

void engine_step(struct engine *engine, const struct frame_view *in, struct frame *out,
                 struct frame_view *view_out) {
    uint64_t begin_ns = clock_now_ns(&engine->clock);
    fill_batch(engine, in);
    uint32_t row_count = in->header->row_count;
    if (assignment_is_first(&engine->assignment))
        model_embed(engine->model, in->tokens, row_count);
    else
        model_receive(engine->model, in->payload, row_count);
    for (uint32_t i = 0; i < engine->assignment.layer_count; i++) {
        model_layer(engine->model, &engine->batch, i);
        atomic_fetch_add_explicit(&engine->progress_count, 1, memory_order_relaxed);
    }
    if (assignment_is_last(&engine->assignment))
        write_result(engine, in, out, view_out);
    else
        write_step(engine, in, out, view_out);
    write_times(in->header, view_out->header, clock_now_ns(&engine->clock) - begin_ns);
}

uint64_t engine_progress_count(const struct engine *engine) {
    return atomic_load_explicit(&engine->progress_count, memory_order_relaxed);
}

uint32_t engine_row_count(const struct engine *engine) {
    return engine->batch.row_count;
}
