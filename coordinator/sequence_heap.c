#include "coordinator/sequence_heap.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/memory.h"

enum status sequence_heap_init(struct sequence_heap *heap, uint32_t capacity_count,
                               enum sequence_heap_kind kind, sequence_before_fn *before) {
    struct sequence **sequences = memory_array(capacity_count, sizeof(*sequences));
    if (sequences == NULL) return STATUS_NO_MEMORY;
    *heap = (struct sequence_heap){
        .sequences = sequences,
        .capacity_count = capacity_count,
        .kind = kind,
        .before = before,
    };
    return STATUS_OK;
}

void sequence_heap_fini(struct sequence_heap *heap) {
    free(heap->sequences);
    *heap = (struct sequence_heap){0};
}

static void put(struct sequence_heap *heap, uint32_t index, struct sequence *sequence) {
    heap->sequences[index] = sequence;
    sequence->heap_index[heap->kind] = index;
}

static void move_up(struct sequence_heap *heap, uint32_t index, struct sequence *sequence) {
    while (index > 0) {
        uint32_t parent = (index - 1) / 2;
        if (!heap->before(sequence, heap->sequences[parent])) break;
        put(heap, index, heap->sequences[parent]);
        index = parent;
    }
    put(heap, index, sequence);
}

static void move_down(struct sequence_heap *heap, uint32_t index, struct sequence *sequence) {
    for (;;) {
        uint32_t child = index * 2 + 1;
        if (child >= heap->count) break;
        if (child + 1 < heap->count &&
            heap->before(heap->sequences[child + 1], heap->sequences[child]))
            child++;
        if (!heap->before(heap->sequences[child], sequence)) break;
        put(heap, index, heap->sequences[child]);
        index = child;
    }
    put(heap, index, sequence);
}

void sequence_heap_add(struct sequence_heap *heap, struct sequence *sequence) {
    CHECK(heap->count < heap->capacity_count);
    move_up(heap, heap->count++, sequence);
}

void sequence_heap_remove(struct sequence_heap *heap, struct sequence *sequence) {
    uint32_t index = sequence->heap_index[heap->kind];
    CHECK(index < heap->count && heap->sequences[index] == sequence);
    struct sequence *last = heap->sequences[--heap->count];
    if (last == sequence) return;
    if (index > 0 && heap->before(last, heap->sequences[(index - 1) / 2]))
        move_up(heap, index, last);
    else
        move_down(heap, index, last);
}
