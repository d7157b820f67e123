// A step of a simulated stage: the rows of a frame through its layers of the toy.
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "client/simulate/toy.h"
#include "client/simulate/world.h"

static bool is_first(const struct service *service) {
    return service->assignment.stage_index == 0;
}

static bool is_last(const struct service *service) {
    return service->assignment.stage_index + 1 == service->assignment.stage_count;
}

// The row's value after this stage's layers; their cells of its position are written.
static uint64_t compute_row(const struct world *world, const struct service *service,
                            const uint32_t *blocks, uint32_t position, uint64_t value) {
    size_t layer_cell_count = (size_t)world->limits.kv_block_count * KV_BLOCK_POSITION_COUNT;
    for (uint32_t i = 0; i < service->assignment.layer_count; i++) {
        struct toy_cells cells = {service->cells + i * layer_cell_count, blocks};
        value = toy_layer(&cells, service->assignment.layer_first + i, position, value,
                          world->settings.is_long);
    }
    return value;
}

static uint64_t attended_count_of(const struct frame_sequence *s) {
    uint64_t first = s->position_first, count = s->row_count;
    return count * (first + 1) + count * (count - 1) / 2;
}

// values: of the rows as they came in, then as they go out.
static void compute_rows(const struct world *world, const struct service *service,
                         const struct frame_view *view, uint64_t *values) {
    for (uint32_t i = 0; i < view->header->sequence_count; i++) {
        const struct frame_sequence *s = &view->sequences[i];
        for (uint32_t r = 0; r < s->row_count; r++) {
            uint32_t row = s->row_first + r;
            uint64_t value = is_first(service) ? toy_start(view->tokens[row]) : values[row];
            values[row] = compute_row(world, service, &view->blocks[s->block_first],
                                      s->position_first + r, value);
        }
    }
}

static struct service_cost cost_of(const struct world *world, const struct service *service,
                                   const struct frame_view *view) {
    struct service_cost cost = {.row_count = view->header->row_count};
    for (uint32_t i = 0; i < view->header->sequence_count; i++)
        cost.attended_count += attended_count_of(&view->sequences[i]);
    uint64_t even_ns = world_number(world, SIMULATION_STAGE_NS) +
                       cost.row_count * world_number(world, SIMULATION_ROW_NS) +
                       cost.attended_count * world_number(world, SIMULATION_ATTENDED_PS) / 1000;
    // The costs are those of a stage with an even share of the layers.
    cost.compute_ns = even_ns * service->assignment.layer_count * service->assignment.stage_count /
                      world_number(world, SIMULATION_LAYERS);
    return cost;
}

// -- frames out -----------------------------------------------------------------------------------

// The same rows with this stage's values.
static struct parcel *write_step(struct world *world, const struct frame_view *in, size_t in_bytes,
                                 const uint64_t *values) {
    struct frame_header wanted = *in->header;
    wanted.hidden_size = world->limits.hidden_size;
    wanted.dtype = (uint16_t)world->limits.dtype;
    size_t payload_bytes = wanted.row_count * sizeof(*values);
    struct parcel *out = parcel_take(world, in_bytes + payload_bytes + FRAME_ALIGNMENT);
    struct frame_view view;
    enum status status = frame_format(out->frame, &wanted, &view);
    CHECK(status == STATUS_OK);
    memcpy(view.sequences, in->sequences, in->header->payload_offset - sizeof(struct frame_header));
    memcpy(view.payload, values, payload_bytes);
    return out;
}

static uint32_t draw_token(const struct world *world, const struct frame_view *view,
                           const struct frame_sequence *s, uint64_t value) {
    struct toy_draw draw = {.sampling = s, .vocabulary_size = world->limits.vocabulary_size};
    for (uint32_t i = 0; i < s->bias_count; i++)
        draw.bias_sum += toy_bias(&view->biases[s->bias_first + i]);
    // With penalties, the token of a row that was ahead is one more of the output.
    bool has_newer = s->token_lag > 0 && s->history_count > 0;
    uint32_t newer_id = view->tokens[s->row_first];
    for (uint32_t i = 0; i < s->history_count; i++) {
        const struct frame_history *entry = &view->history[s->history_first + i];
        bool is_newer = has_newer && entry->token_id == newer_id;
        draw.history_sum += toy_history(entry->token_id, entry->output_count + (is_newer ? 1 : 0));
        if (is_newer) has_newer = false;
    }
    if (has_newer) draw.history_sum += toy_history(newer_id, 1);
    return toy_token(&draw, value);
}

static struct parcel *write_result(struct world *world, const struct frame_view *in,
                                   const uint64_t *values) {
    struct frame_header wanted = {
        .kind = FRAME_RESULT,
        .epoch = in->header->epoch,
        .step = in->header->step,
        .row_count = in->header->row_count,
        .sequence_count = in->header->sequence_count,
    };
    for (uint32_t i = 0; i < wanted.sequence_count; i++)
        wanted.sample_count += in->sequences[i].flags & FRAME_SAMPLE ? 1 : 0;
    struct parcel *out = parcel_take(world, sizeof(wanted) + FRAME_ALIGNMENT +
                                                wanted.sample_count * sizeof(struct frame_sample));
    struct frame_view view;
    enum status status = frame_format(out->frame, &wanted, &view);
    CHECK(status == STATUS_OK);
    struct frame_sample *sample = view.samples;
    for (uint32_t i = 0; i < wanted.sequence_count; i++) {
        const struct frame_sequence *s = &in->sequences[i];
        if (!(s->flags & FRAME_SAMPLE)) continue;
        sample->sequence_id = s->sequence_id;
        sample->token_id = draw_token(world, in, s, values[s->row_first + s->row_count - 1]);
        sample++;
    }
    return out;
}

// -- tokens that come back ------------------------------------------------------------------------

static enum status parse_step(const struct service *service, const struct parcel *in,
                              struct frame_view *view, struct error *error) {
    struct frame_limits limits = service->world->limits;
    limits.epoch = service->epoch;
    limits.has_payload = !is_first(service);
    return frame_parse(in->frame, &limits, view, error);
}

bool service_has_tokens(const struct service *service, const struct parcel *in) {
    struct frame_view view;
    if (service->feedback == NULL) return true;
    if (parse_step(service, in, &view, NULL) != STATUS_OK) return true;
    return feedback_has(service->feedback, &view);
}

enum status service_keep_result(struct world *world, struct service *service, struct parcel *parcel,
                                struct error *error) {
    struct frame_limits limits = world->limits;
    limits.epoch = service->epoch;
    limits.kind = FRAME_RESULT;
    struct frame_view view;
    enum status status = frame_parse(parcel->frame, &limits, &view, error);
    if (status == STATUS_OK) status = feedback_keep(service->feedback, &view, error);
    parcel_give(world, parcel);
    return status;
}

// -- a step ---------------------------------------------------------------------------------------

enum status service_step(struct world *world, struct service *service, struct parcel *in,
                         struct parcel **out_out, struct service_cost *cost_out,
                         struct error *error) {
    struct frame_view view;
    enum status status = parse_step(service, in, &view, error);
    if (status != STATUS_OK) return status;
    if (view.header->step != service->step_last + 1)
        world_fail(world, "stage '%s' got step %lu after step %lu", service->name,
                   (unsigned long)view.header->step, (unsigned long)service->step_last);
    service->step_last = view.header->step;
    if (service->feedback != NULL) {
        status = feedback_write(service->feedback, &view, error);
        if (status != STATUS_OK) return status;
    }
    struct service_cost cost = cost_of(world, service, &view);
    // The payload is ours to change: values are 64 bits a row, as two numbers of the frame's dtype.
    uint64_t *values = is_first(service) ? world->row_values : (uint64_t *)view.payload;
    compute_rows(world, service, &view, values);
    *out_out = is_last(service) ? write_result(world, &view, values)
                                : write_step(world, &view, in->frame->size_bytes, values);
    struct frame_header *header = (struct frame_header *)(*out_out)->frame->data;
    header->compute_ns = view.header->compute_ns + cost.compute_ns;
    header->slowest_ns =
        view.header->slowest_ns > cost.compute_ns ? view.header->slowest_ns : cost.compute_ns;
    *cost_out = cost;
    return STATUS_OK;
}
