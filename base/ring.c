#include "base/ring.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/memory.h"

// A cell's turn says whose it is: turn == position means free for the producer of that position,
// turn == position + 1 means filled for its consumer.
struct cell {
    _Atomic size_t turn;
    void *entry;
};

struct ring {
    struct cell *cells;
    size_t mask;
    _Alignas(64) _Atomic size_t give_position;
    _Alignas(64) _Atomic size_t take_position;
};

enum status ring_open(size_t capacity_count, struct ring **ring_out) {
    CHECK(capacity_count >= 2 && (capacity_count & (capacity_count - 1)) == 0);
    struct ring *ring = aligned_alloc(64, sizeof(*ring));
    if (ring == NULL) return STATUS_NO_MEMORY;
    ring->cells = memory_array(capacity_count, sizeof(*ring->cells));
    if (ring->cells == NULL) {
        free(ring);
        return STATUS_NO_MEMORY;
    }
    ring->mask = capacity_count - 1;
    for (size_t i = 0; i < capacity_count; i++)
        atomic_init(&ring->cells[i].turn, i);
    atomic_init(&ring->give_position, 0);
    atomic_init(&ring->take_position, 0);
    *ring_out = ring;
    return STATUS_OK;
}

void ring_close(struct ring *ring) {
    if (ring == NULL) return;
    free(ring->cells);
    free(ring);
}

bool ring_give(struct ring *ring, void *entry) {
    CHECK(entry != NULL);
    size_t position = atomic_load_explicit(&ring->give_position, memory_order_relaxed);
    for (;;) {
        struct cell *cell = &ring->cells[position & ring->mask];
        size_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        intptr_t ahead = (intptr_t)turn - (intptr_t)position;
        if (ahead < 0) return false;
        if (ahead > 0) {
            position = atomic_load_explicit(&ring->give_position, memory_order_relaxed);
            continue;
        }
        if (!atomic_compare_exchange_weak(&ring->give_position, &position, position + 1)) continue;
        cell->entry = entry;
        atomic_store_explicit(&cell->turn, position + 1, memory_order_release);
        return true;
    }
}

void *ring_take(struct ring *ring) {
    size_t position = atomic_load_explicit(&ring->take_position, memory_order_relaxed);
    for (;;) {
        struct cell *cell = &ring->cells[position & ring->mask];
        size_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        intptr_t ahead = (intptr_t)turn - (intptr_t)(position + 1);
        if (ahead < 0) return NULL;
        if (ahead > 0) {
            position = atomic_load_explicit(&ring->take_position, memory_order_relaxed);
            continue;
        }
        if (!atomic_compare_exchange_weak(&ring->take_position, &position, position + 1)) continue;
        void *entry = cell->entry;
        atomic_store_explicit(&cell->turn, position + ring->mask + 1, memory_order_release);
        return entry;
    }
}
