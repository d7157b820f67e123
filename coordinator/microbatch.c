#include "coordinator/microbatch.h"

#include <string.h>

#include "base/check.h"

static struct frame_header count_entries(const struct scheduler_pick *picks, uint32_t pick_count) {
    struct frame_header header = {.kind = FRAME_STEP, .sequence_count = pick_count};
    for (uint32_t i = 0; i < pick_count; i++) {
        const struct scheduler_pick *pick = &picks[i];
        header.row_count += pick->row_count;
        header.block_count += kv_blocks_for(pick->position_first + pick->row_count);
        if (!pick->is_sample) continue;
        header.bias_count += pick->sequence->bias_count;
        header.history_count += pick->sequence->history.entry_count;
    }
    return header;
}

// Where the next sequence's entries go in each table.
struct cursor {
    uint32_t row, block, bias, history;
};

static void write_tokens(const struct frame_view *view, const struct scheduler_pick *pick,
                         struct frame_sequence *out) {
    const struct sequence *sequence = pick->sequence;
    if (!pick->is_ahead) {
        CHECK(pick->position_first + pick->row_count <= sequence->token_count);
        memcpy(&view->tokens[out->row_first], &sequence->tokens[pick->position_first],
               pick->row_count * sizeof(uint32_t));
        return;
    }
    // Of the tokens before this row, all are known and in the history.
    CHECK(pick->row_count == 1 && pick->position_first == sequence->token_count);
    CHECK(sequence->sampled_step > 0 && sequence->sampled_step < view->header->step);
    out->token_lag = (uint32_t)(view->header->step - sequence->sampled_step);
    out->token_sample = sequence->sampled_index;
    view->tokens[out->row_first] = 0;
}

static void write_sequence(const struct frame_view *view, uint32_t index,
                           const struct scheduler_pick *pick, struct cursor *cursor) {
    const struct sequence *sequence = pick->sequence;
    struct frame_sequence *out = &view->sequences[index];
    *out = sequence->sampling;
    out->sequence_id = pick->run_id;
    out->row_first = cursor->row;
    out->row_count = pick->row_count;
    out->position_first = pick->position_first;
    out->block_first = cursor->block;
    out->block_count = kv_blocks_for(pick->position_first + pick->row_count);
    out->bias_first = cursor->bias;
    out->bias_count = pick->is_sample ? sequence->bias_count : 0;
    out->history_first = cursor->history;
    out->history_count = pick->is_sample ? sequence->history.entry_count : 0;
    out->flags |= pick->is_sample ? FRAME_SAMPLE : 0;
    write_tokens(view, pick, out);
    CHECK(out->block_count <= sequence->block_count);
    memcpy(&view->blocks[cursor->block], sequence->blocks, out->block_count * sizeof(uint32_t));
    if (out->bias_count > 0)
        memcpy(&view->biases[cursor->bias], sequence->biases,
               out->bias_count * sizeof(struct frame_bias));
    if (out->history_count > 0)
        memcpy(&view->history[cursor->history], sequence->history.entries,
               out->history_count * sizeof(struct frame_history));
    cursor->row += out->row_count;
    cursor->block += out->block_count;
    cursor->bias += out->bias_count;
    cursor->history += out->history_count;
}

enum status microbatch_write(struct frame *frame, uint64_t epoch, uint64_t step,
                             const struct scheduler_pick *picks, uint32_t pick_count) {
    CHECK(pick_count > 0);
    struct frame_header wanted = count_entries(picks, pick_count);
    wanted.epoch = epoch;
    wanted.step = step;
    struct frame_view view;
    enum status status = frame_format(frame, &wanted, &view);
    if (status != STATUS_OK) return status;
    struct cursor cursor = {0};
    for (uint32_t i = 0; i < pick_count; i++)
        write_sequence(&view, i, &picks[i], &cursor);
    return STATUS_OK;
}
