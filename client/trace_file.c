#include "client/trace_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>

#include "base/status.h"

enum { PIPELINE_PID = 1, LINK_PID = 2 };

static void next_event(struct trace_file *trace) {
    fputs(trace->has_events ? ",\n" : "\n", trace->file);
    trace->has_events = true;
}

PRINTF_LIKE(2, 3) static void event(struct trace_file *trace, const char *format, ...) {
    next_event(trace);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(trace->file, format, arguments);
    va_end(arguments);
}

// The format counts in microseconds.
static double time_us(const struct trace_file *trace, uint64_t ns) {
    return ((double)ns - (double)trace->begin_ns) / 1e3;
}

// -- names ----------------------------------------------------------------------------------------

// `key` is process_name or thread_name.
static void name_track(struct trace_file *trace, const char *key, int pid, uint32_t tid,
                       const char *name) {
    json_t *value = json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "ph", "M", "name", key, "pid", pid,
                              "tid", (int)tid, "args", "name", name);
    if (value == NULL) return; // a name that is not UTF-8
    next_event(trace);
    json_dumpf(value, trace->file, JSON_COMPACT);
    json_decref(value);
}

static void name_stage(struct trace_file *trace, const Stagecoach__V1__Stage *stage) {
    char name[160];
    snprintf(name, sizeof(name), "stage %" PRIu32 " (%s)", stage->stage_index, stage->name);
    name_track(trace, "thread_name", PIPELINE_PID, stage->stage_index + 1, name);
    event(trace,
          "{\"ph\":\"M\",\"name\":\"thread_sort_index\",\"pid\":%d,\"tid\":%" PRIu32
          ",\"args\":{\"sort_index\":%" PRIu32 "}}",
          PIPELINE_PID, stage->stage_index + 1, stage->stage_index);
}

void trace_file_begin(struct trace_file *trace, FILE *file, uint64_t begin_ns,
                      const Stagecoach__V1__Pipeline *pipeline) {
    *trace = (struct trace_file){.file = file, .begin_ns = begin_ns};
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[", file);
    char name[300];
    snprintf(name, sizeof(name), "pipeline %s", pipeline->model_name);
    name_track(trace, "process_name", PIPELINE_PID, 0, name);
    name_track(trace, "process_name", LINK_PID, 0, "links");
    for (size_t i = 0; i < pipeline->n_stages; i++)
        if (pipeline->stages[i]->layer_count != 0) name_stage(trace, pipeline->stages[i]);
}

// -- one microbatch -------------------------------------------------------------------------------

static void write_compute(struct trace_file *trace, const Stagecoach__V1__Step *step,
                          uint32_t stage_index) {
    const Stagecoach__V1__StageStep *at = step->stages[stage_index];
    event(trace,
          "{\"ph\":\"X\",\"cat\":\"compute\",\"name\":\"step %" PRIu64
          "\",\"pid\":%d,\"tid\":%" PRIu32 ",\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"epoch\":%" PRIu64
          ",\"step\":%" PRIu64 ",\"rows\":%" PRIu32 ",\"sequences\":%" PRIu32
          ",\"queued_us\":%.3f}}",
          step->step, PIPELINE_PID, stage_index + 1, time_us(trace, at->begin_ns),
          (double)(at->end_ns - at->begin_ns) / 1e3, step->epoch, step->step, step->row_count,
          step->sequence_count, (double)(at->begin_ns - at->received_ns) / 1e3);
}

// What the stage waited for before the step, ending where the step begins.
static void write_idle(struct trace_file *trace, const Stagecoach__V1__Step *step,
                       uint32_t stage_index) {
    const Stagecoach__V1__StageStep *at = step->stages[stage_index];
    const struct {
        const char *name;
        uint64_t ns;
    } causes[] = {
        {"imbalance", at->imbalance_ns}, {"starved", at->starved_ns}, {"wire", at->wire_ns}};
    uint64_t begin_ns = at->begin_ns - at->imbalance_ns - at->starved_ns - at->wire_ns;
    for (size_t i = 0; i < sizeof(causes) / sizeof(causes[0]); i++) {
        if (causes[i].ns == 0) continue;
        event(trace,
              "{\"ph\":\"X\",\"cat\":\"idle\",\"name\":\"%s\",\"pid\":%d,\"tid\":%" PRIu32
              ",\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"step\":%" PRIu64 "}}",
              causes[i].name, PIPELINE_PID, stage_index + 1, time_us(trace, begin_ns),
              (double)causes[i].ns / 1e3, step->step);
        begin_ns += causes[i].ns;
    }
}

// A frame's way: link `link_index` leads to the stage of that index, the last one back to us.
static void write_wire(struct trace_file *trace, const Stagecoach__V1__Step *step,
                       uint32_t link_index, uint64_t from_ns, uint64_t to_ns) {
    if (to_ns < from_ns) to_ns = from_ns; // clocks of two machines agree only so far
    trace->wire_count++;
    char to[32] = "the coordinator";
    if (link_index < step->n_stages) snprintf(to, sizeof(to), "stage %" PRIu32, link_index);
    const struct {
        char phase;
        uint64_t ns;
    } ends[] = {{'b', from_ns}, {'e', to_ns}};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        event(trace,
              "{\"ph\":\"%c\",\"cat\":\"wire\",\"name\":\"wire to %s\",\"id\":%" PRIu64
              ",\"pid\":%d,\"tid\":%" PRIu32 ",\"ts\":%.3f,\"args\":{\"step\":%" PRIu64 "}}",
              ends[i].phase, to, trace->wire_count, LINK_PID, link_index + 1,
              time_us(trace, ends[i].ns), step->step);
}

// The arrow through all slices of the step; its points lie in them.
static void write_arrow(struct trace_file *trace, const Stagecoach__V1__Step *step,
                        uint32_t stage_index) {
    if (step->n_stages < 2) return;
    bool is_first = stage_index == 0, is_last = stage_index + 1 == step->n_stages;
    const Stagecoach__V1__StageStep *at = step->stages[stage_index];
    event(trace,
          "{\"ph\":\"%s\",\"cat\":\"step\",\"name\":\"step\",\"id\":%" PRIu64
          ",\"pid\":%d,\"tid\":%" PRIu32 ",\"ts\":%.3f}",
          is_first ? "s" : (is_last ? "f\",\"bp\":\"e" : "t"), trace->step_count, PIPELINE_PID,
          stage_index + 1, time_us(trace, at->begin_ns + (at->end_ns - at->begin_ns) / 2));
}

static bool is_reported(const Stagecoach__V1__StageStep *at) {
    return at->end_ns != 0 && at->begin_ns <= at->end_ns && at->received_ns <= at->begin_ns;
}

void trace_file_step(struct trace_file *trace, const Stagecoach__V1__Step *step) {
    trace->step_count++;
    bool is_whole = step->result_ns != 0;
    for (uint32_t s = 0; s < step->n_stages; s++)
        is_whole = is_whole && is_reported(step->stages[s]);
    uint64_t from_ns = step->sent_ns; // 0: not known
    for (uint32_t s = 0; s < step->n_stages; s++) {
        const Stagecoach__V1__StageStep *at = step->stages[s];
        if (!is_reported(at)) {
            from_ns = 0;
            continue;
        }
        if (from_ns != 0) write_wire(trace, step, s, from_ns, at->received_ns);
        write_idle(trace, step, s);
        write_compute(trace, step, s);
        if (is_whole) write_arrow(trace, step, s);
        from_ns = at->end_ns;
    }
    if (step->result_ns != 0 && from_ns != 0)
        write_wire(trace, step, (uint32_t)step->n_stages, from_ns, step->result_ns);
}

bool trace_file_end(struct trace_file *trace) {
    fputs("\n]}\n", trace->file);
    return fflush(trace->file) == 0 && !ferror(trace->file);
}
