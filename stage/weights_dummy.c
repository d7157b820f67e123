#include <inttypes.h>
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/rng.h"
#include "stage/weights_internal.h"

enum { TENSOR_ALIGNMENT_BYTES = 64 };

static uint64_t align_up(uint64_t size_bytes, uint64_t unit_bytes) {
    return (size_bytes + unit_bytes - 1) & ~(unit_bytes - 1);
}

// -- random numbers -------------------------------------------------------------------------------

// A tensor's stream: Philox of a hash of its name.
static uint64_t stream_key(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u; // FNV-1a
    for (; *name != '\0'; name++)
        hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
    uint32_t words[4];
    rng_philox(hash, (const uint32_t[4]){0}, words);
    return (uint64_t)words[1] << 32 | words[0];
}

// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014)
// at any place of its stream; much faster than Philox, and good enough for noise.
static uint64_t draw(uint64_t key, uint64_t index) {
    uint64_t z = key + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// The sum of four random bytes is near enough to a normal distribution: mean 510, variance
// 4 * (256^2 - 1) / 12. So an element is one of 1021 values, looked up in its dtype.
enum { BYTE_SUM_MEAN = 510, BYTE_SUM_COUNT = 1021 };
#define BYTE_SUM_DEVIATION 147.79999

// Of the lower and of the upper 32 bits.
static uint64_t byte_sums(uint64_t bits) {
    const uint64_t odd_bytes = 0x00ff00ff00ff00ffu;
    uint64_t pairs = (bits & odd_bytes) + ((bits >> 8) & odd_bytes);
    return (pairs + (pairs >> 16)) & 0x0000ffff0000ffffu;
}

// One of the two is filled.
struct value_table {
    float floats[BYTE_SUM_COUNT];
    uint16_t halves[BYTE_SUM_COUNT]; // bf16 or f16
};

static void make_table(enum dtype dtype, double mean, double deviation, struct value_table *table) {
    float scale = (float)(deviation / BYTE_SUM_DEVIATION);
    for (int i = 0; i < BYTE_SUM_COUNT; i++) {
        float value = (float)mean + (float)(i - BYTE_SUM_MEAN) * scale;
        if (dtype == DTYPE_F32)
            table->floats[i] = value;
        else
            table->halves[i] = dtype == DTYPE_F16 ? f32_to_f16(value) : f32_to_bf16(value);
    }
}

// Elements first to first + count of the stream; first is even.
static void make_floats(const float *table, uint64_t key, uint64_t first, uint64_t count,
                        float *out) {
    uint64_t sums, i;
    for (i = 0; i + 1 < count; i += 2) {
        sums = byte_sums(draw(key, (first + i) / 2));
        out[i] = table[(uint32_t)sums];
        out[i + 1] = table[sums >> 32];
    }
    if (i < count) out[i] = table[(uint32_t)byte_sums(draw(key, (first + i) / 2))];
}

static void make_halves(const uint16_t *table, uint64_t key, uint64_t first, uint64_t count,
                        uint16_t *out) {
    uint64_t sums, i;
    for (i = 0; i + 1 < count; i += 2) {
        sums = byte_sums(draw(key, (first + i) / 2));
        out[i] = table[(uint32_t)sums];
        out[i + 1] = table[sums >> 32];
    }
    if (i < count) out[i] = table[(uint32_t)byte_sums(draw(key, (first + i) / 2))];
}

// -- tensors --------------------------------------------------------------------------------------

// A product of normal rows with a matrix of deviation 1 / sqrt(inputs) keeps their size. Two such
// products a layer add to the residual stream; shrunk so that all of them together have size 1.
static double deviation_of(const struct model_config *config, const struct wanted_tensor *wanted) {
    double matrix = 1 / sqrt(wanted->column_count);
    switch (wanted->role) {
    case TENSOR_NORM:
        return 0;
    case TENSOR_BIAS:
        return 0.02;
    case TENSOR_MATRIX:
        return matrix;
    case TENSOR_RESIDUAL:
        return matrix / sqrt(2.0 * config->layer_count);
    }
    return 0;
}

static enum status make_tensor(const struct weights_loader *loader,
                               const struct wanted_tensor *wanted, char *out) {
    size_t element_bytes = dtype_size_bytes(wanted->slot->dtype);
    uint64_t element_count = wanted->size_bytes / element_bytes;
    uint64_t step_count = WEIGHTS_READ_STEP_BYTES / element_bytes;
    uint64_t key = stream_key(wanted->name);
    struct value_table table;
    make_table(wanted->slot->dtype, wanted->role == TENSOR_NORM ? 1 : 0,
               deviation_of(loader->config, wanted), &table);
    for (uint64_t first = 0; first < element_count; first += step_count) {
        uint64_t left = element_count - first;
        uint64_t count = left < step_count ? left : step_count;
        char *piece = out + first * element_bytes;
        if (wanted->slot->dtype == DTYPE_F32)
            make_floats(table.floats, key, first, count, (float *)piece);
        else
            make_halves(table.halves, key, first, count, (uint16_t *)piece);
        if (left <= step_count) break; // the caller reports the end, with what pads it
        enum status status =
            weights_progressed(loader, wanted->offset_bytes + (first + count) * element_bytes);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

// -- memory ---------------------------------------------------------------------------------------

// Gives each tensor its place, and returns the size of all in whole pages.
static uint64_t place_all(struct weights_loader *loader) {
    enum dtype dtype = loader->config->dtype == DTYPE_NONE ? DTYPE_BF16 : loader->config->dtype;
    uint64_t offset_bytes = 0;
    for (uint32_t i = 0; i < loader->wanted_count; i++) {
        struct wanted_tensor *wanted = &loader->wanted[i];
        uint64_t row_count = wanted->row_count == 0 ? 1 : wanted->row_count;
        wanted->offset_bytes = offset_bytes;
        wanted->size_bytes = row_count * wanted->column_count * dtype_size_bytes(dtype);
        weights_fill_slot(loader, wanted, dtype);
        offset_bytes += align_up(wanted->size_bytes, TENSOR_ALIGNMENT_BYTES);
    }
    return align_up(offset_bytes, (uint64_t)sysconf(_SC_PAGESIZE));
}

static enum status map_memory(struct weights_loader *loader, uint64_t size_bytes) {
    struct weights_owner *owner = loader->owner;
    owner->mappings = memory_array(1, sizeof(owner->mappings[0]));
    void *address = MAP_FAILED;
    if (owner->mappings != NULL)
        address =
            mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED)
        return error_set(loader->error, STATUS_NO_MEMORY,
                         "no memory for %" PRIu64 " bytes of made-up weights", size_bytes);
    (void)madvise(address, size_bytes, MADV_HUGEPAGE); // only a hint
    owner->mappings[owner->mapping_count++] =
        (struct weights_mapping){.address = address, .size_bytes = size_bytes};
    owner->weights.mapped_bytes = size_bytes;
    return STATUS_OK;
}

enum status weights_make_up(struct weights_loader *loader) {
    uint64_t size_bytes = place_all(loader);
    if (size_bytes == 0) return weights_progressed(loader, 0); // nothing in the range
    enum status status = map_memory(loader, size_bytes);
    if (status == STATUS_OK) status = weights_progressed(loader, 0);
    for (uint32_t i = 0; i < loader->wanted_count && status == STATUS_OK; i++) {
        struct wanted_tensor *wanted = &loader->wanted[i];
        char *out = loader->owner->mappings[0].address + wanted->offset_bytes;
        wanted->slot->data = out;
        status = make_tensor(loader, wanted, out);
        bool is_last = i + 1 == loader->wanted_count;
        if (status == STATUS_OK)
            status = weights_progressed(loader,
                                        is_last ? size_bytes : loader->wanted[i + 1].offset_bytes);
    }
    return status;
}
