// weight_format: where a stage's weights come from and how it keeps them. Chosen by the coordinator
// and carried in Assignment.
#pragma once

#include <stdbool.h>

#include "base/status.h"

// Where weights come from. The values cross the wire: never renumber.
enum load_format {
    LOAD_FORMAT_SAFETENSORS = 0, // the files of the model's folder
    LOAD_FORMAT_DUMMY = 1,       // random values of the shapes in config.json; no files
};
enum { LOAD_FORMAT_COUNT = 2 };

// How matrices are kept and multiplied. The values cross the wire: never renumber.
enum weight_format {
    WEIGHT_FORMAT_CHECKPOINT = 0,       // as the checkpoint stores them
    WEIGHT_FORMAT_INT8 = 1,             // weights and activations in 8 bits, products in integers
    WEIGHT_FORMAT_INT8_WEIGHT_ONLY = 2, // weights in 8 bits, activations as they are
};
enum { WEIGHT_FORMAT_COUNT = 3 };

// "safetensors", "dummy"; "none" for other values.
const char *load_format_name(enum load_format format);
// Accepts these names. False for anything else.
MUST_USE bool load_format_parse(const char *text, enum load_format *format_out);

// "checkpoint", "int8", "int8-weight-only"; "none" for other values.
const char *weight_format_name(enum weight_format format);
MUST_USE bool weight_format_parse(const char *text, enum weight_format *format_out);
