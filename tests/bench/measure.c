#include "tests/bench/measure.h"

#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "tests/bench/noise.h"

static const double SAMPLE_SECONDS = 0.03; // about as long as a limit is measured
static const double LOOK_SECONDS = 0.001;  // the clock is read no more often
static const double WARM_SECONDS = 0.005;  // longer calls need no warming up
// Of a sample that is kept: how much others used the processors, and how much the limits right
// before and after it may differ.
static const double NOISE_SHARE_MAX = 0.1;
static const double STEADY_RATIO_MAX = 1.15;

// -- taking samples -------------------------------------------------------------------------------

struct timed {
    call_fn *call;
    void *ctx;
    uint64_t index;
    uint64_t calls_per_look;
};

static double now(void) {
    struct clock real = clock_system();
    return (double)clock_now_ns(&real) / 1e9;
}

static double calls_run(struct timed *timed, uint64_t count) {
    double begin = now();
    for (uint64_t i = 0; i < count; i++)
        timed->call(timed->ctx, timed->index++);
    return now() - begin;
}

static double calls_calibrate(struct timed *timed) {
    timed->calls_per_look = 1;
    double seconds = calls_run(timed, 1);
    while (seconds < LOOK_SECONDS) {
        timed->calls_per_look *= 2;
        seconds = calls_run(timed, timed->calls_per_look);
    }
    return seconds / (double)timed->calls_per_look;
}

static double sample_take(struct timed *timed, double expected_seconds) {
    if (expected_seconds < WARM_SECONDS) (void)calls_run(timed, 1);
    double seconds = 0;
    uint64_t count = 0;
    while (seconds < SAMPLE_SECONDS) {
        seconds += calls_run(timed, timed->calls_per_look);
        count += timed->calls_per_look;
    }
    return seconds / (double)count;
}

struct rates {
    double read, peak, f32;
};

static struct rates limits_take(struct limits *limits, enum limit unit) {
    struct rates rates = {0, 0, 0};
    if (limits == NULL) return rates;
    rates.read = limits_measure(limits, LIMIT_READ);
    rates.f32 = limits_measure(limits, LIMIT_F32);
    rates.peak = unit == LIMIT_F32 ? rates.f32 : limits_measure(limits, unit);
    return rates;
}

static void pair_keep(struct measurement *m, double seconds, const struct rates *before,
                      const struct rates *after) {
    samples_add(&m->seconds, seconds);
    if (before->read <= 0) return;
    samples_add(&m->read, (before->read + after->read) / 2);
    samples_add(&m->peak, (before->peak + after->peak) / 2);
    samples_add(&m->f32, (before->f32 + after->f32) / 2);
}

static bool is_near(double a, double b) {
    return a <= b * STEADY_RATIO_MAX && b <= a * STEADY_RATIO_MAX;
}

// Whether the machine was as fast after a sample as before it.
static bool is_steady(const struct rates *before, const struct rates *after) {
    return is_near(before->read, after->read) && is_near(before->peak, after->peak) &&
           is_near(before->f32, after->f32);
}

static bool is_enough(const struct measurement *m, double begin, double seconds) {
    double taken = now() - begin;
    if (m->seconds.count == SAMPLE_COUNT_MAX) return true;
    return taken >= seconds && m->seconds.count >= MEASURE_SAMPLE_COUNT_MIN;
}

void measure(struct limits *limits, double seconds, const struct work *work, call_fn *call,
             void *ctx, struct measurement *out) {
    struct timed timed = {.call = call, .ctx = ctx};
    memset(out, 0, sizeof(*out));
    out->work = *work;
    double begin = now();
    double expected_seconds = calls_calibrate(&timed);
    struct rates before = limits_take(limits, work->unit);
    struct noise noise_first = noise_now(), noise_before = noise_first, noise_after = noise_first;
    while (!is_enough(out, begin, seconds)) {
        double sample = sample_take(&timed, expected_seconds);
        struct rates after = limits_take(limits, work->unit);
        noise_after = noise_now();
        bool is_quiet = noise_share(&noise_before, &noise_after) < NOISE_SHARE_MAX;
        bool is_late = now() - begin >= MEASURE_LONGER_MAX * seconds;
        if ((is_quiet && is_steady(&before, &after)) || is_late)
            pair_keep(out, sample, &before, &after);
        before = after;
        noise_before = noise_after;
    }
    out->noise = noise_share(&noise_first, &noise_after);
}

// -- results --------------------------------------------------------------------------------------

struct result measurement_seconds(const struct measurement *m) {
    return (struct result){samples_least(&m->seconds), samples_median(&m->seconds)};
}

struct result measurement_bytes_rate(const struct measurement *m) {
    struct result seconds = measurement_seconds(m);
    return (struct result){m->work.bytes / seconds.best, m->work.bytes / seconds.median};
}

struct result measurement_operations_rate(const struct measurement *m) {
    struct result seconds = measurement_seconds(m);
    return (struct result){m->work.operations / seconds.best, m->work.operations / seconds.median};
}

static double roofline_seconds(const struct work *work, double read, double peak) {
    double read_seconds = read > 0 ? work->bytes / read : 0;
    double peak_seconds = peak > 0 ? work->operations / peak : 0;
    return read_seconds > peak_seconds ? read_seconds : peak_seconds;
}

static const struct samples no_samples;

static double sample_at(const struct samples *samples, uint32_t index) {
    return index < samples->count ? samples->values[index] : 0;
}

static struct result share_of(const struct measurement *m, const struct samples *read,
                              const struct samples *peak) {
    struct samples shares = {.count = 0};
    for (uint32_t i = 0; i < m->read.count; i++) {
        double roofline = roofline_seconds(&m->work, sample_at(read, i), sample_at(peak, i));
        samples_add(&shares, roofline / m->seconds.values[i]);
    }
    double best = roofline_seconds(&m->work, samples_greatest(read), samples_greatest(peak));
    return (struct result){best / samples_least(&m->seconds), samples_median(&shares)};
}

struct result measurement_share(const struct measurement *m) {
    return share_of(m, &m->read, &m->peak);
}

struct result measurement_share_of_read(const struct measurement *m) {
    return share_of(m, &m->read, &no_samples);
}

struct result measurement_share_of_peak(const struct measurement *m) {
    return share_of(m, &no_samples, &m->peak);
}

struct result measurement_share_of_f32(const struct measurement *m) {
    return share_of(m, &no_samples, &m->f32);
}

// -- JSON -----------------------------------------------------------------------------------------

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
    if (m->read.count == 0) return json;
    json_add(json, "gb_per_s", result_json(measurement_bytes_rate(m), 1e-9));
    json_add(json, "gop_per_s", result_json(measurement_operations_rate(m), 1e-9));
    json_add(json, "unit", json_string(limits_name(m->work.unit)));
    json_add(json, "share_of_read", result_json(measurement_share_of_read(m), 1));
    json_add(json, "share_of_peak", result_json(measurement_share_of_peak(m), 1));
    json_add(json, "share_of_f32", result_json(measurement_share_of_f32(m), 1));
    json_add(json, "share", result_json(measurement_share(m), 1));
    return json;
}
