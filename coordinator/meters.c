#include "coordinator/meters.h"

#include <stdlib.h>

#include "base/limits.h"
#include "base/memory.h"

enum { NS_PER_S = 1000000000, SECOND_COUNT = TIMELINE_WINDOW_S + 1 };

// Upper bounds of the histograms' buckets; one more has no bound.
static double BOUNDS_SECONDS[] = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                                  0.5,    1,     2,     5,     10,   20,   50,   100};
enum { BOUND_COUNT = sizeof(BOUNDS_SECONDS) / sizeof(BOUNDS_SECONDS[0]) };

struct histogram {
    uint64_t counts[BOUND_COUNT + 1];
    double sum_seconds;
};

struct token_second {
    uint64_t number;
    uint64_t token_count;
};

// Messages and what they point to; see meters_steps.
struct steps_answer {
    Stagecoach__V1__Steps message;
    Stagecoach__V1__Step *steps;
    Stagecoach__V1__Step **step_pointers;
    Stagecoach__V1__StageStep *stages; // stage_count for each step
    Stagecoach__V1__StageStep **stage_pointers;
};

struct meters {
    uint32_t stage_count;
    uint64_t opened_ns;
    struct timeline *timeline;
    struct histogram histograms[METER_COUNT];
    struct token_second seconds[SECOND_COUNT];
    uint64_t prefix_token_count, prefix_hit_token_count;
    // What answers point to.
    Stagecoach__V1__Histogram histogram_messages[METER_COUNT];
    Stagecoach__V1__StageTimes *times, *window_times; // of each stage
    struct steps_answer answer;
};

static bool open_answer(struct steps_answer *answer, uint32_t stage_count) {
    const size_t step_count = METERS_ANSWER_STEP_COUNT_MAX;
    answer->steps = memory_array(step_count, sizeof(*answer->steps));
    answer->step_pointers = memory_array(step_count, sizeof(struct Stagecoach__V1__Step *));
    answer->stages = memory_array(step_count * stage_count, sizeof(*answer->stages));
    answer->stage_pointers =
        memory_array(step_count * stage_count, sizeof(struct Stagecoach__V1__StageStep *));
    return answer->steps != NULL && answer->step_pointers != NULL && answer->stages != NULL &&
           answer->stage_pointers != NULL;
}

enum status meters_open(uint32_t stage_count, uint64_t now_ns, struct meters **meters_out) {
    struct meters *meters = calloc(1, sizeof(*meters));
    if (meters == NULL) return STATUS_NO_MEMORY;
    meters->stage_count = stage_count;
    meters->opened_ns = now_ns;
    meters->times = memory_array(stage_count, sizeof(*meters->times));
    meters->window_times = memory_array(stage_count, sizeof(*meters->window_times));
    enum status status = timeline_open(stage_count, now_ns, &meters->timeline);
    if (status != STATUS_OK || meters->times == NULL || meters->window_times == NULL ||
        !open_answer(&meters->answer, stage_count)) {
        meters_close(meters);
        return STATUS_NO_MEMORY;
    }
    *meters_out = meters;
    return STATUS_OK;
}

void meters_close(struct meters *meters) {
    if (meters == NULL) return;
    timeline_close(meters->timeline);
    free(meters->times);
    free(meters->window_times);
    free(meters->answer.steps);
    free(meters->answer.step_pointers);
    free(meters->answer.stages);
    free(meters->answer.stage_pointers);
    free(meters);
}

struct timeline *meters_timeline(struct meters *meters) {
    return meters->timeline;
}

// -- what happened --------------------------------------------------------------------------------

void meters_observe(struct meters *meters, enum meter meter, uint64_t ns) {
    struct histogram *histogram = &meters->histograms[meter];
    double seconds = (double)ns / NS_PER_S;
    uint32_t place = 0;
    while (place < BOUND_COUNT && seconds > BOUNDS_SECONDS[place])
        place++;
    histogram->counts[place]++;
    histogram->sum_seconds += seconds;
}

void meters_count_token(struct meters *meters, uint64_t now_ns) {
    uint64_t number = now_ns / NS_PER_S;
    struct token_second *second = &meters->seconds[number % SECOND_COUNT];
    if (second->number != number) *second = (struct token_second){.number = number};
    second->token_count++;
}

void meters_count_prompt(struct meters *meters, uint32_t prompt_count, uint32_t cached_count) {
    meters->prefix_token_count += prompt_count;
    meters->prefix_hit_token_count += cached_count;
}

// -- what is so -----------------------------------------------------------------------------------

static Stagecoach__V1__Histogram *describe_histogram(struct meters *meters, enum meter meter) {
    struct histogram *histogram = &meters->histograms[meter];
    Stagecoach__V1__Histogram *message = &meters->histogram_messages[meter];
    stagecoach__v1__histogram__init(message);
    message->bounds_seconds = BOUNDS_SECONDS;
    message->n_bounds_seconds = BOUND_COUNT;
    message->counts = histogram->counts;
    message->n_counts = BOUND_COUNT + 1;
    message->sum_seconds = histogram->sum_seconds;
    return message;
}

static void describe_times(const struct timeline_times *times, Stagecoach__V1__StageTimes *out) {
    stagecoach__v1__stage_times__init(out);
    out->busy_ns = times->busy_ns;
    out->starved_ns = times->starved_ns;
    out->wire_ns = times->wire_ns;
    out->imbalance_ns = times->imbalance_ns;
    out->queued_ns = times->queued_ns;
    out->hop_ns = times->hop_ns;
    out->step_count = times->step_count;
}

static void describe_stage(struct meters *meters, uint64_t now_ns, Stagecoach__V1__Stage *stage) {
    uint32_t index = stage->stage_index;
    if (stage->layer_count == 0 || index >= meters->stage_count) return;
    struct timeline_times times;
    timeline_total(meters->timeline, index, &times);
    describe_times(&times, &meters->times[index]);
    stage->times = &meters->times[index];
    timeline_window(meters->timeline, now_ns, index, &times);
    describe_times(&times, &meters->window_times[index]);
    stage->times_window = &meters->window_times[index];
}

// Tokens of the window that timeline_summary.length_ns has, but for what comes late.
static uint64_t count_window_tokens(const struct meters *meters, uint64_t now_ns) {
    uint64_t now_s = now_ns / NS_PER_S, count = 0;
    for (uint32_t i = 0; i < SECOND_COUNT; i++) {
        const struct token_second *second = &meters->seconds[i];
        if (second->number <= now_s && now_s - second->number <= TIMELINE_WINDOW_S)
            count += second->token_count;
    }
    return count;
}

static void describe_window(struct meters *meters, uint64_t now_ns,
                            Stagecoach__V1__Pipeline *pipeline) {
    struct timeline_summary summary;
    timeline_summarize(meters->timeline, now_ns, &summary);
    double seconds = (double)summary.length_ns / NS_PER_S;
    pipeline->window_seconds = seconds;
    pipeline->bubble_ratio = summary.bubble_ratio;
    pipeline->bubble_ratio_ideal = summary.bubble_ratio_ideal;
    if (seconds > 0) {
        pipeline->completion_tokens_per_second =
            (double)count_window_tokens(meters, now_ns) / seconds;
        pipeline->rows_per_second = (double)summary.sums.row_count / seconds;
        pipeline->microbatches_per_second = (double)summary.sums.step_count / seconds;
    }
    if (summary.sums.step_count > 0)
        pipeline->microbatch_seconds =
            (double)summary.sums.passage_ns / NS_PER_S / (double)summary.sums.step_count;
}

void meters_describe(struct meters *meters, uint64_t now_ns, Stagecoach__V1__Pipeline *pipeline) {
    const struct timeline *timeline = meters->timeline;
    describe_window(meters, now_ns, pipeline);
    struct timeline_sums sums;
    timeline_total_sums(timeline, &sums);
    pipeline->microbatch_ns = sums.passage_ns;
    pipeline->microbatch_row_count = sums.row_count;
    pipeline->microbatch_count = sums.step_count;
    pipeline->microbatch_lost_count = timeline_lost_count(timeline);
    pipeline->microbatch_oldest_age_seconds =
        (double)timeline_oldest_age_ns(timeline, now_ns) / NS_PER_S;
    pipeline->prefix_token_count = meters->prefix_token_count;
    pipeline->prefix_hit_token_count = meters->prefix_hit_token_count;
    pipeline->queue = describe_histogram(meters, METER_QUEUE);
    pipeline->first_token = describe_histogram(meters, METER_FIRST_TOKEN);
    pipeline->inter_token = describe_histogram(meters, METER_INTER_TOKEN);
    pipeline->request = describe_histogram(meters, METER_REQUEST);
    for (size_t i = 0; i < pipeline->n_stages; i++)
        describe_stage(meters, now_ns, pipeline->stages[i]);
}

// -- one by one -----------------------------------------------------------------------------------

static void describe_stage_step(const struct timeline_stage_step *step,
                                Stagecoach__V1__StageStep *out) {
    stagecoach__v1__stage_step__init(out);
    out->received_ns = step->received_ns;
    out->begin_ns = step->begin_ns;
    out->end_ns = step->end_ns;
    out->starved_ns = step->starved_ns;
    out->wire_ns = step->wire_ns;
    out->imbalance_ns = step->imbalance_ns;
}

static void append_step(struct meters *meters, const struct timeline_step *step,
                        const struct timeline_stage_step *stages) {
    struct steps_answer *answer = &meters->answer;
    size_t place = answer->message.n_steps++;
    Stagecoach__V1__Step *out = &answer->steps[place];
    stagecoach__v1__step__init(out);
    out->epoch = step->epoch;
    out->step = step->step;
    out->sent_ns = step->sent_ns;
    out->result_ns = step->result_ns;
    out->row_count = step->row_count;
    out->sequence_count = step->sequence_count;
    out->n_stages = meters->stage_count;
    out->stages = &answer->stage_pointers[place * meters->stage_count];
    for (uint32_t s = 0; s < meters->stage_count; s++) {
        out->stages[s] = &answer->stages[place * meters->stage_count + s];
        describe_stage_step(&stages[s], out->stages[s]);
    }
    answer->step_pointers[place] = out;
}

const Stagecoach__V1__Steps *meters_steps(struct meters *meters, uint64_t now_ns, uint64_t cursor) {
    Stagecoach__V1__Steps *message = &meters->answer.message;
    stagecoach__v1__steps__init(message);
    message->now_ns = now_ns;
    message->steps = meters->answer.step_pointers;
    // Cursors of clients are one more than those of the timeline, for 0 is none.
    uint64_t place = timeline_cursor(meters->timeline);
    if (cursor != 0 && cursor - 1 < place) place = cursor - 1;
    const struct timeline_step *step;
    const struct timeline_stage_step *stages;
    while (message->n_steps < METERS_ANSWER_STEP_COUNT_MAX &&
           (step = timeline_next(meters->timeline, &place, &stages)) != NULL)
        append_step(meters, step, stages);
    message->cursor = place + 1;
    return message;
}
