#include "client/status_view.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "base/status.h"

typedef const Stagecoach__V1__Pipeline pipeline_message;
typedef const Stagecoach__V1__Stage stage_message;
typedef const Stagecoach__V1__Histogram histogram_message;

struct view {
    FILE *file;
    const char *line_end;
};

PRINTF_LIKE(2, 3) static void line(const struct view *view, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(view->file, format, arguments);
    va_end(arguments);
    fputs(view->line_end, view->file);
}

static const char *pipeline_state_word(Stagecoach__V1__PipelineState state) {
    switch (state) {
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_WAITING:
        return "waiting";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_LOADING:
        return "loading";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_CONNECTING:
        return "connecting";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING:
        return "running";
    case STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_DRAINING:
        return "draining";
    default:
        return "unknown";
    }
}

static const char *stage_state_word(Stagecoach__V1__StageState state) {
    switch (state) {
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_JOINED:
        return "joined";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADING:
        return "loading";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADED:
        return "loaded";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_CONNECTING:
        return "connecting";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_RUNNING:
        return "running";
    case STAGECOACH__V1__STAGE_STATE__STAGE_STATE_FAILED:
        return "failed";
    default:
        return "unknown";
    }
}

// -- the pipeline ---------------------------------------------------------------------------------

static double percent(double part, double whole) {
    return whole > 0 ? 100 * part / whole : 0;
}

static void write_pipeline(const struct view *view, pipeline_message *p) {
    bool is_running = p->state == STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_RUNNING;
    line(view, "model %s: %s, epoch %" PRIu64 "%s%s", p->model_name, pipeline_state_word(p->state),
         p->epoch, is_running ? "" : ": ", is_running ? "" : p->explanation);
    line(view,
         "stages %zu of %u, requests %u running and %u waiting, KV blocks %u of %u used (%.0f %%) "
         "and %u cached",
         p->n_stages, p->stage_count, p->request_running_count, p->request_waiting_count,
         p->kv_block_used_count, p->kv_block_count,
         percent(p->kv_block_used_count, p->kv_block_count), p->kv_block_cached_count);
    line(view,
         "done %" PRIu64 " requests, failed %" PRIu64 ", tokens %" PRIu64
         " in (%.0f %% cached) and %" PRIu64 " out, steps %" PRIu64 ", replays %" PRIu64,
         p->request_done_count, p->request_failed_count, p->prompt_token_count,
         percent((double)p->prefix_hit_token_count, (double)p->prefix_token_count),
         p->completion_token_count, p->step_count, p->replay_count);
    if (p->metrics_address[0] != '\0')
        line(view, "metrics at http://%s/metrics", p->metrics_address);
    line(view, "%s", "");
}

// -- speed and waiting ----------------------------------------------------------------------------

static void write_speed(const struct view *view, pipeline_message *p) {
    double rows =
        p->microbatches_per_second > 0 ? p->rows_per_second / p->microbatches_per_second : 0;
    line(view,
         "last %.0f s: %.1f tokens/s, %.1f rows/s, %.1f microbatches/s of %.1f rows, %.2f ms each",
         p->window_seconds, p->completion_tokens_per_second, p->rows_per_second,
         p->microbatches_per_second, rows, p->microbatch_seconds * 1e3);
    line(view,
         "in flight %u microbatches, the oldest for %.1f ms; bubble %.1f %%, filling and draining "
         "alone %.1f %%",
         p->microbatch_in_flight_count, p->microbatch_oldest_age_seconds * 1e3,
         100 * p->bubble_ratio, 100 * p->bubble_ratio_ideal);
    if (p->microbatch_lost_count > 0)
        line(view, "%" PRIu64 " microbatches were not reported by a stage: they are in no sum",
             p->microbatch_lost_count);
    line(view, "%s", "");
}

static uint64_t total_count(histogram_message *h) {
    uint64_t sum = 0;
    for (size_t i = 0; i < h->n_counts; i++)
        sum += h->counts[i];
    return sum;
}

// Seconds below which a part of all times lie, as if they were even within a bucket; those beyond
// the last bound count as it.
static double quantile(histogram_message *h, double part) {
    double wanted = part * (double)total_count(h);
    double before = 0, lower = 0;
    for (size_t i = 0; i < h->n_bounds_seconds; i++) {
        double count = (double)h->counts[i];
        if (count > 0 && before + count >= wanted)
            return lower + (h->bounds_seconds[i] - lower) * (wanted - before) / count;
        before += count;
        lower = h->bounds_seconds[i];
    }
    return lower;
}

static void write_histogram(const struct view *view, const char *name, histogram_message *h) {
    if (h == NULL || h->n_counts != h->n_bounds_seconds + 1 || total_count(h) == 0) return;
    uint64_t count = total_count(h);
    line(view, "%-13s %10" PRIu64 " %9.1f %9.1f %9.1f %9.1f", name, count,
         h->sum_seconds / (double)count * 1e3, quantile(h, 0.5) * 1e3, quantile(h, 0.95) * 1e3,
         quantile(h, 0.99) * 1e3);
}

static void write_histograms(const struct view *view, pipeline_message *p) {
    if (p->queue == NULL || total_count(p->queue) == 0) return;
    line(view, "%-13s %10s %9s %9s %9s %9s", "ms, all so far", "count", "mean", "p50", "p95",
         "p99");
    write_histogram(view, "queue", p->queue);
    write_histogram(view, "first token", p->first_token);
    write_histogram(view, "next token", p->inter_token);
    write_histogram(view, "request", p->request);
    line(view, "%s", "");
}

// -- stages ---------------------------------------------------------------------------------------

static void write_stage(const struct view *view, stage_message *stage) {
    char index[16] = "-", layers[32] = "-", loaded[16] = "";
    if (stage->layer_count != 0) {
        snprintf(index, sizeof(index), "%u", stage->stage_index);
        snprintf(layers, sizeof(layers), "%u-%u", stage->layer_first,
                 stage->layer_first + stage->layer_count - 1);
    }
    if (stage->state == STAGECOACH__V1__STAGE_STATE__STAGE_STATE_LOADING &&
        stage->load_bytes_total != 0)
        snprintf(loaded, sizeof(loaded), " %.0f%%",
                 percent((double)stage->load_bytes_done, (double)stage->load_bytes_total));
    line(view, "%-5s  %-16s  %-10s  %-7s  %8.1f MB  %8.1f MB  %8.1f MB  %-9s  %7u  %s%s", index,
         stage->name, stage_state_word(stage->state), layers, (double)stage->weight_bytes / 1e6,
         (double)stage->mapped_bytes / 1e6, (double)stage->kv_bytes / 1e6, stage->kernel_variant,
         stage->thread_count, stage->data_address, loaded);
    if (stage->error[0] != '\0') line(view, "       error: %s", stage->error);
}

// Which part of the time with requests a stage was busy, and why not; then how many frames wait at
// it and how long one was on its way to it.
static void write_times(const struct view *view, pipeline_message *p, stage_message *stage) {
    static const char full[] = "####################";
    const Stagecoach__V1__StageTimes *times = stage->times_window;
    if (stage->layer_count == 0 || times == NULL) return;
    double sum_ns =
        (double)(times->busy_ns + times->starved_ns + times->wire_ns + times->imbalance_ns);
    double busy = percent((double)times->busy_ns, sum_ns);
    double steps = times->step_count > 0 ? (double)times->step_count : 1;
    double depth = p->window_seconds > 0 ? (double)times->queued_ns / 1e9 / p->window_seconds : 0;
    line(view, "%-5u  %-20.*s  %6.1f %%  %6.1f %%  %6.1f %%  %6.1f %%  %6.2f  %7.3f ms  %7.3f ms",
         stage->stage_index, (int)(busy / 100 * (double)strlen(full) + 0.5), full, busy,
         percent((double)times->starved_ns, sum_ns), percent((double)times->wire_ns, sum_ns),
         percent((double)times->imbalance_ns, sum_ns), depth, (double)times->busy_ns / steps / 1e6,
         (double)times->hop_ns / steps / 1e6);
}

static void write_stages(const struct view *view, pipeline_message *p) {
    line(view, "%-5s  %-16s  %-10s  %-7s  %11s  %11s  %11s  %-9s  %7s  %s", "stage", "name",
         "state", "layers", "weights", "mapped", "KV memory", "kernels", "threads", "data address");
    for (size_t i = 0; i < p->n_stages; i++)
        write_stage(view, p->stages[i]);
    if (p->microbatch_count == 0) return;
    line(view, "%s", "");
    line(view, "%-5s  %-20s  %8s  %8s  %8s  %8s  %6s  %10s  %10s", "stage", "", "busy", "starved",
         "wire", "imbal.", "queue", "step", "hop");
    for (size_t i = 0; i < p->n_stages; i++)
        write_times(view, p, p->stages[i]);
}

void status_view_write(FILE *file, const Stagecoach__V1__Pipeline *pipeline, const char *line_end) {
    const struct view view = {file, line_end};
    write_pipeline(&view, pipeline);
    if (pipeline->microbatch_count > 0) {
        write_speed(&view, pipeline);
        write_histograms(&view, pipeline);
    }
    write_stages(&view, pipeline);
}
