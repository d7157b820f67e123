#include "proto/model_config.h"

#include <assert.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/memory.h"

// Fields are read one after another into one struct; the first mistake is kept and later ones are
// not reported, so the status is looked at once, at the end.
struct reader {
    enum status status;
    struct error *error;
};

PRINTF_LIKE(3, 4)
static void refuse(struct reader *reader, enum status status, const char *format, ...) {
    if (reader->status != STATUS_OK) return;
    reader->status = status;
    if (reader->error == NULL) return;
    va_list args;
    va_start(args, format);
    vsnprintf(reader->error->text, sizeof(reader->error->text), format, args);
    va_end(args);
}

// -- fields of an object --------------------------------------------------------------------------

// Where a field is: an object, and its name for sentences ("" or "rope_scaling.").
struct place {
    const json_t *object;
    const char *prefix;
};

// NULL when the field is absent or null, which mean the same in a Hugging Face configuration.
static const json_t *field(const struct place *place, const char *key) {
    const json_t *value = json_object_get(place->object, key);
    return json_is_null(value) ? NULL : value;
}

static const char *json_type_name(const json_t *value) {
    static const char *const names[] = {
        [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "a list",  [JSON_STRING] = "a string",
        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a number", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",        [JSON_NULL] = "null",
    };
    return value == NULL ? "missing" : names[json_typeof(value)];
}

static bool is_whole(struct reader *reader, const json_t *value, const char *prefix,
                     const char *key, uint32_t minimum, uint32_t maximum) {
    if (!json_is_integer(value)) {
        refuse(reader, STATUS_INVALID, "%s%s must be an integer, it is %s", prefix, key,
               json_type_name(value));
        return false;
    }
    json_int_t whole = json_integer_value(value);
    if (whole < minimum || whole > maximum) {
        refuse(reader, STATUS_INVALID,
               "%s%s is %" JSON_INTEGER_FORMAT ", not between %" PRIu32 " and %" PRIu32, prefix,
               key, whole, minimum, maximum);
        return false;
    }
    return true;
}

// A required count between 1 and maximum.
static uint32_t read_count(struct reader *reader, const struct place *place, const char *key,
                           uint32_t maximum) {
    const json_t *value = field(place, key);
    if (!is_whole(reader, value, place->prefix, key, 1, maximum)) return 1;
    return (uint32_t)json_integer_value(value);
}

static uint32_t read_count_or(struct reader *reader, const struct place *place, const char *key,
                              uint32_t maximum, uint32_t fallback) {
    return field(place, key) == NULL ? fallback : read_count(reader, place, key, maximum);
}

// Between minimum and maximum; an integer is a number too. NaN and infinities are not JSON.
static double read_number(struct reader *reader, const struct place *place, const char *key,
                          double minimum, double maximum) {
    const json_t *value = field(place, key);
    if (!json_is_number(value)) {
        refuse(reader, STATUS_INVALID, "%s%s must be a number, it is %s", place->prefix, key,
               json_type_name(value));
        return minimum;
    }
    double number = json_number_value(value);
    if (!(number >= minimum && number <= maximum)) {
        refuse(reader, STATUS_INVALID, "%s%s is %g, not between %g and %g", place->prefix, key,
               number, minimum, maximum);
        return minimum;
    }
    return number;
}

static double read_number_or(struct reader *reader, const struct place *place, const char *key,
                             double minimum, double maximum, double fallback) {
    if (field(place, key) == NULL) return fallback;
    return read_number(reader, place, key, minimum, maximum);
}

static bool read_flag(struct reader *reader, const struct place *place, const char *key) {
    const json_t *value = field(place, key);
    if (value != NULL && !json_is_boolean(value))
        refuse(reader, STATUS_INVALID, "%s%s must be true or false, it is %s", place->prefix, key,
               json_type_name(value));
    return json_is_true(value);
}

// Control characters are refused, so that texts can be named in sentences and logs.
static bool is_printable(const char *text) {
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) return false;
    return true;
}

static const char *as_text(struct reader *reader, const json_t *value, const char *prefix,
                           const char *key) {
    if (!json_is_string(value)) {
        refuse(reader, STATUS_INVALID, "%s%s must be a string, it is %s", prefix, key,
               json_type_name(value));
        return "";
    }
    const char *text = json_string_value(value);
    if (!is_printable(text)) {
        refuse(reader, STATUS_INVALID, "%s%s has control characters", prefix, key);
        return "";
    }
    return text;
}

static const char *read_text_or(struct reader *reader, const struct place *place, const char *key,
                                const char *fallback) {
    const json_t *value = field(place, key);
    return value == NULL ? fallback : as_text(reader, value, place->prefix, key);
}

// -- parts of config.json -------------------------------------------------------------------------

static bool is_mistral(const struct model_config *config) {
    return strcmp(config->architecture, "MistralForCausalLM") == 0;
}

static void read_architecture(struct reader *reader, const struct place *root,
                              struct model_config *config) {
    const json_t *list = field(root, "architectures");
    if (!json_is_array(list) || json_array_size(list) != 1) {
        refuse(reader, STATUS_INVALID, "architectures must be a list of one name, it is %s",
               json_is_array(list) ? "a list of another length" : json_type_name(list));
        return;
    }
    const char *name = as_text(reader, json_array_get(list, 0), "", "architectures[0]");
    if (reader->status != STATUS_OK) return;
    if (strcmp(name, "LlamaForCausalLM") != 0 && strcmp(name, "MistralForCausalLM") != 0) {
        refuse(reader, STATUS_UNSUPPORTED,
               "architecture '%.64s' is not supported; LlamaForCausalLM and MistralForCausalLM are",
               name);
        return;
    }
    snprintf(config->architecture, sizeof(config->architecture), "%s", name);
}

static void read_shape(struct reader *reader, const struct place *root,
                       struct model_config *config) {
    config->layer_count = read_count(reader, root, "num_hidden_layers", MODEL_LAYER_COUNT_MAX);
    config->hidden_size = read_count(reader, root, "hidden_size", MODEL_HIDDEN_SIZE_MAX);
    config->head_count = read_count(reader, root, "num_attention_heads", MODEL_HEAD_COUNT_MAX);
    // MistralConfig has another default than LlamaConfig (8): there it must be said.
    config->kv_head_count =
        is_mistral(config) ? read_count(reader, root, "num_key_value_heads", MODEL_HEAD_COUNT_MAX)
                           : read_count_or(reader, root, "num_key_value_heads",
                                           MODEL_HEAD_COUNT_MAX, config->head_count);
    config->ffn_size = read_count(reader, root, "intermediate_size", MODEL_FFN_SIZE_MAX);
    config->vocabulary_size = read_count(reader, root, "vocab_size", MODEL_VOCABULARY_SIZE_MAX);
    config->position_count_max =
        read_count(reader, root, "max_position_embeddings", MODEL_POSITION_COUNT_MAX);
    config->head_size = read_count_or(reader, root, "head_dim", MODEL_HEAD_SIZE_MAX, 0);
}

static void check_heads(struct reader *reader, struct model_config *config) {
    if (config->head_count % config->kv_head_count != 0)
        refuse(reader, STATUS_INVALID,
               "num_key_value_heads is %" PRIu32
               ", which does not divide num_attention_heads %" PRIu32,
               config->kv_head_count, config->head_count);
    if (config->head_size == 0) {
        if (config->hidden_size % config->head_count != 0)
            refuse(reader, STATUS_INVALID,
                   "num_attention_heads is %" PRIu32 ", which does not divide hidden_size %" PRIu32
                   ", and head_dim is missing",
                   config->head_count, config->hidden_size);
        config->head_size = config->hidden_size / config->head_count;
    }
    if (config->head_size % 2 != 0 || config->head_size == 0)
        refuse(reader, STATUS_INVALID,
               "the head size (head_dim, or hidden_size / num_attention_heads) is %" PRIu32
               ", it must be even",
               config->head_size);
    if (config->head_size > MODEL_HEAD_SIZE_MAX)
        refuse(reader, STATUS_INVALID,
               "hidden_size / num_attention_heads is %" PRIu32 ", larger than %d",
               config->head_size, MODEL_HEAD_SIZE_MAX);
}

// What changes the computation in a way that we do not follow.
static void refuse_features(struct reader *reader, const struct place *root,
                            const struct model_config *config) {
    const char *activation = read_text_or(reader, root, "hidden_act", "silu");
    if (strcmp(activation, "silu") != 0)
        refuse(reader, STATUS_UNSUPPORTED, "hidden_act '%.64s' is not supported; silu is",
               activation);
    if (field(root, "quantization_config") != NULL || field(root, "compression_config") != NULL)
        refuse(reader, STATUS_UNSUPPORTED, "quantized checkpoints (%s) are not supported",
               field(root, "quantization_config") ? "quantization_config" : "compression_config");
    if (!is_mistral(config)) return;
    if (config->attention_bias || config->mlp_bias)
        refuse(reader, STATUS_UNSUPPORTED, "MistralForCausalLM with %s is not supported",
               config->attention_bias ? "attention_bias" : "mlp_bias");
    if (json_is_null(json_object_get(root->object, "sliding_window"))) return;
    // A window as long as the context never cuts anything off. 4096 is MistralConfig's default.
    uint32_t window = read_count_or(reader, root, "sliding_window", INT32_MAX, 4096);
    if (window < config->position_count_max)
        refuse(reader, STATUS_UNSUPPORTED,
               "sliding_window %" PRIu32 " is shorter than max_position_embeddings %" PRIu32
               ": sliding windows are not supported",
               window, config->position_count_max);
}

static enum dtype read_dtype(struct reader *reader, const struct place *root) {
    const char *key = field(root, "dtype") != NULL ? "dtype" : "torch_dtype";
    const char *name = read_text_or(reader, root, key, "");
    if (name[0] == '\0') return DTYPE_NONE;
    if (strcmp(name, "float32") == 0) return DTYPE_F32;
    if (strcmp(name, "bfloat16") == 0) return DTYPE_BF16;
    if (strcmp(name, "float16") == 0) return DTYPE_F16;
    refuse(reader, STATUS_UNSUPPORTED,
           "%s '%.64s' is not supported; float32, bfloat16 and float16 are", key, name);
    return DTYPE_NONE;
}

// -- RoPE -----------------------------------------------------------------------------------------

static const double ROPE_THETA_MAX = 1e15;
static const double ROPE_FACTOR_MAX = 1e6;

// A rotation of only part of each head is another computation.
static void refuse_partial_rotation(struct reader *reader, const struct place *place) {
    if (read_number_or(reader, place, "partial_rotary_factor", 0, 1, 1) < 1)
        refuse(reader, STATUS_UNSUPPORTED, "%spartial_rotary_factor below 1 is not supported",
               place->prefix);
}

// From `rope_parameters` or from `rope_scaling`. theta: what applies unless the object has its own.
static struct rope_config read_rope_object(struct reader *reader, const struct place *place,
                                           double theta) {
    struct rope_config rope = {.kind = ROPE_DEFAULT, .factor = 1};
    rope.theta = read_number_or(reader, place, "rope_theta", 1, ROPE_THETA_MAX, theta);
    refuse_partial_rotation(reader, place);
    const char *older = read_text_or(reader, place, "type", "");
    const char *kind = read_text_or(reader, place, "rope_type", older);
    if (kind[0] == '\0' && field(place, "factor") == NULL) kind = "default";
    if (strcmp(kind, "default") == 0) return rope;
    if (strcmp(kind, "linear") != 0 && strcmp(kind, "llama3") != 0) {
        refuse(reader, STATUS_UNSUPPORTED,
               "%srope_type '%.64s' is not supported; default, linear and llama3 are",
               place->prefix, kind);
        return rope;
    }
    rope.factor = read_number(reader, place, "factor", 1, ROPE_FACTOR_MAX);
    rope.kind = ROPE_LINEAR;
    if (strcmp(kind, "linear") == 0) return rope;
    rope.kind = ROPE_LLAMA3;
    rope.low_freq_factor = read_number(reader, place, "low_freq_factor", 1e-6, ROPE_FACTOR_MAX);
    rope.high_freq_factor = read_number(reader, place, "high_freq_factor", 1e-6, ROPE_FACTOR_MAX);
    rope.original_position_count =
        read_count(reader, place, "original_max_position_embeddings", MODEL_POSITION_COUNT_MAX);
    if (!(rope.high_freq_factor > rope.low_freq_factor))
        refuse(reader, STATUS_INVALID,
               "%shigh_freq_factor is %g, it must be larger than low_freq_factor %g", place->prefix,
               rope.high_freq_factor, rope.low_freq_factor);
    return rope;
}

static bool rope_equals(const struct rope_config *a, const struct rope_config *b) {
    return a->kind == b->kind && a->theta == b->theta && a->factor == b->factor &&
           a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor &&
           a->original_position_count == b->original_position_count;
}

// Both generations of names may be present, if they say the same.
static struct rope_config read_rope(struct reader *reader, const struct place *root) {
    static const char *const keys[] = {"rope_parameters", "rope_scaling"};
    static const char *const prefixes[] = {"rope_parameters.", "rope_scaling."};
    refuse_partial_rotation(reader, root);
    double theta = read_number_or(reader, root, "rope_theta", 1, ROPE_THETA_MAX, 10000);
    struct rope_config rope = {.kind = ROPE_DEFAULT, .theta = theta, .factor = 1};
    bool found = false;
    for (size_t i = 0; i < 2; i++) {
        struct place place = {field(root, keys[i]), prefixes[i]};
        if (place.object == NULL) continue;
        if (!json_is_object(place.object)) {
            refuse(reader, STATUS_INVALID, "%s must be an object, it is %s", keys[i],
                   json_type_name(place.object));
            continue;
        }
        // The older object never has its own theta: there the newer one's holds for both.
        struct rope_config read = read_rope_object(reader, &place, found ? rope.theta : theta);
        if (found && !rope_equals(&read, &rope))
            refuse(reader, STATUS_INVALID, "rope_parameters and rope_scaling disagree");
        if (!found) rope = read;
        found = true;
    }
    return rope;
}

// -- end of sequence ------------------------------------------------------------------------------

// An integer, a list of them, or absent: then config keeps what it has.
static void read_eos(struct reader *reader, const struct place *root, struct model_config *config) {
    const json_t *value = field(root, "eos_token_id");
    if (value == NULL) return;
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    if (count > MODEL_EOS_COUNT_MAX) {
        refuse(reader, STATUS_INVALID, "eos_token_id has %zu entries, the limit is %d", count,
               MODEL_EOS_COUNT_MAX);
        return;
    }
    uint32_t ids[MODEL_EOS_COUNT_MAX] = {0};
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!is_whole(reader, id, "", "eos_token_id", 0, config->vocabulary_size - 1)) return;
        ids[i] = (uint32_t)json_integer_value(id);
    }
    memcpy(config->eos_ids, ids, sizeof(ids));
    config->eos_count = (uint32_t)count;
}

// -- whole files ----------------------------------------------------------------------------------

// http://www.isthe.com/chongo/tech/comp/fnv/
static uint64_t fnv1a_64(const char *data, size_t size_bytes) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size_bytes; i++)
        hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3u;
    return hash;
}

static enum status load_object(const char *text, size_t size_bytes, json_t **root_out,
                               struct error *error) {
    if (size_bytes > MODEL_CONFIG_BYTES_MAX)
        return error_set(error, STATUS_INVALID, "%zu bytes, the limit is %d", size_bytes,
                         MODEL_CONFIG_BYTES_MAX);
    json_error_t json_error = {.line = -1};
    json_t *root = json_loadb(text, size_bytes, JSON_REJECT_DUPLICATES, &json_error);
    if (root == NULL) {
        // jansson leaves the sentence empty when an allocation failed.
        if (json_error.text[0] == '\0' || json_error_code(&json_error) == json_error_out_of_memory)
            return error_set(error, STATUS_NO_MEMORY, "no memory for %zu bytes of JSON",
                             size_bytes);
        return error_set(error, STATUS_INVALID, "line %d, column %d: %s", json_error.line,
                         json_error.column, json_error.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return error_set(error, STATUS_INVALID, "must be a JSON object");
    }
    *root_out = root;
    return STATUS_OK;
}

enum status model_config_parse(const char *text, size_t size_bytes, struct model_config *config_out,
                               struct error *error) {
    json_t *object = NULL;
    enum status status = load_object(text, size_bytes, &object, error);
    if (status != STATUS_OK) return status;
    struct reader reader = {STATUS_OK, error};
    struct place root = {object, ""};
    struct model_config config = {.digest = fnv1a_64(text, size_bytes)};
    read_architecture(&reader, &root, &config);
    read_shape(&reader, &root, &config);
    check_heads(&reader, &config);
    config.rms_norm_epsilon = read_number_or(&reader, &root, "rms_norm_eps", 1e-30, 1, 1e-6);
    config.tied_embeddings = read_flag(&reader, &root, "tie_word_embeddings");
    config.attention_bias = read_flag(&reader, &root, "attention_bias");
    config.mlp_bias = read_flag(&reader, &root, "mlp_bias");
    refuse_features(&reader, &root, &config);
    config.rope = read_rope(&reader, &root);
    config.dtype = read_dtype(&reader, &root);
    read_eos(&reader, &root, &config);
    json_decref(object);
    if (reader.status == STATUS_OK) *config_out = config;
    return reader.status;
}

enum status model_config_apply_generation(struct model_config *config, const char *text,
                                          size_t size_bytes, struct error *error) {
    json_t *object = NULL;
    enum status status = load_object(text, size_bytes, &object, error);
    if (status != STATUS_OK) return status;
    struct reader reader = {STATUS_OK, error};
    struct place root = {object, ""};
    read_eos(&reader, &root, config);
    json_decref(object);
    return reader.status;
}

// Reads DIR/NAME; path_out is for sentences. A file beyond the limit is wrong input here, not a
// full resource.
static enum status read_text(const char *directory, const char *name, char path_out[PATH_MAX],
                             char **text_out, size_t *size_bytes_out, struct error *error) {
    int length = snprintf(path_out, PATH_MAX, "%s/%s", directory, name);
    if (length < 0 || length >= PATH_MAX)
        return error_set(error, STATUS_INVALID, "the model directory's path is too long");
    enum status status =
        file_read(path_out, MODEL_CONFIG_BYTES_MAX, text_out, size_bytes_out, error);
    return status == STATUS_EXHAUSTED ? STATUS_INVALID : status;
}

enum status model_config_read(const char *directory, struct model_config *config_out,
                              struct error *error) {
    char path[PATH_MAX];
    char *text = NULL;
    size_t size_bytes = 0;
    struct model_config config;
    enum status status = read_text(directory, "config.json", path, &text, &size_bytes, error);
    if (status != STATUS_OK) return status;
    status = model_config_parse(text, size_bytes, &config, error);
    free(text);
    text = NULL;
    if (status != STATUS_OK) goto prefix;
    struct error absent;
    status = read_text(directory, "generation_config.json", path, &text, &size_bytes, &absent);
    if (status == STATUS_OK) {
        status = model_config_apply_generation(&config, text, size_bytes, error);
        free(text);
        if (status != STATUS_OK) goto prefix;
    } else if (status != STATUS_NOT_FOUND) {
        return error_set(error, status, "%s", absent.text);
    }
    *config_out = config;
    return STATUS_OK;
prefix:
    error_prefix(error, "%s", path);
    return status;
}

// -- counts ---------------------------------------------------------------------------------------

// All products fit: limits.h bounds every factor.
static_assert((uint64_t)MODEL_HEAD_COUNT_MAX * MODEL_HEAD_SIZE_MAX <= 1 << 20, "query width");

uint64_t model_layer_parameter_count(const struct model_config *config) {
    uint64_t hidden = config->hidden_size, ffn = config->ffn_size;
    uint64_t query = (uint64_t)config->head_count * config->head_size;
    uint64_t kv = model_kv_element_count(config); // keys and values together
    uint64_t count = 2 * hidden + hidden * (query + kv) + query * hidden + 3 * hidden * ffn;
    if (config->attention_bias) count += query + kv + hidden;
    if (config->mlp_bias) count += 2 * ffn + hidden;
    return count;
}

uint64_t model_embedding_parameter_count(const struct model_config *config) {
    return (uint64_t)config->vocabulary_size * config->hidden_size;
}

uint64_t model_kv_element_count(const struct model_config *config) {
    return 2 * (uint64_t)config->kv_head_count * config->head_size;
}
