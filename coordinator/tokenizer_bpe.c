// Byte pair encoding of one word (Sennrich et al. 2016, on bytes as in GPT-2): while any two
// neighbours have a merge, the one of lowest rank is done, the leftmost of several first. A heap
// holds the candidates and the symbols form a linked list, so n bytes take O(n log n).
#include <stdlib.h>

#include "coordinator/tokenizer_parts.h"

void bpe_init(struct bpe *bpe) {
    *bpe = (struct bpe){0};
}

void bpe_fini(struct bpe *bpe) {
    free(bpe->symbols);
    free(bpe->heap);
}

// -- candidates -----------------------------------------------------------------------------------

static bool goes_before(const struct bpe_candidate *a, const struct bpe_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static void heap_push(struct bpe *bpe, struct bpe_candidate candidate) {
    struct bpe_candidate *heap = bpe->heap;
    size_t i = bpe->heap_count++;
    while (i > 0 && goes_before(&candidate, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = candidate;
}

static struct bpe_candidate heap_pop(struct bpe *bpe) {
    struct bpe_candidate *heap = bpe->heap;
    struct bpe_candidate top = heap[0];
    struct bpe_candidate last = heap[--bpe->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= bpe->heap_count) break;
        if (child + 1 < bpe->heap_count && goes_before(&heap[child + 1], &heap[child])) child++;
        if (!goes_before(&heap[child], &last)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

// Queues the merge of the symbol at `position` with the next, if there is one.
static void propose(struct bpe *bpe, const struct vocabulary *vocabulary, uint32_t position) {
    const struct bpe_symbol *symbol = &bpe->symbols[position];
    if (symbol->next == ID_NONE) return;
    const struct merge *merge =
        vocabulary_merge(vocabulary, merge_pair(symbol->id, bpe->symbols[symbol->next].id));
    if (merge == NULL) return;
    heap_push(bpe, (struct bpe_candidate){merge->rank, position, merge->id});
}

// -- words ----------------------------------------------------------------------------------------

// Each merge takes one symbol away and proposes at most two more, so 3n candidates are enough.
static enum status reserve(struct bpe *bpe, size_t size_bytes) {
    if (size_bytes > bpe->symbol_capacity) {
        struct bpe_symbol *grown = memory_resize(bpe->symbols, size_bytes, sizeof(*grown));
        if (grown == NULL) return STATUS_NO_MEMORY;
        bpe->symbols = grown;
        bpe->symbol_capacity = size_bytes;
    }
    if (3 * size_bytes > bpe->heap_capacity) {
        struct bpe_candidate *grown = memory_resize(bpe->heap, 3 * size_bytes, sizeof(*grown));
        if (grown == NULL) return STATUS_NO_MEMORY;
        bpe->heap = grown;
        bpe->heap_capacity = 3 * size_bytes;
    }
    return STATUS_OK;
}

static void append_symbol(struct bpe *bpe, uint32_t id) {
    uint32_t position = (uint32_t)bpe->symbol_count++;
    uint32_t previous = position == 0 ? ID_NONE : position - 1;
    bpe->symbols[position] = (struct bpe_symbol){id, previous, ID_NONE};
    if (previous != ID_NONE) bpe->symbols[previous].next = position;
}

// One symbol a byte; bytes without a token become the unknown one, or nothing without that.
static void append_bytes(struct bpe *bpe, const struct vocabulary *vocabulary,
                         const struct bpe_options *options, const char *word, size_t size_bytes) {
    bool after_unknown = false;
    for (size_t i = 0; i < size_bytes; i++) {
        uint32_t id = vocabulary->byte_ids[(unsigned char)word[i]];
        bool unknown = id == ID_NONE;
        if (unknown) id = options->unknown_id;
        bool fused = unknown && after_unknown && options->fuse_unknown;
        if (id != ID_NONE && !fused) append_symbol(bpe, id);
        after_unknown = unknown;
    }
}

static void merge_with_next(struct bpe *bpe, const struct vocabulary *vocabulary, uint32_t position,
                            uint32_t id) {
    struct bpe_symbol *symbol = &bpe->symbols[position];
    struct bpe_symbol *right = &bpe->symbols[symbol->next];
    symbol->id = id;
    symbol->next = right->next;
    right->id = ID_NONE;
    if (symbol->next != ID_NONE) bpe->symbols[symbol->next].previous = position;
    if (symbol->previous != ID_NONE) propose(bpe, vocabulary, symbol->previous);
    propose(bpe, vocabulary, position);
}

enum status bpe_word(struct bpe *bpe, const struct vocabulary *vocabulary,
                     const struct bpe_options *options, const char *word, size_t size_bytes) {
    bpe->symbol_count = bpe->heap_count = 0;
    if (reserve(bpe, size_bytes) != STATUS_OK) return STATUS_NO_MEMORY;
    uint32_t whole_id;
    if (options->ignore_merges && vocabulary_find_bytes(vocabulary, word, size_bytes, &whole_id)) {
        append_symbol(bpe, whole_id);
        return STATUS_OK;
    }
    append_bytes(bpe, vocabulary, options, word, size_bytes);
    for (size_t i = 0; i < bpe->symbol_count; i++)
        propose(bpe, vocabulary, (uint32_t)i);
    while (bpe->heap_count > 0) {
        struct bpe_candidate top = heap_pop(bpe);
        const struct bpe_symbol *left = &bpe->symbols[top.position];
        if (left->id == ID_NONE || left->next == ID_NONE) continue;
        // A symbol that has changed since may still have a merge to the same token: do it.
        const struct merge *merge =
            vocabulary_merge(vocabulary, merge_pair(left->id, bpe->symbols[left->next].id));
        if (merge == NULL || merge->id != top.id) continue;
        merge_with_next(bpe, vocabulary, top.position, top.id);
    }
    return STATUS_OK;
}
