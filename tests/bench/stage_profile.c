#include "tests/bench/stage_profile.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "stage/backend.h"
#include "tests/bench/measure.h"

enum { KIND_COUNT_MAX = 32 };

// Products are told apart by their shapes.
static struct kind {
    char name[48];
    double seconds;
    uint64_t count;
} kinds[KIND_COUNT_MAX];
static uint32_t kind_count;

void profile_reset(void) {
    kind_count = 0;
}

static struct kind *kind_of(const char *name) {
    for (uint32_t i = 0; i < kind_count; i++) {
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    }
    CHECK(kind_count < KIND_COUNT_MAX);
    struct kind *kind = &kinds[kind_count++];
    *kind = (struct kind){.count = 0};
    snprintf(kind->name, sizeof(kind->name), "%s", name);
    return kind;
}

static uint64_t now_ns(void) {
    struct clock real = clock_system();
    return clock_now_ns(&real);
}

static void add(const char *name, uint64_t begin_ns) {
    uint64_t end_ns = now_ns();
    struct kind *kind = kind_of(name);
    kind->seconds += (double)(end_ns - begin_ns) * 1e-9;
    kind->count++;
}

json_t *profile_report(double seconds) {
    json_t *json = json_object();
    CHECK(json != NULL);
    double rest = seconds;
    for (uint32_t i = 0; i < kind_count; i++) {
        const struct kind *kind = &kinds[i];
        double share = kind->seconds / seconds;
        printf("  %-32s %6.2f %%  %8" PRIu64 " times %10.1f us\n", kind->name, share * 100,
               kind->count, kind->seconds / (double)kind->count * 1e6);
        json_add(json, kind->name, json_real(share));
        rest -= kind->seconds;
    }
    printf("  %-32s %6.2f %%\n", "everything else", rest / seconds * 100);
    json_add(json, "everything else", json_real(rest / seconds));
    return json;
}

// -- in place of the backend's --------------------------------------------------------------------

// __real_f is the backend's f; calls of f come to __wrap_f: ld(1), --wrap.
#define WRAP(result, name, parameters, arguments, label)                                           \
    result __real_##name parameters;                                                               \
    result __wrap_##name parameters;                                                               \
    result __wrap_##name parameters {                                                              \
        uint64_t begin_ns = now_ns();                                                              \
        __real_##name arguments;                                                                   \
        add(label, begin_ns);                                                                      \
    }

void __real_backend_linear(struct backend *backend, const struct tensor *weight,
                           const struct tensor *bias, const float *x, enum dtype x_dtype,
                           uint32_t row_count, float *out, uint32_t out_stride);
void __wrap_backend_linear(struct backend *backend, const struct tensor *weight,
                           const struct tensor *bias, const float *x, enum dtype x_dtype,
                           uint32_t row_count, float *out, uint32_t out_stride);
void __wrap_backend_linear(struct backend *backend, const struct tensor *weight,
                           const struct tensor *bias, const float *x, enum dtype x_dtype,
                           uint32_t row_count, float *out, uint32_t out_stride) {
    char name[48];
    uint64_t begin_ns = now_ns();
    __real_backend_linear(backend, weight, bias, x, x_dtype, row_count, out, out_stride);
    snprintf(name, sizeof(name), "product %u x %u", weight->column_count, weight->row_count);
    add(name, begin_ns);
}

WRAP(void, backend_embed,
     (struct backend * backend, const struct tensor *table, const uint32_t *tokens,
      uint32_t row_count, float *out),
     (backend, table, tokens, row_count, out), "embed")
WRAP(void, backend_rms_norm,
     (struct backend * backend, const struct tensor *weight, float epsilon, const float *x,
      uint32_t row_count, float *out),
     (backend, weight, epsilon, x, row_count, out), "norm")
WRAP(void, backend_add,
     (struct backend * backend, float *x, const float *delta, uint32_t row_count, uint32_t width,
      enum dtype round_dtype),
     (backend, x, delta, row_count, width, round_dtype), "add")
WRAP(void, backend_swiglu,
     (struct backend * backend, const float *gate, const float *up, uint32_t row_count,
      uint32_t width, float *out),
     (backend, gate, up, row_count, width, out), "swiglu")
WRAP(void, backend_rope_and_store,
     (struct backend * backend, const struct attention_shape *shape, const struct batch *batch,
      const float *rotations, float *q, float *k, const float *v, struct kv_layer *kv),
     (backend, shape, batch, rotations, q, k, v, kv), "rope and store")
WRAP(void, backend_attention,
     (struct backend * backend, const struct attention_shape *shape, const struct batch *batch,
      const float *q, const struct kv_layer *kv, float *out),
     (backend, shape, batch, q, kv, out), "attention")
WRAP(void, backend_parallel,
     (struct backend * backend, uint32_t count, uint64_t work, backend_fn *fn, void *ctx),
     (backend, count, work, fn, ctx), "sampling")
