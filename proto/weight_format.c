#include "proto/weight_format.h"

#include <string.h>

static const char *const load_names[LOAD_FORMAT_COUNT] = {
    [LOAD_FORMAT_SAFETENSORS] = "safetensors",
    [LOAD_FORMAT_DUMMY] = "dummy",
};
static const char *const weight_names[WEIGHT_FORMAT_COUNT] = {
    [WEIGHT_FORMAT_CHECKPOINT] = "checkpoint",
    [WEIGHT_FORMAT_INT8] = "int8",
    [WEIGHT_FORMAT_INT8_WEIGHT_ONLY] = "int8-weight-only",
};

static const char *name_of(const char *const *names, unsigned count, unsigned value) {
    return value < count ? names[value] : "none";
}

static bool parse(const char *const *names, unsigned count, const char *text, unsigned *value_out) {
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *value_out = i;
        return true;
    }
    return false;
}

const char *load_format_name(enum load_format format) {
    return name_of(load_names, LOAD_FORMAT_COUNT, (unsigned)format);
}

bool load_format_parse(const char *text, enum load_format *format_out) {
    unsigned value;
    if (!parse(load_names, LOAD_FORMAT_COUNT, text, &value)) return false;
    *format_out = (enum load_format)value;
    return true;
}

const char *weight_format_name(enum weight_format format) {
    return name_of(weight_names, WEIGHT_FORMAT_COUNT, (unsigned)format);
}

bool weight_format_parse(const char *text, enum weight_format *format_out) {
    unsigned value;
    if (!parse(weight_names, WEIGHT_FORMAT_COUNT, text, &value)) return false;
    *format_out = (enum weight_format)value;
    return true;
}
