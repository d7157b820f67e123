// backend, on processors: the choice of kernels, the team, and memory. The operations are in
// elements.c, linear.c and attention.c: each cuts its work into parts for the team and runs the
// kernels on them.
#include "stage/backend.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"
#include "stage/cpu/cores.h"
#include "stage/cpu/parallel.h"

// Best first.
static const struct kernels *const all_kernels[] = {
#if STAGE_X86_KERNELS
    &kernels_avx512bf16, &kernels_avx512,    &kernels_avx2,
#endif
    &kernels_portable,   &kernels_reference,
};
enum { KERNELS_COUNT = sizeof(all_kernels) / sizeof(all_kernels[0]) };

const char *const *backend_cpu_variants(void) {
    // Each thread's own, so that threads need not agree on who fills it.
    static _Thread_local const char *names[KERNELS_COUNT + 1];
    size_t count = 0;
    for (size_t i = 0; i < KERNELS_COUNT; i++) {
        if (all_kernels[i]->is_supported()) names[count++] = all_kernels[i]->name;
    }
    names[count] = NULL;
    return names;
}

static enum status kernels_find(const char *variant, const struct kernels **kernels_out,
                                struct error *error) {
    char names[128] = "";
    for (size_t i = 0; i < KERNELS_COUNT; i++) {
        const struct kernels *kernels = all_kernels[i];
        if (!kernels->is_supported()) continue;
        bool is_chosen = strcmp(variant, "auto") == 0 && !kernels->is_slow();
        if (is_chosen || strcmp(variant, kernels->name) == 0) {
            *kernels_out = kernels;
            return STATUS_OK;
        }
        size_t length = strlen(names);
        CHECK(length + strlen(kernels->name) + 3 <= sizeof(names));
        if (length > 0) strcat(names, ", ");
        strcat(names, kernels->name);
    }
    return error_set(error, STATUS_UNSUPPORTED,
                     "kernel variant \"%s\" is not one of those of this processor: auto, %s",
                     variant, names);
}

static bool has_vnni(void) {
#if STAGE_X86_KERNELS
    return __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

static size_t round_up(size_t size, size_t unit) {
    return (size + unit - 1) / unit * unit;
}

static void *pages_map(size_t size_bytes) {
    if (size_bytes == 0) size_bytes = 1;
    void *memory =
        mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    // Fewer page faults and translations; a kernel that cannot do it loses nothing else.
    (void)madvise(memory, size_bytes, MADV_HUGEPAGE);
    return memory;
}

static void pages_unmap(void *memory, size_t size_bytes) {
    if (memory == NULL) return;
    CHECK(munmap(memory, size_bytes == 0 ? 1 : size_bytes) == 0);
}

static enum status backend_team_open(struct backend *backend, const struct backend_config *config,
                                     struct error *error) {
    static const struct core_request no_request;
    struct processor_set allowed;
    machine_allowed(&allowed);
    struct core_plan plan;
    enum status status =
        core_plan_make("", &allowed, config->cores != NULL ? config->cores : &no_request,
                       config->thread_count, &plan, error);
    if (status == STATUS_OK) status = team_open(plan.thread_count, &backend->team, error);
    if (status != STATUS_OK || plan.cores.count == 0) return status;
    core_list_format(&plan.cores, backend->cores, sizeof(backend->cores));
    status = team_pin(backend->team, &plan.cores, error);
    if (status != STATUS_OK) team_close(backend->team);
    return status;
}

enum status backend_cpu_open(const struct backend_config *config, struct backend **backend_out,
                             struct error *error) {
    struct backend *backend = memory_array(1, sizeof(*backend));
    if (backend == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for a backend");
    enum status status = kernels_find(config->variant, &backend->kernels, error);
    if (status != STATUS_OK) goto free_backend;
    status = backend_team_open(backend, config, error);
    if (status != STATUS_OK) goto free_backend;
    // An odd number of pages: the threads' scratches do not compete for the same cache sets.
    backend->scratch_stride = round_up(backend->kernels->scratch_bytes, 8192) + 4096;
    backend->scratch_bytes = backend->scratch_stride * team_thread_count(backend->team);
    backend->scratch = pages_map(backend->scratch_bytes);
    if (backend->scratch == NULL) {
        status = error_set(error, STATUS_NO_MEMORY, "no memory for %zu bytes of compute scratch",
                           backend->scratch_bytes);
        goto close_team;
    }
    backend->linear_i8 = has_vnni() && backend->kernels->linear_i8_vnni != NULL
                             ? backend->kernels->linear_i8_vnni
                             : backend->kernels->linear_i8;
    size_t attention_bytes = attention_memory_bytes(team_thread_count(backend->team));
    backend->attention_memory = pages_map(attention_bytes);
    if (backend->attention_memory == NULL) {
        status = error_set(error, STATUS_NO_MEMORY, "no memory for %zu bytes of partial attention",
                           attention_bytes);
        goto unmap_scratch;
    }
    *backend_out = backend;
    return STATUS_OK;
unmap_scratch:
    pages_unmap(backend->scratch, backend->scratch_bytes);
close_team:
    team_close(backend->team);
free_backend:
    free(backend);
    return status;
}

void backend_close(struct backend *backend) {
    if (backend == NULL) return;
    pages_unmap(backend->pack, backend->pack_bytes);
    pages_unmap(backend->attention_memory, attention_memory_bytes(backend_thread_count(backend)));
    pages_unmap(backend->scratch, backend->scratch_bytes);
    team_close(backend->team);
    free(backend);
}

enum status backend_reserve(struct backend *backend, uint32_t row_count, uint32_t column_count,
                            struct error *error) {
    size_t size_bytes = linear_pack_bytes(row_count, column_count);
    if (size_bytes <= backend->pack_bytes) return STATUS_OK;
    void *pack = pages_map(size_bytes);
    if (pack == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for %zu bytes of packed inputs",
                         size_bytes);
    pages_unmap(backend->pack, backend->pack_bytes);
    backend->pack = pack;
    backend->pack_bytes = size_bytes;
    return STATUS_OK;
}

const char *backend_variant(const struct backend *backend) {
    return backend->kernels->name;
}

uint32_t backend_thread_count(const struct backend *backend) {
    return team_thread_count(backend->team);
}

const char *backend_cores(const struct backend *backend) {
    return backend->cores[0] != '\0' ? backend->cores : NULL;
}

void backend_enter(struct backend *backend) {
    team_enter(backend->team);
}

void *backend_alloc(struct backend *backend, size_t size_bytes) {
    (void)backend;
    return pages_map(size_bytes);
}

void backend_free(struct backend *backend, void *memory, size_t size_bytes) {
    (void)backend;
    pages_unmap(memory, size_bytes);
}
