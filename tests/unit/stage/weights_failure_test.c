// What weights_open() does while it reads: progress, cancellation, and a world that fails.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoint_writer.h"
#include "stage/weights.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

// -- the world, made to fail ----------------------------------------------------------------------

static int populate_errno; // what reading pages answers; 0: the truth

int madvise(void *address, size_t size_bytes, int advice) {
    if (advice == MADV_POPULATE_READ && populate_errno != 0) {
        errno = populate_errno;
        return -1;
    }
    return (int)syscall(SYS_madvise, address, size_bytes, advice);
}

// Sanitizers have allocators of their own.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_MALLOC 0
#endif
#endif
#if !defined(OWN_MALLOC) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 1
#endif
#ifndef OWN_MALLOC
#define OWN_MALLOC 0
#endif

#if OWN_MALLOC
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void __libc_free(void *memory);

static long mappings_left = LONG_MAX; // calls of mmap() and pread() that succeed
static long reads_left = LONG_MAX;

void *mmap(void *address, size_t size_bytes, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && mappings_left-- <= 0) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, size_bytes, protection, flags, fd, offset);
}

ssize_t pread(int fd, void *data, size_t size_bytes, off_t offset) {
    if (reads_left-- <= 0) {
        errno = EIO;
        return -1;
    }
    return (ssize_t)syscall(SYS_pread64, fd, data, size_bytes, offset);
}

static bool allocations_counted;
static long allocations_left; // while counted
static long allocations_alive;

static bool allocation_fails(void) {
    return allocations_counted && allocations_left-- <= 0;
}

static void *allocated(void *memory) {
    if (allocations_counted && memory != NULL) allocations_alive++;
    return memory;
}

void *malloc(size_t size) {
    return allocation_fails() ? NULL : allocated(__libc_malloc(size));
}

void *calloc(size_t count, size_t size) {
    return allocation_fails() ? NULL : allocated(__libc_calloc(count, size));
}

void *realloc(void *old, size_t size) {
    if (allocation_fails()) return NULL;
    return old == NULL ? allocated(__libc_malloc(size)) : __libc_realloc(old, size);
}

void free(void *memory) {
    if (allocations_counted && memory != NULL) allocations_alive--;
    __libc_free(memory);
}
#endif

// -- opening --------------------------------------------------------------------------------------

static const struct weights_range whole = {0, 3, true, true};

static enum status open_whole(const struct checkpoint *checkpoint, struct weights **weights_out,
                              struct error *error) {
    return weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                        &checkpoint->config, &whole, NULL, NULL, weights_out, error);
}

static int fresh(void **state) {
    populate_errno = 0;
    return checkpoint_setup(state);
}

// -- progress
// --------------------------------------------------------------------------------------

struct progress {
    uint64_t call_count;
    uint64_t done_bytes;
    uint64_t total_bytes;
    uint64_t stop_after; // calls; 0: never
    const char *truncate_path;
};

static bool on_progress(void *ctx, uint64_t bytes_done, uint64_t bytes_total) {
    struct progress *progress = ctx;
    if (progress->call_count++ == 0) {
        assert_int_equal(bytes_done, 0);
        progress->total_bytes = bytes_total;
    } else {
        assert_true(bytes_done > progress->done_bytes);
        assert_true(bytes_done - progress->done_bytes <= WEIGHTS_READ_STEP_BYTES);
    }
    assert_int_equal(bytes_total, progress->total_bytes);
    progress->done_bytes = bytes_done;
    if (progress->truncate_path != NULL) assert_int_equal(truncate(progress->truncate_path, 0), 0);
    return progress->call_count != progress->stop_after;
}

// Its embedding takes several steps.
static void fill_large(struct checkpoint *checkpoint) {
    struct model_config config = small;
    config.vocabulary_size = 50000;
    config.tied_embeddings = true;
    fill(checkpoint, &config);
    write_file(checkpoint, "model.safetensors", -1);
}

static void weights_open_reports_true_progress(void **state) {
    struct checkpoint *checkpoint = *state;
    fill_large(checkpoint);
    struct progress progress = {0};
    struct weights *weights;
    assert_int_equal(
        weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                     &checkpoint->config, &whole, on_progress, &progress, &weights, NULL),
        STATUS_OK);
    assert_int_equal(progress.done_bytes, progress.total_bytes);
    assert_int_equal(progress.total_bytes, weights->mapped_bytes);
    assert_int_equal(progress.call_count,
                     1 + (weights->mapped_bytes + WEIGHTS_READ_STEP_BYTES - 1) /
                             WEIGHTS_READ_STEP_BYTES);
    weights_close(weights);
}

static void weights_open_can_be_cancelled_at_each_step(void **state) {
    struct checkpoint *checkpoint = *state;
    fill_large(checkpoint);
    for (uint64_t stop = 1; stop <= 4; stop++) {
        struct progress progress = {.stop_after = stop};
        struct weights *weights = NULL;
        struct error error;
        unsigned files = count_open_files();
        assert_int_equal(
            weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                         &checkpoint->config, &whole, on_progress, &progress, &weights, &error),
            STATUS_CANCELLED);
        assert_int_equal(progress.call_count, stop);
        assert_null(weights);
        assert_int_equal(count_open_files(), files);
        assert_int_equal(mapped_of(checkpoint->directory).size_bytes, 0);
    }
}

// -- failures
// --------------------------------------------------------------------------------------

static void weights_open_has_all_pages_in_memory(void **state) {
    struct checkpoint *checkpoint = *state;
    write_file(checkpoint, "model.safetensors", -1);
    for (int old_kernel = 0; old_kernel < 2; old_kernel++) {
        populate_errno = old_kernel ? EINVAL : 0;
        struct weights *weights = NULL;
        assert_int_equal(open_whole(checkpoint, &weights, NULL), STATUS_OK);
        struct mapped mapped = mapped_of(checkpoint->directory);
        assert_int_equal(mapped.resident_bytes, mapped.size_bytes);
        assert_int_equal(mapped.size_bytes, weights->mapped_bytes);
        weights_close(weights);
    }
}

static void weights_open_reports_files_that_shrink_meanwhile(void **state) {
    struct checkpoint *checkpoint = *state;
    fill_large(checkpoint);
    char path[PATH_BYTES];
    path_of(checkpoint, "model.safetensors", path);
    struct progress progress = {.truncate_path = path};
    struct weights *weights = NULL;
    struct error error;
    void *probe = mmap(NULL, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(probe, MAP_FAILED);
    bool can_populate = madvise(probe, 1, MADV_POPULATE_READ) == 0;
    munmap(probe, 1);
    if (!can_populate) skip(); // an older kernel raises SIGBUS
    assert_int_equal(
        weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                     &checkpoint->config, &whole, on_progress, &progress, &weights, &error),
        STATUS_IO);
    assert_non_null(strstr(error.text, "model.safetensors: reading weights: it became shorter"));
    assert_int_equal(mapped_of(checkpoint->directory).size_bytes, 0);
}

static void weights_open_reports_disk_errors(void **state) {
    struct checkpoint *checkpoint = *state;
    write_file(checkpoint, "model.safetensors", -1);
    struct weights *weights = NULL;
    struct error error;
    populate_errno = EIO;
    assert_int_equal(open_whole(checkpoint, &weights, &error), STATUS_IO);
    assert_non_null(strstr(error.text, "model.safetensors: reading weights"));
    assert_non_null(strstr(error.text, strerror(EIO)));
    assert_int_equal(mapped_of(checkpoint->directory).size_bytes, 0);
}

#if OWN_MALLOC
// The n-th call fails, for each n: each time a status, and nothing stays open or mapped.
static void fail_each_call(const struct checkpoint *checkpoint, long *calls_left,
                           enum status expected, const char *words) {
    unsigned files = count_open_files();
    enum status status = expected;
    long count = 0;
    for (; status != STATUS_OK && count < 1000; count++) {
        struct weights *weights = NULL;
        struct error error;
        *calls_left = count;
        status = open_whole(checkpoint, &weights, &error);
        *calls_left = LONG_MAX;
        if (status != STATUS_OK && (status != expected || strstr(error.text, words) == NULL))
            fail_msg("call %ld: %s '%s'", count, status_name(status), error.text);
        weights_close(weights);
        assert_int_equal(count_open_files(), files);
        assert_int_equal(mapped_of(checkpoint->directory).size_bytes, 0);
    }
    assert_int_equal(status, STATUS_OK);
    assert_true(count > 3); // at least one call for each of three shards
}
#endif

static void weights_open_survives_each_failing_read_and_mapping(void **state) {
#if OWN_MALLOC
    struct checkpoint *checkpoint = *state;
    write_sharded(checkpoint);
    fail_each_call(checkpoint, &mappings_left, STATUS_NO_MEMORY, ": mapping ");
    fail_each_call(checkpoint, &reads_left, STATUS_IO, "reading the header");
#else
    (void)state;
    skip(); // sanitizers replace these calls themselves
#endif
}

static void weights_open_survives_each_failing_allocation(void **state) {
#if OWN_MALLOC
    struct checkpoint *checkpoint = *state;
    write_sharded(checkpoint);
    enum status status = STATUS_NO_MEMORY;
    long count = 0;
    for (; status != STATUS_OK && count < 10000; count++) {
        struct weights *weights = NULL;
        struct error error = {.text = ""};
        allocations_left = count;
        allocations_alive = 0;
        allocations_counted = true;
        status =
            weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                         &checkpoint->config, &whole, NULL, NULL, &weights, &error);
        allocations_counted = status == STATUS_OK;
        weights_close(weights);
        allocations_counted = false;
        assert_int_equal(allocations_alive, 0);
        // jansson and the header's parser blame the text for some failures.
        if (status != STATUS_OK && status != STATUS_NO_MEMORY && status != STATUS_INVALID)
            fail_msg("allocation %ld: %s '%s'", count, status_name(status), error.text);
        assert_int_equal(mapped_of(checkpoint->directory).size_bytes, 0);
    }
    assert_int_equal(status, STATUS_OK);
    assert_true(count > 100);
#else
    (void)state;
    skip(); // sanitizers have allocators of their own
#endif
}

#define ON_CHECKPOINT(test) cmocka_unit_test_setup_teardown(test, fresh, checkpoint_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_CHECKPOINT(weights_open_reports_true_progress),
        ON_CHECKPOINT(weights_open_can_be_cancelled_at_each_step),
        ON_CHECKPOINT(weights_open_has_all_pages_in_memory),
        ON_CHECKPOINT(weights_open_reports_files_that_shrink_meanwhile),
        ON_CHECKPOINT(weights_open_reports_disk_errors),
        ON_CHECKPOINT(weights_open_survives_each_failing_read_and_mapping),
        ON_CHECKPOINT(weights_open_survives_each_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
