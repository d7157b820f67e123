#include "tests/bench/measure.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "tests/bench/noise.h"

static const double SAMPLE_SECONDS = 0.03; // of short calls: about as long as a limit is measured
static const double LOOK_SECONDS = 0.001;  // the clock is read no more often
// Of a sample that is kept: how much others used the processors, and how much the limits right
// before and after it may differ.
static const double NOISE_SHARE_MAX = 0.1;
static const double STEADY_RATIO_MAX = 1.15;

static double now(void) {
    struct clock real = clock_system();
    return (double)clock_now_ns(&real) / 1e9;
}

// -- calls ----------------------------------------------------------------------------------------

struct timed {
    const struct measure_plan *plan;
    uint64_t index;
    uint64_t calls_per_look;
};

static double calls_run(struct timed *timed, uint64_t count) {
    double begin = now();
    for (uint64_t i = 0; i < count; i++)
        timed->plan->call(timed->plan->ctx, timed->index++);
    return now() - begin;
}

static void calls_calibrate(struct timed *timed) {
    timed->calls_per_look = 1;
    while (calls_run(timed, timed->calls_per_look) < LOOK_SECONDS)
        timed->calls_per_look *= 2;
}

static double short_calls_run(struct timed *timed) {
    double seconds = 0;
    uint64_t count = 0;
    (void)calls_run(timed, 1);
    while (seconds < SAMPLE_SECONDS) {
        seconds += calls_run(timed, timed->calls_per_look);
        count += timed->calls_per_look;
    }
    return seconds / (double)count;
}

// -- limits beside them ---------------------------------------------------------------------------

struct rates {
    double read, unit, f32;
};

static struct rates limits_take(const struct measure_plan *plan) {
    struct rates rates = {0, 0, 0};
    if (plan->limits == NULL) return rates;
    rates.read = limits_measure(plan->limits, LIMIT_READ);
    rates.f32 = limits_measure(plan->limits, LIMIT_F32);
    rates.unit = plan->unit == LIMIT_F32 ? rates.f32 : limits_measure(plan->limits, plan->unit);
    return rates;
}

static bool is_near(double a, double b) {
    return a <= b * STEADY_RATIO_MAX && b <= a * STEADY_RATIO_MAX;
}

static bool is_steady(const struct rates *a, const struct rates *b) {
    return is_near(a->read, b->read) && is_near(a->unit, b->unit) && is_near(a->f32, b->f32);
}

// Seconds of one sample, as in struct measurement.
struct sample {
    double taken, read, unit_peak, f32_peak, roofline;
    bool is_steady;
};

static void sample_add_needed(struct sample *sample, const struct work *work, const struct rates *a,
                              const struct rates *b) {
    double read = work->bytes / ((a->read + b->read) / 2);
    double unit = (a->unit + b->unit) / 2, f32 = (a->f32 + b->f32) / 2;
    double unit_peak = work->operations / unit + work->f32_operations / f32;
    sample->read += read;
    sample->unit_peak += unit_peak;
    sample->f32_peak += (work->operations + work->f32_operations) / f32;
    sample->roofline += read > unit_peak ? read : unit_peak;
}

// `rates`: the limits right before; on return those right after.
static struct sample sample_take(struct timed *timed, struct rates *rates) {
    const struct measure_plan *plan = timed->plan;
    struct sample sample = {.is_steady = true};
    struct noise noise_before = noise_now();
    for (uint32_t piece = 0; piece < plan->piece_count; piece++) {
        sample.taken += plan->is_short ? short_calls_run(timed) : calls_run(timed, 1);
        if (plan->limits == NULL) continue;
        struct rates after = limits_take(plan);
        sample_add_needed(&sample, &plan->pieces[piece], rates, &after);
        if (!is_steady(rates, &after)) sample.is_steady = false;
        *rates = after;
    }
    struct noise noise_after = noise_now();
    if (noise_share(&noise_before, &noise_after) > NOISE_SHARE_MAX) sample.is_steady = false;
    return sample;
}

// -- measurements ---------------------------------------------------------------------------------

static void sample_keep(struct measurement *m, const struct sample *sample) {
    samples_add(&m->taken, sample->taken);
    if (!m->has_limits) return;
    samples_add(&m->read, sample->read);
    samples_add(&m->unit_peak, sample->unit_peak);
    samples_add(&m->f32_peak, sample->f32_peak);
    samples_add(&m->roofline, sample->roofline);
}

static bool is_enough(const struct measurement *m, double taken, double seconds) {
    uint32_t count_min = taken < MEASURE_LONGER_MAX * seconds ? MEASURE_SAMPLE_COUNT_MIN : 1;
    if (m->taken.count == SAMPLE_COUNT_MAX) return true;
    return taken >= seconds && m->taken.count >= count_min;
}

static void measurement_init(struct measurement *m, const struct measure_plan *plan) {
    memset(m, 0, sizeof(*m));
    m->unit = plan->unit;
    m->has_limits = plan->limits != NULL;
    for (uint32_t i = 0; i < plan->piece_count; i++) {
        m->work.bytes += plan->pieces[i].bytes;
        m->work.operations += plan->pieces[i].operations;
        m->work.f32_operations += plan->pieces[i].f32_operations;
    }
}

void measure(const struct measure_plan *plan, struct measurement *out) {
    struct timed timed = {.plan = plan};
    CHECK(plan->piece_count > 0 && (plan->piece_count == 1 || !plan->is_short));
    measurement_init(out, plan);
    if (plan->is_short) calls_calibrate(&timed);
    struct noise noise_before = noise_now();
    double begin = now();
    struct rates rates = limits_take(plan);
    while (!is_enough(out, now() - begin, plan->seconds)) {
        struct sample sample = sample_take(&timed, &rates);
        bool is_late = now() - begin >= MEASURE_LONGER_MAX * plan->seconds;
        if (sample.is_steady || is_late) sample_keep(out, &sample);
    }
    struct noise noise_after = noise_now();
    out->noise = noise_share(&noise_before, &noise_after);
}

// -- results --------------------------------------------------------------------------------------

struct result measurement_seconds(const struct measurement *m) {
    return (struct result){samples_least(&m->taken), samples_median(&m->taken)};
}

static struct result rate_of(const struct measurement *m, double count) {
    struct result seconds = measurement_seconds(m);
    return (struct result){count / seconds.best, count / seconds.median};
}

struct result measurement_bytes_rate(const struct measurement *m) {
    return rate_of(m, m->work.bytes);
}

struct result measurement_operations_rate(const struct measurement *m) {
    return rate_of(m, m->work.operations + m->work.f32_operations);
}

struct result measurement_share(const struct measurement *m, const struct samples *needed) {
    struct samples shares = {.count = 0};
    CHECK(needed->count == m->taken.count);
    for (uint32_t i = 0; i < needed->count; i++)
        samples_add(&shares, needed->values[i] / m->taken.values[i]);
    double best = samples_least(needed) / samples_least(&m->taken);
    return (struct result){best, samples_median(&shares)};
}

// -- reports --------------------------------------------------------------------------------------

void json_add(json_t *object, const char *name, json_t *value) {
    CHECK(value != NULL && json_object_set_new(object, name, value) == 0);
}

json_t *result_json(struct result result, double scale) {
    json_t *json = json_object();
    CHECK(json != NULL);
    json_add(json, "best", json_real(result.best * scale));
    json_add(json, "median", json_real(result.median * scale));
    return json;
}

json_t *measurement_json(const struct measurement *m) {
    json_t *json = json_object();
    CHECK(json != NULL);
    json_add(json, "seconds", result_json(measurement_seconds(m), 1));
    json_add(json, "noise", json_real(m->noise));
    if (!m->has_limits) return json;
    json_add(json, "gb_per_s", result_json(measurement_bytes_rate(m), 1e-9));
    json_add(json, "gop_per_s", result_json(measurement_operations_rate(m), 1e-9));
    json_add(json, "unit", json_string(limits_name(m->unit)));
    json_add(json, "share_of_read", result_json(measurement_share(m, &m->read), 1));
    json_add(json, "share_of_unit", result_json(measurement_share(m, &m->unit_peak), 1));
    json_add(json, "share_of_f32", result_json(measurement_share(m, &m->f32_peak), 1));
    json_add(json, "share_of_roofline", result_json(measurement_share(m, &m->roofline), 1));
    return json;
}

const char measurement_heading[] =
    "        us    GB/s  read     GOP/s   unit    f32  roof  best  noise";

void measurement_print(const struct measurement *m) {
    struct result roofline = measurement_share(m, &m->roofline);
    printf("%10.1f  %6.1f %5.1f  %8.1f  %5.1f  %5.1f %5.1f %5.1f  %5.1f\n",
           measurement_seconds(m).median * 1e6, measurement_bytes_rate(m).median * 1e-9,
           measurement_share(m, &m->read).median * 100,
           measurement_operations_rate(m).median * 1e-9,
           measurement_share(m, &m->unit_peak).median * 100,
           measurement_share(m, &m->f32_peak).median * 100, roofline.median * 100,
           roofline.best * 100, m->noise * 100);
    fflush(stdout);
}
