// Reads the parts of tokenizer.json around the model: normalizer, pre-tokenizer, post-processor and
// decoder. Each is an object with a type; a Sequence has a list of such objects.
#include <string.h>

#include "coordinator/tokenizer_loader.h"

// The "type" of an object whose fields were read.
static struct loader_name type_at(struct loader *loader, const char *where, size_t mark) {
    struct loader_name name = {.text = ""};
    if (!loader_go_to(loader, mark)) {
        loader_fail(loader, STATUS_INVALID, "%s: \"type\" is missing", where);
        return name;
    }
    return loader_name(json_take_string(&loader->json));
}

static void fail_type(struct loader *loader, const char *where, const struct loader_name *type,
                      const char *supported) {
    loader_fail(loader, STATUS_UNSUPPORTED, "%s: type \"%s\" is not supported, only %s", where,
                type->text, supported);
}

// Runs `step` on every element of the array at the mark.
static void each_at(struct loader *loader, const char *where, size_t mark, loader_step_fn *step) {
    if (!loader_go_to(loader, mark)) {
        loader_fail(loader, STATUS_INVALID, "%s: the list is missing", where);
        return;
    }
    struct json *json = &loader->json;
    size_t marks[TOKENIZER_SPLIT_COUNT_MAX], count = 0;
    json_array_begin(json);
    while (json_array_next(json)) {
        if (count == TOKENIZER_SPLIT_COUNT_MAX) {
            loader_fail(loader, STATUS_UNSUPPORTED, "%s: more than %d elements", where,
                        TOKENIZER_SPLIT_COUNT_MAX);
            return;
        }
        marks[count++] = json_mark(json);
        json_skip(json);
    }
    for (size_t i = 0; i < count && !json->failed; i++)
        step(loader, marks[i]);
}

// -- normalizer and decoder -----------------------------------------------------------------------

void loader_read_normalizer(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) return;
    size_t type_mark, list_mark;
    const struct loader_field fields[] = {{"type", &type_mark}, {"normalizers", &list_mark}};
    loader_fields(loader, "normalizer", fields, 2);
    struct loader_name type = type_at(loader, "normalizer", type_mark);
    if (loader_name_equals(&type, "NFC"))
        loader->tokenizer->normalize = true;
    else if (loader_name_equals(&type, "Sequence"))
        each_at(loader, "normalizer.normalizers", list_mark, loader_read_normalizer);
    else
        fail_type(loader, "normalizer", &type, "NFC and Sequence");
}

void loader_read_decoder(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) {
        loader_fail(loader, STATUS_UNSUPPORTED, "decoder: null is not supported, only ByteLevel");
        return;
    }
    size_t type_mark, list_mark;
    const struct loader_field fields[] = {{"type", &type_mark}, {"decoders", &list_mark}};
    loader_fields(loader, "decoder", fields, 2);
    struct loader_name type = type_at(loader, "decoder", type_mark);
    if (loader_name_equals(&type, "ByteLevel") && !loader->byte_level_decoder)
        loader->byte_level_decoder = true;
    else if (loader_name_equals(&type, "Sequence"))
        each_at(loader, "decoder.decoders", list_mark, loader_read_decoder);
    else
        fail_type(loader, "decoder", &type, "one ByteLevel, alone or in a Sequence");
}

// -- pre-tokenizer --------------------------------------------------------------------------------

struct split_marks {
    size_t type, list, add_prefix_space, use_regex, pattern, behavior, invert, individual;
};

static struct split *append_split(struct loader *loader, enum split_kind kind) {
    struct tokenizer *tokenizer = loader->tokenizer;
    if (tokenizer->split_count == TOKENIZER_SPLIT_COUNT_MAX) {
        loader_fail(loader, STATUS_UNSUPPORTED, "pre_tokenizer: more than %d steps",
                    TOKENIZER_SPLIT_COUNT_MAX);
        return NULL;
    }
    if (tokenizer->split_count > 0 &&
        tokenizer->splits[tokenizer->split_count - 1].kind == SPLIT_BYTE_LEVEL) {
        loader_fail(loader, STATUS_UNSUPPORTED,
                    "pre_tokenizer: steps after ByteLevel are not supported");
        return NULL;
    }
    struct split *split = &tokenizer->splits[tokenizer->split_count++];
    *split = (struct split){.kind = kind};
    return split;
}

static void read_byte_level(struct loader *loader, const struct split_marks *marks) {
    bool add_prefix_space = loader_bool(loader, marks->add_prefix_space, true);
    bool use_regex = loader_bool(loader, marks->use_regex, true);
    if (loader->json.failed) return;
    struct split *split = append_split(loader, SPLIT_BYTE_LEVEL);
    if (split == NULL) return;
    split->add_prefix_space = add_prefix_space;
    if (!use_regex) return;
    struct error error;
    enum status status = pattern_compile_gpt2(&split->code, &error);
    if (status != STATUS_OK) loader_fail(loader, status, "pre_tokenizer: %s", error.text);
}

// {"Regex": "..."} or {"String": "..."}
static void read_pattern(struct loader *loader, size_t mark, struct split *split) {
    if (!loader_go_to(loader, mark)) {
        loader_fail(loader, STATUS_INVALID, "pre_tokenizer Split: \"pattern\" is missing");
        return;
    }
    size_t regex_mark, string_mark;
    const struct loader_field fields[] = {{"Regex", &regex_mark}, {"String", &string_mark}};
    loader_fields(loader, "pre_tokenizer Split: pattern", fields, 2);
    bool is_regex = loader_go_to(loader, regex_mark);
    if (!is_regex && !loader_go_to(loader, string_mark)) {
        loader_fail(loader, STATUS_INVALID,
                    "pre_tokenizer Split: pattern is neither Regex nor String");
        return;
    }
    struct json_text text = json_take_string(&loader->json);
    if (loader->json.failed) return;
    struct error error;
    enum status status =
        is_regex ? pattern_compile(text.data, text.size_bytes, &split->code, &error)
                 : pattern_compile_literal(text.data, text.size_bytes, &split->code, &error);
    if (status != STATUS_OK)
        loader_fail(loader, status, "pre_tokenizer Split: pattern: %s", error.text);
}

static void read_split(struct loader *loader, const struct split_marks *marks) {
    bool invert = loader_bool(loader, marks->invert, false);
    struct loader_name behavior = {.text = ""};
    if (loader_go_to(loader, marks->behavior))
        behavior = loader_name(json_take_string(&loader->json));
    bool removed = loader_name_equals(&behavior, "Removed");
    if (!removed && !loader_name_equals(&behavior, "Isolated")) {
        loader_fail(
            loader, STATUS_UNSUPPORTED,
            "pre_tokenizer Split: behavior \"%s\" is not supported, only Isolated and Removed",
            behavior.text);
        return;
    }
    if (loader->json.failed) return;
    struct split *split = append_split(loader, SPLIT_PATTERN);
    if (split == NULL) return;
    split->remove_matches = removed && !invert;
    split->remove_others = removed && invert;
    read_pattern(loader, marks->pattern, split);
}

void loader_read_pre_tokenizer(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) return;
    struct split_marks marks;
    const struct loader_field fields[] = {{"type", &marks.type},
                                          {"pretokenizers", &marks.list},
                                          {"add_prefix_space", &marks.add_prefix_space},
                                          {"use_regex", &marks.use_regex},
                                          {"pattern", &marks.pattern},
                                          {"behavior", &marks.behavior},
                                          {"invert", &marks.invert},
                                          {"individual_digits", &marks.individual}};
    loader_fields(loader, "pre_tokenizer", fields, sizeof(fields) / sizeof(fields[0]));
    struct loader_name type = type_at(loader, "pre_tokenizer", marks.type);
    if (loader_name_equals(&type, "ByteLevel")) {
        read_byte_level(loader, &marks);
    } else if (loader_name_equals(&type, "Split")) {
        read_split(loader, &marks);
    } else if (loader_name_equals(&type, "Digits")) {
        bool individual = loader_bool(loader, marks.individual, false);
        struct split *split = loader->json.failed ? NULL : append_split(loader, SPLIT_DIGITS);
        if (split != NULL) split->individual = individual;
    } else if (loader_name_equals(&type, "Sequence")) {
        each_at(loader, "pre_tokenizer.pretokenizers", marks.list, loader_read_pre_tokenizer);
    } else {
        fail_type(loader, "pre_tokenizer", &type, "ByteLevel, Split, Digits and Sequence");
    }
}

// -- post-processor -------------------------------------------------------------------------------

// Puts the ids of one special token before or after the text.
static void append_template_ids(struct loader *loader) {
    struct tokenizer *tokenizer = loader->tokenizer;
    struct json *json = &loader->json;
    uint32_t *ids = loader->sequence_seen ? tokenizer->suffix_ids : tokenizer->prefix_ids;
    size_t *count =
        loader->sequence_seen ? &tokenizer->suffix_id_count : &tokenizer->prefix_id_count;
    json_array_begin(json);
    while (json_array_next(json)) {
        uint32_t id = (uint32_t)json_take_integer(json, 0, MODEL_VOCABULARY_SIZE_MAX - 1);
        if (json->failed) return;
        if (id >= tokenizer->vocabulary.id_end || !tokenizer->vocabulary.tokens[id].used)
            loader_fail(loader, STATUS_INVALID, "post_processor: no token has id %u", id);
        else if (*count == TEMPLATE_ID_COUNT_MAX)
            loader_fail(loader, STATUS_EXHAUSTED, "post_processor: more than %d ids",
                        TEMPLATE_ID_COUNT_MAX);
        else
            ids[(*count)++] = id;
    }
}

// special_tokens: {"<name>": {"id": "<name>", "ids": [1], "tokens": ["<name>"]}}
static void read_template_token(struct loader *loader, const struct loader_name *name) {
    size_t token_mark, ids_mark;
    const struct loader_field token_field = {name->text, &token_mark};
    const struct loader_field ids_field = {"ids", &ids_mark};
    bool found = loader_go_to(loader, loader->special_tokens_mark);
    if (found) loader_fields(loader, "post_processor: special_tokens", &token_field, 1);
    found = found && loader_go_to(loader, token_mark);
    if (found) loader_fields(loader, "post_processor: special_tokens", &ids_field, 1);
    found = found && loader_go_to(loader, ids_mark);
    if (found)
        append_template_ids(loader);
    else
        loader_fail(loader, STATUS_INVALID, "post_processor: special_tokens has no ids for \"%s\"",
                    name->text);
}

// {"Sequence": {"id": "A"}} or {"SpecialToken": {"id": "<name>"}}
static void read_template_piece(struct loader *loader, size_t mark) {
    size_t sequence_mark, token_mark, id_mark;
    const struct loader_field fields[] = {{"Sequence", &sequence_mark},
                                          {"SpecialToken", &token_mark}};
    const struct loader_field id_field = {"id", &id_mark};
    json_return(&loader->json, mark);
    loader_fields(loader, "post_processor: single", fields, 2);
    bool is_sequence = loader_go_to(loader, sequence_mark);
    if (!is_sequence && !loader_go_to(loader, token_mark)) {
        loader_fail(loader, STATUS_INVALID,
                    "post_processor: single has a piece that is neither Sequence nor SpecialToken");
        return;
    }
    loader_fields(loader, "post_processor: single", &id_field, 1);
    struct loader_name name = {.text = ""};
    if (loader_go_to(loader, id_mark)) name = loader_name(json_take_string(&loader->json));
    if (loader->json.failed) return;
    if (!is_sequence) {
        read_template_token(loader, &name);
        return;
    }
    if (loader->sequence_seen || !loader_name_equals(&name, "A"))
        loader_fail(loader, STATUS_UNSUPPORTED,
                    "post_processor: single with other sequences than one \"A\"");
    loader->sequence_seen = true;
}

static void read_template(struct loader *loader, size_t single_mark, size_t special_tokens_mark) {
    if (loader->template_seen) {
        loader_fail(loader, STATUS_UNSUPPORTED, "post_processor: more than one TemplateProcessing");
        return;
    }
    loader->template_seen = true;
    loader->special_tokens_mark = special_tokens_mark;
    each_at(loader, "post_processor: single", single_mark, read_template_piece);
    if (!loader->sequence_seen)
        loader_fail(loader, STATUS_INVALID, "post_processor: single has no sequence \"A\"");
}

void loader_read_post_processor(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) return;
    size_t type_mark, list_mark, single_mark, special_tokens_mark;
    const struct loader_field fields[] = {{"type", &type_mark},
                                          {"processors", &list_mark},
                                          {"single", &single_mark},
                                          {"special_tokens", &special_tokens_mark}};
    loader_fields(loader, "post_processor", fields, sizeof(fields) / sizeof(fields[0]));
    struct loader_name type = type_at(loader, "post_processor", type_mark);
    if (loader_name_equals(&type, "TemplateProcessing"))
        read_template(loader, single_mark, special_tokens_mark);
    else if (loader_name_equals(&type, "Sequence"))
        each_at(loader, "post_processor.processors", list_mark, loader_read_post_processor);
    else if (!loader_name_equals(&type, "ByteLevel")) // which only corrects offsets
        fail_type(loader, "post_processor", &type, "ByteLevel, TemplateProcessing and Sequence");
}
