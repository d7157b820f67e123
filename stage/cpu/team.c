#include "stage/cpu/team.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "stage/cpu/cores.h"

#define THREAD_NAME "compute"

enum {
    SPIN_LOOK_COUNT = 16, // between looks at the clock
};

struct worker {
    struct team *team;
    uint32_t thread_index;
    pthread_t thread;
};

// A run: the caller writes fn and ctx, sets running_count and raises run_number. A worker that sees
// a new number runs its share and lowers running_count. Who waits announces it before it sleeps, so
// that the other side makes a system call only when somebody sleeps: announcement and change are
// sequentially consistent, one of the two sides always sees the other's.
struct team {
    uint32_t thread_count;
    uint64_t hold_ns; // of looking without giving way
    struct clock clock;
    uint32_t caller_core;
    bool is_pinned;
    team_fn *fn;
    void *ctx;
    bool is_closing;
    _Alignas(64) _Atomic uint32_t run_number;
    _Atomic uint32_t sleeping_count;             // workers asleep, or about to be
    _Alignas(64) _Atomic uint32_t running_count; // workers that have not finished this run
    _Atomic uint32_t caller_sleeps;
    struct worker workers[];
};

static void futex_sleep(_Atomic uint32_t *word, uint32_t expected) {
    // Returns at once when *word differs; waking without a reason is fine, all callers look again.
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

// Looks at *word until it is, or is no longer, `value`. False when that took too long: sleep.
// After a moment it gives way between looks: whoever else has work for this processor computes, and
// when nobody has, no sleeper needs to be woken.
static bool spin_until(const struct team *team, _Atomic uint32_t *word, uint32_t value, bool is) {
    uint64_t begin_ns = 0;
    for (;;) {
        for (int i = 0; i < SPIN_LOOK_COUNT; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) == value) == is) return true;
            spin_pause();
        }
        uint64_t now_ns = clock_now_ns(&team->clock);
        if (begin_ns == 0) begin_ns = now_ns;
        if (now_ns - begin_ns >= TEAM_SPIN_NS) return false;
        if (now_ns - begin_ns >= team->hold_ns) sched_yield();
    }
}

// Waits until run_number differs from `seen`; returns the new number.
static uint32_t run_wait(struct team *team, uint32_t seen) {
    if (spin_until(team, &team->run_number, seen, false)) {
        // Nobody raises it again before this thread has finished the run.
        return atomic_load_explicit(&team->run_number, memory_order_relaxed);
    }
    atomic_fetch_add(&team->sleeping_count, 1);
    uint32_t number;
    while ((number = atomic_load(&team->run_number)) == seen) {
        futex_sleep(&team->run_number, seen);
    }
    atomic_fetch_sub(&team->sleeping_count, 1);
    return number;
}

static void run_start(struct team *team) {
    atomic_store(&team->running_count, team->thread_count - 1);
    atomic_fetch_add(&team->run_number, 1);
    if (atomic_load(&team->sleeping_count) > 0) {
        futex_wake(&team->run_number, (int)team->thread_count);
    }
}

static void run_finish(struct team *team) {
    if (spin_until(team, &team->running_count, 0, true)) return;
    atomic_store(&team->caller_sleeps, 1);
    uint32_t count;
    while ((count = atomic_load(&team->running_count)) != 0) {
        futex_sleep(&team->running_count, count);
    }
    atomic_store(&team->caller_sleeps, 0);
}

static void *worker_main(void *argument) {
    struct worker *worker = argument;
    struct team *team = worker->team;
    uint32_t seen = 0;
    for (;;) {
        // A run starts only after all workers finished the one before, so none is missed.
        seen = run_wait(team, seen);
        if (team->is_closing) return NULL;
        team->fn(team->ctx, worker->thread_index, team->thread_count);
        if (atomic_fetch_sub(&team->running_count, 1) == 1 &&
            atomic_load(&team->caller_sleeps) != 0) {
            futex_wake(&team->running_count, 1);
        }
    }
}

static void workers_join(struct team *team, uint32_t worker_count) {
    team->is_closing = true;
    run_start(team);
    for (uint32_t i = 0; i < worker_count; i++) {
        CHECK(pthread_join(team->workers[i].thread, NULL) == 0);
    }
}

static enum status workers_start(struct team *team, struct error *error) {
    // Signals are for the threads that expect them: workers inherit a full mask.
    sigset_t all, old;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &old) == 0);
    uint32_t worker_count = 0;
    int result = 0;
    while (worker_count < team->thread_count - 1) {
        struct worker *worker = &team->workers[worker_count];
        *worker = (struct worker){.team = team, .thread_index = worker_count + 1};
        result = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (result != 0) break;
        pthread_setname_np(worker->thread, THREAD_NAME);
        worker_count++;
    }
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    if (result == 0) return STATUS_OK;
    workers_join(team, worker_count);
    return error_set(error, STATUS_IO, "compute thread %u of %u did not start: %s",
                     worker_count + 1, team->thread_count, strerror(result));
}

enum status team_open(uint32_t thread_count, struct team **team_out, struct error *error) {
    if (thread_count == 0 || thread_count > TEAM_THREAD_COUNT_MAX) {
        return error_set(error, STATUS_INVALID, "thread count %u is not in 1..%d", thread_count,
                         TEAM_THREAD_COUNT_MAX);
    }
    size_t size_bytes = sizeof(struct team) + (thread_count - 1) * sizeof(struct worker);
    size_bytes = (size_bytes + 63) / 64 * 64;
    struct team *team = aligned_alloc(64, size_bytes);
    if (team == NULL) {
        return error_set(error, STATUS_NO_MEMORY, "no memory for %u threads", thread_count);
    }
    memset(team, 0, size_bytes);
    team->thread_count = thread_count;
    team->clock = clock_system();
    struct processor_set allowed;
    machine_allowed(&allowed);
    // With more threads than processors, who waits has the processor of one who works.
    if (thread_count <= processor_set_count(&allowed)) team->hold_ns = TEAM_HOLD_NS;
    enum status status = workers_start(team, error);
    if (status != STATUS_OK) {
        free(team);
        return status;
    }
    *team_out = team;
    return STATUS_OK;
}

void team_close(struct team *team) {
    if (team == NULL) return;
    workers_join(team, team->thread_count - 1);
    free(team);
}

static int thread_pin(pthread_t thread, uint32_t core) {
    cpu_set_t sets[PROCESSOR_ID_COUNT / CPU_SETSIZE];
    memset(sets, 0, sizeof(sets));
    CPU_SET_S(core, sizeof(sets), sets);
    return pthread_setaffinity_np(thread, sizeof(sets), sets);
}

enum status team_pin(struct team *team, const struct core_list *cores, struct error *error) {
    CHECK(cores->count == team->thread_count);
    for (uint32_t i = 1; i < team->thread_count; i++) {
        int result = thread_pin(team->workers[i - 1].thread, cores->ids[i]);
        if (result == 0) continue;
        return error_set(error, STATUS_IO, "cannot pin a compute thread to core %u: %s",
                         cores->ids[i], strerror(result));
    }
    team->caller_core = cores->ids[0];
    team->is_pinned = true;
    return STATUS_OK;
}

void team_enter(struct team *team) {
    pthread_setname_np(pthread_self(), THREAD_NAME);
    if (!team->is_pinned) return;
    int result = thread_pin(pthread_self(), team->caller_core);
    if (result == 0) return;
    log_warn("cannot pin the compute thread to core %u: %s", team->caller_core, strerror(result));
}

uint32_t team_thread_count(const struct team *team) {
    return team->thread_count;
}

void team_run(struct team *team, team_fn *fn, void *ctx) {
    if (team->thread_count == 1) {
        fn(ctx, 0, 1);
        return;
    }
    CHECK(atomic_load_explicit(&team->running_count, memory_order_relaxed) == 0);
    team->fn = fn;
    team->ctx = ctx;
    run_start(team);
    fn(ctx, 0, team->thread_count);
    run_finish(team);
}
