// Added tokens: found in the text as they are written, before anything else splits it.
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer_parts.h"

enum { CAPACITY_FIRST = 64 };

static void tree_fini(struct added_tree *tree) {
    free(tree->nodes);
}

void added_init(struct added *added) {
    *added = (struct added){0};
}

void added_fini(struct added *added) {
    free(added->tokens);
    tree_fini(&added->raw);
    tree_fini(&added->normalized);
}

enum status added_append(struct added *added, const struct added_token *token) {
    if (added->token_count == added->token_capacity) {
        uint32_t capacity = added->token_capacity == 0 ? CAPACITY_FIRST : added->token_capacity * 2;
        struct added_token *grown = memory_resize(added->tokens, capacity, sizeof(*grown));
        if (grown == NULL) return STATUS_NO_MEMORY;
        added->tokens = grown;
        added->token_capacity = capacity;
    }
    added->tokens[added->token_count++] = *token;
    return STATUS_OK;
}

// -- trees ----------------------------------------------------------------------------------------

// The child of a node by byte, or 0.
static uint32_t child_of(const struct added_tree *tree, uint32_t node, uint8_t byte) {
    if (node == 0) return tree->roots[byte];
    uint32_t child = tree->nodes[node].first_child;
    while (child != 0 && tree->nodes[child].byte != byte)
        child = tree->nodes[child].next_sibling;
    return child;
}

static enum status node_append(struct added_tree *tree, uint32_t parent, uint8_t byte,
                               uint32_t *node_out) {
    if (tree->node_count == tree->node_capacity) {
        uint32_t capacity = tree->node_capacity == 0 ? CAPACITY_FIRST : tree->node_capacity * 2;
        struct added_node *grown = memory_resize(tree->nodes, capacity, sizeof(*grown));
        if (grown == NULL) return STATUS_NO_MEMORY;
        tree->nodes = grown;
        tree->node_capacity = capacity;
    }
    if (tree->node_count == 0) tree->nodes[tree->node_count++] = (struct added_node){0};
    uint32_t node = tree->node_count++;
    tree->nodes[node] = (struct added_node){.byte = byte};
    if (parent == 0) {
        tree->roots[byte] = node;
    } else {
        tree->nodes[node].next_sibling = tree->nodes[parent].first_child;
        tree->nodes[parent].first_child = node;
    }
    *node_out = node;
    return STATUS_OK;
}

// The first token with a text keeps it: two can have the same one after normalizing.
static enum status tree_insert(struct added_tree *tree, const char *text, size_t size_bytes,
                               uint32_t token_index) {
    uint32_t node = 0;
    for (size_t i = 0; i < size_bytes; i++) {
        uint32_t child = child_of(tree, node, (uint8_t)text[i]);
        if (child == 0) {
            enum status status = node_append(tree, node, (uint8_t)text[i], &child);
            if (status != STATUS_OK) return status;
        }
        node = child;
    }
    if (tree->nodes[node].token == 0) tree->nodes[node].token = token_index + 1;
    return STATUS_OK;
}

static enum status insert_token(struct added *added, const struct vocabulary *vocabulary,
                                bool normalize, uint32_t index) {
    const struct added_token *token = &added->tokens[index];
    const struct token *stored = &vocabulary->tokens[token->id];
    const char *text = vocabulary->texts.data + stored->text_offset;
    size_t size_bytes = stored->text_size_bytes;
    if (!token->normalized) return tree_insert(&added->raw, text, size_bytes, index);
    char *owned = NULL;
    if (normalize) {
        enum status status = nfc(text, size_bytes, &owned, &text, &size_bytes);
        if (status != STATUS_OK) return status;
    }
    enum status status = tree_insert(&added->normalized, text, size_bytes, index);
    free(owned);
    return status;
}

enum status added_finish(struct added *added, const struct vocabulary *vocabulary, bool normalize) {
    for (int special = 1; special >= 0; special--) {
        for (uint32_t i = 0; i < added->token_count; i++) {
            if (added->tokens[i].special != special) continue;
            enum status status = insert_token(added, vocabulary, normalize, i);
            if (status != STATUS_OK) return status;
        }
    }
    return STATUS_OK;
}

// -- matching -------------------------------------------------------------------------------------

// The longest token that starts at `offset`: its index plus one and its end, or 0.
static uint32_t longest_at(const struct added_tree *tree, const char *text, size_t size_bytes,
                           size_t offset, size_t *end_out) {
    uint32_t node = 0, longest = 0;
    for (size_t i = offset; i < size_bytes; i++) {
        node = child_of(tree, node, (uint8_t)text[i]);
        if (node == 0) break;
        if (tree->nodes[node].token == 0) continue;
        longest = tree->nodes[node].token;
        *end_out = i + 1;
    }
    return longest;
}

static bool touches_word(const char *text, size_t size_bytes, size_t start, size_t end) {
    size_t ignored;
    if (start > 0 && unicode_is_word(utf8_last(text, start, &ignored))) return true;
    return end < size_bytes && unicode_is_word(utf8_first(text + end, size_bytes - end, &ignored));
}

static size_t space_start(const char *text, size_t end, size_t lowest) {
    while (end > lowest) {
        size_t character_bytes;
        if (!unicode_is_space(utf8_last(text, end, &character_bytes))) break;
        end -= character_bytes;
    }
    return end < lowest ? lowest : end;
}

static size_t space_end(const char *text, size_t size_bytes, size_t start) {
    while (start < size_bytes) {
        size_t character_bytes;
        if (!unicode_is_space(utf8_first(text + start, size_bytes - start, &character_bytes)))
            break;
        start += character_bytes;
    }
    return start;
}

bool added_find(const struct added *added, const struct added_tree *tree, const char *text,
                size_t size_bytes, size_t offset, size_t taken_end, bool parse_special,
                struct added_match *match_out) {
    if (tree->node_count == 0) return false;
    while (offset < size_bytes) {
        size_t end = offset;
        uint32_t index = longest_at(tree, text, size_bytes, offset, &end);
        if (index == 0) {
            offset++;
            continue;
        }
        size_t start = offset;
        offset = end; // what does not count still hides what it overlaps
        const struct added_token *token = &added->tokens[index - 1];
        if (token->special && !parse_special) continue;
        if (token->single_word && touches_word(text, size_bytes, start, end)) continue;
        *match_out = (struct added_match){.token = token, .match_end = end, .start = start};
        if (token->lstrip) match_out->start = space_start(text, start, taken_end);
        match_out->end = token->rstrip ? space_end(text, size_bytes, end) : end;
        return true;
    }
    return false;
}
