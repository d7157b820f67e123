#include "transport/rpc_descriptors.h"

#include <string.h>

#include "transport/rpc_wire.h"

// Field numbers of google/protobuf/descriptor.proto. The name of everything that has one is
// field 1.
enum {
    SET_FILE = 1,
    NAME = 1,
    FILE_PACKAGE = 2,
    FILE_DEPENDENCY = 3,
    EXTENSION_EXTENDEE = 2,
    EXTENSION_NUMBER = 3,
};

// What can be declared inside what.
enum scope { SCOPE_NONE, SCOPE_FILE, SCOPE_MESSAGE, SCOPE_ENUM, SCOPE_SERVICE };
struct declaration {
    enum scope outer;
    uint32_t field_id; // in the descriptor of the outer scope
    enum scope inner;
    bool is_extension;
};
static const struct declaration DECLARATIONS[] = {
    {SCOPE_FILE, 4, SCOPE_MESSAGE, false}, {SCOPE_FILE, 5, SCOPE_ENUM, false},
    {SCOPE_FILE, 6, SCOPE_SERVICE, false}, {SCOPE_FILE, 7, SCOPE_NONE, true},
    {SCOPE_MESSAGE, 2, SCOPE_NONE, false}, {SCOPE_MESSAGE, 3, SCOPE_MESSAGE, false},
    {SCOPE_MESSAGE, 4, SCOPE_ENUM, false}, {SCOPE_MESSAGE, 6, SCOPE_NONE, true},
    {SCOPE_MESSAGE, 8, SCOPE_NONE, false}, {SCOPE_ENUM, 2, SCOPE_NONE, false},
    {SCOPE_SERVICE, 2, SCOPE_NONE, false},
};
enum { DECLARATION_COUNT = sizeof(DECLARATIONS) / sizeof(DECLARATIONS[0]) };

static const struct declaration *declaration_of(enum scope outer,
                                                const struct rpc_wire_field *field) {
    if (field->type != RPC_WIRE_BYTES) return NULL;
    for (size_t i = 0; i < DECLARATION_COUNT; i++) {
        const struct declaration *declaration = &DECLARATIONS[i];
        if (declaration->outer == outer && declaration->field_id == field->id) return declaration;
    }
    return NULL;
}

// The next file of the set, which `wire` walks.
static bool next_file(struct rpc_wire *wire, struct rpc_descriptors_file *file_out) {
    struct rpc_wire_field field;
    while (rpc_wire_next(wire, &field)) {
        if (field.id != SET_FILE || field.type != RPC_WIRE_BYTES) continue;
        *file_out = (struct rpc_descriptors_file){field.data, field.size_bytes};
        return true;
    }
    return false;
}

static struct rpc_wire wire_of(const struct rpc_descriptors *descriptors) {
    return rpc_wire_of(descriptors->set, descriptors->set_bytes);
}

static struct rpc_wire inside_file(const struct rpc_descriptors_file *file) {
    return rpc_wire_of(file->data, file->size_bytes);
}

size_t rpc_descriptors_file_count(const struct rpc_descriptors *descriptors) {
    struct rpc_wire wire = wire_of(descriptors);
    struct rpc_descriptors_file file;
    size_t count = 0;
    while (next_file(&wire, &file))
        count++;
    return count;
}

static bool find_file(const struct rpc_descriptors *descriptors, const char *name,
                      size_t name_bytes, struct rpc_descriptors_file *file_out) {
    struct rpc_wire wire = wire_of(descriptors);
    struct rpc_descriptors_file file;
    while (next_file(&wire, &file)) {
        struct rpc_wire_field own = rpc_wire_first(inside_file(&file), NAME);
        if (own.size_bytes != name_bytes || name_bytes == 0) continue;
        if (memcmp(own.data, name, name_bytes) != 0) continue;
        *file_out = file;
        return true;
    }
    return false;
}

bool rpc_descriptors_find_file(const struct rpc_descriptors *descriptors, const char *name,
                               struct rpc_descriptors_file *file_out) {
    return find_file(descriptors, name, strlen(name), file_out);
}

// -- symbols -------------------------------------------------------------------------------------

// The part of `name` after "text.", or "" when it is the text itself; NULL when it does not begin
// with it.
static const char *after(const char *name, const struct rpc_wire_field *text) {
    if (text->size_bytes == 0 || strncmp(name, (const char *)text->data, text->size_bytes) != 0)
        return NULL;
    const char *rest = name + text->size_bytes;
    if (*rest == '\0') return rest;
    return *rest == '.' ? rest + 1 : NULL;
}

// What declares `name`, which is relative to this scope; NULL when nothing does. As deep as the
// descriptors are nested.
static const struct declaration *find_in(struct rpc_wire wire, enum scope outer, const char *name) {
    struct rpc_wire_field field;
    while (rpc_wire_next(&wire, &field)) {
        const struct declaration *declaration = declaration_of(outer, &field);
        if (declaration == NULL) continue;
        struct rpc_wire_field own = rpc_wire_first(rpc_wire_inside(&field), NAME);
        const char *rest = after(name, &own);
        if (rest != NULL && *rest == '\0' && name[own.size_bytes] == '\0') return declaration;
        const struct declaration *found = NULL;
        if (declaration->inner == SCOPE_ENUM)
            found = find_in(rpc_wire_inside(&field), SCOPE_ENUM, name);
        else if (rest != NULL && declaration->inner != SCOPE_NONE)
            found = find_in(rpc_wire_inside(&field), declaration->inner, rest);
        if (found != NULL) return found;
    }
    return NULL;
}

static const struct declaration *find_symbol(const struct rpc_descriptors *descriptors,
                                             const char *name,
                                             struct rpc_descriptors_file *file_out) {
    struct rpc_wire wire = wire_of(descriptors);
    struct rpc_descriptors_file file;
    while (next_file(&wire, &file)) {
        struct rpc_wire_field package = rpc_wire_first(inside_file(&file), FILE_PACKAGE);
        const char *rest = name;
        if (package.size_bytes > 0) {
            rest = after(name, &package);
            if (rest == NULL) continue; // of another package
        }
        const struct declaration *found = find_in(inside_file(&file), SCOPE_FILE, rest);
        if (found == NULL) continue;
        *file_out = file;
        return found;
    }
    return NULL;
}

bool rpc_descriptors_find_symbol(const struct rpc_descriptors *descriptors, const char *name,
                                 struct rpc_descriptors_file *file_out) {
    return find_symbol(descriptors, name, file_out) != NULL;
}

bool rpc_descriptors_has_message(const struct rpc_descriptors *descriptors, const char *name) {
    struct rpc_descriptors_file file;
    const struct declaration *found = find_symbol(descriptors, name, &file);
    return found != NULL && found->inner == SCOPE_MESSAGE;
}

// -- extensions ----------------------------------------------------------------------------------

// Takes one extension that was asked for; false: no more are wanted.
typedef bool take_extension_fn(void *ctx, int32_t number);

static int32_t number_of(struct rpc_wire extension) {
    struct rpc_wire_field field;
    uint64_t number = 0;
    while (rpc_wire_next(&extension, &field)) {
        if (field.id == EXTENSION_NUMBER && field.type == RPC_WIRE_VARINT) number = field.number;
    }
    return (int32_t)number;
}

// Whether the extension is of this message. protoc writes ".package.Message".
static bool extends(struct rpc_wire extension, const char *message) {
    struct rpc_wire_field extendee = rpc_wire_first(extension, EXTENSION_EXTENDEE);
    if (extendee.size_bytes == 0 || extendee.data[0] != '.') return false;
    extendee.data++;
    extendee.size_bytes--;
    return rpc_wire_text_is(&extendee, message);
}

// False: no more are wanted.
static bool walk_extensions(struct rpc_wire wire, enum scope outer, const char *message,
                            take_extension_fn *take, void *ctx) {
    struct rpc_wire_field field;
    while (rpc_wire_next(&wire, &field)) {
        const struct declaration *declaration = declaration_of(outer, &field);
        if (declaration == NULL) continue;
        struct rpc_wire inside = rpc_wire_inside(&field);
        if (declaration->inner == SCOPE_MESSAGE &&
            !walk_extensions(inside, SCOPE_MESSAGE, message, take, ctx))
            return false;
        if (declaration->is_extension && extends(inside, message) && !take(ctx, number_of(inside)))
            return false;
    }
    return true;
}

static bool is_other_number(void *ctx, int32_t number) {
    return number != *(const int32_t *)ctx;
}

bool rpc_descriptors_find_extension(const struct rpc_descriptors *descriptors, const char *message,
                                    int32_t number, struct rpc_descriptors_file *file_out) {
    struct rpc_wire wire = wire_of(descriptors);
    struct rpc_descriptors_file file;
    while (next_file(&wire, &file)) {
        if (walk_extensions(inside_file(&file), SCOPE_FILE, message, is_other_number, &number))
            continue;
        *file_out = file;
        return true;
    }
    return false;
}

struct numbers {
    int32_t *out;
    size_t capacity, count;
};

static bool keep_number(void *ctx, int32_t number) {
    struct numbers *numbers = ctx;
    if (numbers->count < numbers->capacity) numbers->out[numbers->count] = number;
    numbers->count++;
    return true;
}

size_t rpc_descriptors_extensions(const struct rpc_descriptors *descriptors, const char *message,
                                  int32_t *numbers_out, size_t capacity) {
    struct numbers numbers = {.out = numbers_out, .capacity = capacity};
    struct rpc_wire wire = wire_of(descriptors);
    struct rpc_descriptors_file file;
    while (next_file(&wire, &file)) {
        bool goes_on =
            walk_extensions(inside_file(&file), SCOPE_FILE, message, keep_number, &numbers);
        (void)goes_on; // it takes all
    }
    return numbers.count;
}

// -- imports -------------------------------------------------------------------------------------

static bool is_among(const struct rpc_descriptors_file *files, size_t count,
                     const struct rpc_descriptors_file *file) {
    for (size_t i = 0; i < count; i++)
        if (files[i].data == file->data) return true;
    return false;
}

size_t rpc_descriptors_with_imports(const struct rpc_descriptors *descriptors,
                                    const struct rpc_descriptors_file *file,
                                    struct rpc_descriptors_file *files_out) {
    size_t count = 0;
    files_out[count++] = *file;
    for (size_t i = 0; i < count; i++) { // grows as imports of imports are found
        struct rpc_wire wire = inside_file(&files_out[i]);
        struct rpc_wire_field field;
        while (rpc_wire_next(&wire, &field)) {
            struct rpc_descriptors_file import;
            if (field.id != FILE_DEPENDENCY || field.type != RPC_WIRE_BYTES) continue;
            if (!find_file(descriptors, (const char *)field.data, field.size_bytes, &import))
                continue; // --include_imports leaves none out
            if (!is_among(files_out, count, &import)) files_out[count++] = import;
        }
    }
    return count;
}
