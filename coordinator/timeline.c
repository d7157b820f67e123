#include "coordinator/timeline.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"

enum {
    // The seconds of the window, the one that has begun, and one that is overwritten meanwhile.
    SECOND_COUNT = TIMELINE_WINDOW_S + 2,
    NS_PER_S = 1000000000,
};
static_assert((TIMELINE_STEP_COUNT_MAX & (TIMELINE_STEP_COUNT_MAX - 1)) == 0, "a power of two");

// Steps have one number over all epochs, `serial`: the number in the epoch plus epoch_serial.
struct entry {
    struct timeline_step step;
    uint64_t token_serial;   // 0: its tokens were known when it was sent
    uint64_t release_serial; // the last step whose result had come when it was sent; 0: none
    uint64_t quiet_ns;       // since the step before it was sent
};

// What the attribution of later steps looks at again.
struct trail {
    uint64_t idle_ns;        // without quiet time; UINT64_MAX: not known
    uint64_t direct_wire_ns; // part of it: this very frame was on its way
};

struct second {
    uint64_t number;
    struct timeline_sums sums;
    uint64_t run_count; // steps that ended a quiet time
};

struct timeline {
    uint32_t stage_count;
    uint64_t epoch, epoch_serial;
    uint64_t sent_serial, result_serial, decided_serial; // the last of each
    struct entry *entries;                               // by serial, TIMELINE_STEP_COUNT_MAX
    struct timeline_stage_step *stage_steps;             // the same, stage_count for each
    struct trail *trails;                                // the same
    uint64_t *reported_serials;                          // of each stage: its last record
    uint64_t *idle_since_ns;                             // of each stage: end of the last decided
                                                         // step; 0: not known
    struct timeline_times *totals;                       // of each stage
    struct timeline_sums total_sums;
    uint64_t opened_ns;
    struct second seconds[SECOND_COUNT];
    struct timeline_times *second_times; // SECOND_COUNT times stage_count
    uint64_t lost_count;
    bool is_quiet;
    uint64_t quiet_since_ns, quiet_ns; // the sum until then
    uint64_t quiet_sent_ns;            // the sum when the last step was sent
};

enum status timeline_open(uint32_t stage_count, uint64_t now_ns, struct timeline **timeline_out) {
    struct timeline *t = calloc(1, sizeof(*t));
    if (t == NULL) return STATUS_NO_MEMORY;
    size_t cell_count = (size_t)TIMELINE_STEP_COUNT_MAX * stage_count;
    t->stage_count = stage_count;
    t->is_quiet = true;
    t->quiet_since_ns = t->opened_ns = now_ns;
    t->entries = memory_array(TIMELINE_STEP_COUNT_MAX, sizeof(*t->entries));
    t->stage_steps = memory_array(cell_count, sizeof(*t->stage_steps));
    t->trails = memory_array(cell_count, sizeof(*t->trails));
    t->reported_serials = memory_array(stage_count, sizeof(*t->reported_serials));
    t->idle_since_ns = memory_array(stage_count, sizeof(*t->idle_since_ns));
    t->totals = memory_array(stage_count, sizeof(*t->totals));
    t->second_times = memory_array((size_t)SECOND_COUNT * stage_count, sizeof(*t->second_times));
    if (t->entries == NULL || t->stage_steps == NULL || t->trails == NULL ||
        t->reported_serials == NULL || t->idle_since_ns == NULL || t->totals == NULL ||
        t->second_times == NULL) {
        timeline_close(t);
        return STATUS_NO_MEMORY;
    }
    *timeline_out = t;
    return STATUS_OK;
}

void timeline_close(struct timeline *timeline) {
    if (timeline == NULL) return;
    free(timeline->entries);
    free(timeline->stage_steps);
    free(timeline->trails);
    free(timeline->reported_serials);
    free(timeline->idle_since_ns);
    free(timeline->totals);
    free(timeline->second_times);
    free(timeline);
}

static size_t place_of(uint64_t serial) {
    return (size_t)(serial & (TIMELINE_STEP_COUNT_MAX - 1));
}

static struct entry *entry_of(const struct timeline *t, uint64_t serial) {
    return &t->entries[place_of(serial)];
}

static struct timeline_stage_step *stage_steps_of(const struct timeline *t, uint64_t serial) {
    return &t->stage_steps[place_of(serial) * t->stage_count];
}

static struct trail *trails_of(const struct timeline *t, uint64_t serial) {
    return &t->trails[place_of(serial) * t->stage_count];
}

// -- attribution ----------------------------------------------------------------------------------

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static uint64_t clamp(uint64_t value, uint64_t minimum, uint64_t maximum) {
    return least(most(value, minimum), maximum);
}

// Takes at most `limit` from what is left.
static uint64_t take(uint64_t *left, uint64_t limit) {
    uint64_t part = least(*left, limit);
    *left -= part;
    return part;
}

// The idle time of a stage before a step, as it is split.
struct idle {
    uint64_t begin_ns, end_ns;
    uint64_t quiet_ns, starved_ns, wire_ns, imbalance_ns;
    uint64_t direct_wire_ns; // this very frame was on its way
};

// A decided step of which all records are there and not overwritten.
static const struct entry *find_whole(const struct timeline *t, uint64_t serial) {
    if (serial <= t->epoch_serial || serial > t->decided_serial ||
        t->sent_serial - serial >= TIMELINE_STEP_COUNT_MAX)
        return NULL;
    const struct entry *entry = entry_of(t, serial);
    return entry->step.is_whole ? entry : NULL;
}

static uint64_t end_at_last_stage(const struct timeline *t, uint64_t serial) {
    if (find_whole(t, serial) == NULL) return 0;
    return stage_steps_of(t, serial)[t->stage_count - 1].end_ns;
}

// A stage waited first_ns until another one had ended a step, then wire_ns for what came of that.
// What it waited longer than the other (idle_max_ns) is imbalance: without hops it had waited too.
static void cut_excess(uint64_t idle_max_ns, uint64_t *first_ns, uint64_t *wire_ns,
                       struct idle *idle) {
    if (*first_ns == 0 || *first_ns + *wire_ns <= idle_max_ns) return;
    uint64_t excess_ns = *first_ns + *wire_ns - idle_max_ns;
    idle->imbalance_ns += excess_ns;
    excess_ns -= take(first_ns, excess_ns);
    take(wire_ns, excess_ns);
}

// Stage 0 waited ring_ns for step `serial` to end at the last stage, and wire_ns for what came of
// it. More microbatches would have helped as long as all later stages were idle before that step.
static void split_ring_wait(const struct timeline *t, uint64_t serial, uint64_t ring_ns,
                            uint64_t wire_ns, struct idle *idle) {
    uint64_t idle_min_ns = UINT64_MAX, wire_sum_ns = 0;
    if (find_whole(t, serial) != NULL) {
        const struct trail *trails = trails_of(t, serial);
        for (uint32_t s = 1; s < t->stage_count; s++) {
            idle_min_ns = least(idle_min_ns, trails[s].idle_ns);
            wire_sum_ns += trails[s].direct_wire_ns;
        }
    }
    cut_excess(idle_min_ns, &ring_ns, &wire_ns, idle);
    idle->wire_ns = wire_ns + take(&ring_ns, wire_sum_ns);
    idle->starved_ns += ring_ns;
}

static void split_first(const struct timeline *t, const struct entry *entry, struct idle *idle) {
    uint64_t token_ns = end_at_last_stage(t, entry->token_serial);
    uint64_t sent_ns = entry->step.sent_ns;
    bool waits_for_token = token_ns > sent_ns;
    uint64_t serial = waits_for_token ? entry->token_serial : entry->release_serial;
    uint64_t given_ns = clamp(most(token_ns, sent_ns), idle->begin_ns, idle->end_ns);
    uint64_t drawn_ns = clamp(end_at_last_stage(t, serial), idle->begin_ns, given_ns);
    uint64_t result_ns = drawn_ns;
    if (!waits_for_token && find_whole(t, serial) != NULL)
        result_ns = clamp(entry_of(t, serial)->step.result_ns, drawn_ns, given_ns);
    uint64_t late_ns = given_ns - result_ns, ring_ns = drawn_ns - idle->begin_ns;
    idle->quiet_ns = take(&late_ns, entry->quiet_ns);
    idle->quiet_ns += take(&ring_ns, entry->quiet_ns - idle->quiet_ns);
    idle->starved_ns = late_ns;
    idle->direct_wire_ns = idle->end_ns - given_ns;
    split_ring_wait(t, serial, ring_ns, result_ns - drawn_ns + idle->direct_wire_ns, idle);
}

// Other stages: the neighbour had the step until its end; what it waited, this one waits too.
static void split_other(const struct timeline_stage_step *step, const struct idle *idle_before,
                        struct idle *idle) {
    uint64_t given_ns = clamp((step - 1)->end_ns, idle->begin_ns, idle->end_ns);
    uint64_t left_ns = given_ns - idle->begin_ns, wire_ns = idle->end_ns - given_ns;
    idle->quiet_ns = take(&left_ns, idle_before->quiet_ns);
    idle->direct_wire_ns = wire_ns;
    cut_excess(idle_before->starved_ns + idle_before->wire_ns, &left_ns, &wire_ns, idle);
    idle->starved_ns = take(&left_ns, idle_before->starved_ns);
    idle->wire_ns = left_ns + wire_ns;
}

static void add_times(struct timeline_times *sum, const struct timeline_times *times) {
    sum->busy_ns += times->busy_ns;
    sum->starved_ns += times->starved_ns;
    sum->wire_ns += times->wire_ns;
    sum->imbalance_ns += times->imbalance_ns;
    sum->queued_ns += times->queued_ns;
    sum->hop_ns += times->hop_ns;
    sum->step_count += times->step_count;
}

static void add_sums(struct timeline_sums *sum, const struct timeline_sums *sums) {
    sum->step_count += sums->step_count;
    sum->row_count += sums->row_count;
    sum->passage_ns += sums->passage_ns;
}

static struct second *second_of(struct timeline *t, uint64_t time_ns) {
    uint64_t number = time_ns / NS_PER_S;
    uint64_t place = number % SECOND_COUNT;
    struct second *second = &t->seconds[place];
    // Reported so late that its place is taken: counted with the later second.
    if (second->number < number) {
        *second = (struct second){.number = number};
        memset(&t->second_times[place * t->stage_count], 0,
               t->stage_count * sizeof(*t->second_times));
    }
    return second;
}

static struct timeline_times times_of(const struct timeline_stage_step *step, uint64_t given_ns) {
    return (struct timeline_times){
        .busy_ns = step->end_ns - step->begin_ns,
        .starved_ns = step->starved_ns,
        .wire_ns = step->wire_ns,
        .imbalance_ns = step->imbalance_ns,
        .queued_ns = step->begin_ns - step->received_ns,
        .hop_ns = step->received_ns > given_ns ? step->received_ns - given_ns : 0,
        .step_count = 1,
    };
}

// One stage's part of a whole step. idle_before: of stage_index - 1, not read for stage 0.
static struct idle attribute(struct timeline *t, uint64_t serial, uint32_t stage_index,
                             const struct idle *idle_before, struct timeline_times *sum) {
    const struct entry *entry = entry_of(t, serial);
    struct timeline_stage_step *step = &stage_steps_of(t, serial)[stage_index];
    uint64_t since_ns = t->idle_since_ns[stage_index];
    bool is_known = since_ns != 0;
    struct idle idle = {.begin_ns = is_known ? least(since_ns, step->begin_ns) : step->begin_ns,
                        .end_ns = step->begin_ns};
    if (stage_index == 0)
        split_first(t, entry, &idle);
    else
        split_other(step, idle_before, &idle);
    trails_of(t, serial)[stage_index] = (struct trail){
        .idle_ns = is_known ? idle.end_ns - idle.begin_ns - idle.quiet_ns : UINT64_MAX,
        .direct_wire_ns = idle.direct_wire_ns,
    };
    step->starved_ns = idle.starved_ns;
    step->wire_ns = idle.wire_ns;
    step->imbalance_ns = idle.imbalance_ns;
    uint64_t given_ns = stage_index == 0 ? entry->step.sent_ns : (step - 1)->end_ns;
    struct timeline_times times = times_of(step, given_ns);
    add_times(&t->totals[stage_index], &times);
    add_times(sum, &times);
    return idle;
}

static void attribute_all(struct timeline *t, uint64_t serial) {
    const struct entry *entry = entry_of(t, serial);
    struct second *second = second_of(t, entry->step.result_ns);
    struct timeline_times *sums = &t->second_times[(second - t->seconds) * t->stage_count];
    struct timeline_sums sums_of_step = {1, entry->step.row_count,
                                         entry->step.result_ns - entry->step.sent_ns};
    add_sums(&second->sums, &sums_of_step);
    add_sums(&t->total_sums, &sums_of_step);
    second->run_count += entry->quiet_ns > 0 ? 1 : 0;
    struct idle idle = {0};
    for (uint32_t s = 0; s < t->stage_count; s++)
        idle = attribute(t, serial, s, &idle, &sums[s]);
}

// The oldest undecided step: nothing more will be told about it.
static void decide(struct timeline *t) {
    uint64_t serial = t->decided_serial + 1;
    struct entry *entry = entry_of(t, serial);
    const struct timeline_stage_step *steps = stage_steps_of(t, serial);
    bool is_whole = entry->step.result_ns != 0;
    for (uint32_t s = 0; s < t->stage_count; s++)
        is_whole = is_whole && steps[s].end_ns != 0;
    if (is_whole)
        attribute_all(t, serial);
    else
        t->lost_count++;
    entry->step.is_whole = is_whole;
    for (uint32_t s = 0; s < t->stage_count; s++)
        t->idle_since_ns[s] = steps[s].end_ns;
    t->decided_serial = serial;
}

static bool can_decide(const struct timeline *t) {
    uint64_t serial = t->decided_serial + 1;
    if (serial > t->result_serial) return false;
    for (uint32_t s = 0; s < t->stage_count; s++)
        if (t->reported_serials[s] < serial) return false;
    return true;
}

// -- what happened --------------------------------------------------------------------------------

void timeline_begin_epoch(struct timeline *timeline, uint64_t epoch) {
    while (timeline->decided_serial < timeline->sent_serial)
        decide(timeline);
    timeline->epoch = epoch;
    timeline->epoch_serial = timeline->result_serial = timeline->sent_serial;
    for (uint32_t s = 0; s < timeline->stage_count; s++) {
        timeline->reported_serials[s] = timeline->epoch_serial;
        timeline->idle_since_ns[s] = 0;
    }
}

void timeline_sent(struct timeline *timeline, const struct timeline_send *send) {
    struct timeline *t = timeline;
    uint64_t serial = t->sent_serial + 1, step = serial - t->epoch_serial;
    CHECK(send->token_step < step);
    if (serial - t->decided_serial > TIMELINE_STEP_COUNT_MAX) decide(t);
    uint64_t quiet_ns = timeline_quiet_ns(t, send->sent_ns);
    *entry_of(t, serial) = (struct entry){
        .step = {.epoch = t->epoch,
                 .step = step,
                 .sent_ns = send->sent_ns,
                 .row_count = send->row_count,
                 .sequence_count = send->sequence_count},
        .token_serial = send->token_step != 0 ? t->epoch_serial + send->token_step : 0,
        .release_serial = t->result_serial > t->epoch_serial ? t->result_serial : 0,
        .quiet_ns = quiet_ns - t->quiet_sent_ns,
    };
    t->quiet_sent_ns = quiet_ns;
    memset(stage_steps_of(t, serial), 0, t->stage_count * sizeof(*t->stage_steps));
    t->sent_serial = serial;
}

void timeline_result(struct timeline *timeline, uint64_t now_ns) {
    uint64_t serial = timeline->result_serial + 1;
    CHECK(serial <= timeline->sent_serial);
    timeline->result_serial = serial;
    if (serial <= timeline->decided_serial) return; // given up already
    struct timeline_step *known = &entry_of(timeline, serial)->step;
    known->result_ns = most(now_ns, known->sent_ns);
    while (can_decide(timeline))
        decide(timeline);
}

void timeline_set_quiet(struct timeline *timeline, bool is_quiet, uint64_t now_ns) {
    if (timeline->is_quiet == is_quiet) return;
    timeline->quiet_ns = timeline_quiet_ns(timeline, now_ns);
    timeline->is_quiet = is_quiet;
    timeline->quiet_since_ns = now_ns;
}

void timeline_record(struct timeline *timeline, uint32_t stage_index,
                     const struct timeline_record *record) {
    struct timeline *t = timeline;
    if (stage_index >= t->stage_count || record->step > t->sent_serial - t->epoch_serial) return;
    uint64_t serial = t->epoch_serial + record->step;
    if (serial <= t->reported_serials[stage_index]) return;
    t->reported_serials[stage_index] = serial;
    if (serial > t->decided_serial && record->begin_ns <= record->end_ns &&
        record->end_ns <= INT64_MAX)
        stage_steps_of(t, serial)[stage_index] = (struct timeline_stage_step){
            // Clocks of two machines agree only so far.
            .received_ns = least(record->received_ns, record->begin_ns),
            .begin_ns = record->begin_ns,
            .end_ns = record->end_ns,
        };
    while (can_decide(t))
        decide(t);
}

// -- what is so -----------------------------------------------------------------------------------

void timeline_total(const struct timeline *timeline, uint32_t stage_index,
                    struct timeline_times *times_out) {
    *times_out = timeline->totals[stage_index];
}

static bool is_in_window(const struct second *second, uint64_t now_ns) {
    uint64_t now_s = now_ns / NS_PER_S;
    return second->number <= now_s && now_s - second->number <= TIMELINE_WINDOW_S;
}

void timeline_window(const struct timeline *timeline, uint64_t now_ns, uint32_t stage_index,
                     struct timeline_times *times_out) {
    struct timeline_times sum = {0};
    for (uint32_t i = 0; i < SECOND_COUNT; i++)
        if (is_in_window(&timeline->seconds[i], now_ns))
            add_times(&sum, &timeline->second_times[i * timeline->stage_count + stage_index]);
    *times_out = sum;
}

void timeline_total_sums(const struct timeline *timeline, struct timeline_sums *sums_out) {
    *sums_out = timeline->total_sums;
}

// The seconds of the window that have passed since the timeline was opened.
static uint64_t window_length_ns(const struct timeline *t, uint64_t now_ns) {
    uint64_t window_ns = now_ns % NS_PER_S + (uint64_t)TIMELINE_WINDOW_S * NS_PER_S;
    uint64_t life_ns = now_ns > t->opened_ns ? now_ns - t->opened_ns : 0;
    return least(window_ns, life_ns);
}

void timeline_summarize(const struct timeline *timeline, uint64_t now_ns,
                        struct timeline_summary *summary_out) {
    struct timeline_summary sum = {.length_ns = window_length_ns(timeline, now_ns)};
    uint64_t run_count = 0;
    for (uint32_t i = 0; i < SECOND_COUNT; i++) {
        const struct second *second = &timeline->seconds[i];
        if (!is_in_window(second, now_ns)) continue;
        add_sums(&sum.sums, &second->sums);
        run_count += second->run_count;
    }
    uint64_t busy_ns = 0, idle_ns = 0;
    for (uint32_t s = 0; s < timeline->stage_count; s++) {
        struct timeline_times times;
        timeline_window(timeline, now_ns, s, &times);
        busy_ns += times.busy_ns;
        idle_ns += times.starved_ns + times.wire_ns + times.imbalance_ns;
    }
    if (busy_ns + idle_ns > 0) sum.bubble_ratio = (double)idle_ns / (double)(busy_ns + idle_ns);
    if (sum.sums.step_count > 0) {
        double fill = timeline->stage_count - 1;
        double length = (double)sum.sums.step_count / (double)most(run_count, 1);
        sum.bubble_ratio_ideal = fill / (fill + length);
    }
    *summary_out = sum;
}

uint64_t timeline_quiet_ns(const struct timeline *timeline, uint64_t now_ns) {
    uint64_t since_ns = timeline->quiet_since_ns;
    bool counts = timeline->is_quiet && now_ns > since_ns;
    return timeline->quiet_ns + (counts ? now_ns - since_ns : 0);
}

uint64_t timeline_oldest_age_ns(const struct timeline *timeline, uint64_t now_ns) {
    if (timeline->result_serial == timeline->sent_serial) return 0;
    uint64_t serial = timeline->result_serial + 1;
    if (timeline->sent_serial - serial >= TIMELINE_STEP_COUNT_MAX) return 0;
    uint64_t sent_ns = entry_of(timeline, serial)->step.sent_ns;
    return now_ns > sent_ns ? now_ns - sent_ns : 0;
}

uint64_t timeline_lost_count(const struct timeline *timeline) {
    return timeline->lost_count;
}

uint64_t timeline_cursor(const struct timeline *timeline) {
    return timeline->decided_serial;
}

const struct timeline_step *timeline_next(const struct timeline *timeline, uint64_t *cursor,
                                          const struct timeline_stage_step **stages_out) {
    const struct timeline *t = timeline;
    if (t->sent_serial - *cursor > TIMELINE_STEP_COUNT_MAX)
        *cursor = t->sent_serial - TIMELINE_STEP_COUNT_MAX;
    if (*cursor >= t->decided_serial) return NULL;
    uint64_t serial = ++*cursor;
    *stages_out = stage_steps_of(t, serial);
    return &entry_of(t, serial)->step;
}
