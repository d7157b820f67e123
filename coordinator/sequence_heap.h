// sequence_heap: sequences in an order of rank, the first one at hand. A binary heap: adding,
// taking out and moving one costs O(log n), and nothing is allocated after open.
#pragma once

#include "coordinator/sequence.h"

// Whether `a` comes before `b`. A total order.
typedef bool sequence_before_fn(const struct sequence *a, const struct sequence *b);

struct sequence_heap {
    struct sequence **sequences; // a sequence is at its heap_index[kind]
    uint32_t count;
    uint32_t capacity_count;
    enum sequence_heap_kind kind;
    sequence_before_fn *before;
};

MUST_USE enum status sequence_heap_init(struct sequence_heap *heap, uint32_t capacity_count,
                                        enum sequence_heap_kind kind, sequence_before_fn *before);
void sequence_heap_fini(struct sequence_heap *heap);

void sequence_heap_add(struct sequence_heap *heap, struct sequence *sequence);
void sequence_heap_remove(struct sequence_heap *heap, struct sequence *sequence);

// NULL when it is empty.
static inline struct sequence *sequence_heap_first(const struct sequence_heap *heap) {
    return heap->count > 0 ? heap->sequences[0] : NULL;
}
