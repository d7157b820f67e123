// Any bytes as the header of a safetensors file: tensors that tile the file, or a sentence. The
// first two bytes are how many bytes of tensors follow the header.
#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "stage/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes);

static void check_tensors(const struct safetensors *safetensors, uint64_t data_begin,
                          uint64_t file_bytes) {
    uint64_t total_bytes = 0;
    for (uint32_t i = 0; i < safetensors->tensor_count; i++) {
        const struct safetensors_tensor *tensor = &safetensors->tensors[i];
        CHECK(tensor->file_offset >= data_begin && tensor->file_offset <= file_bytes);
        CHECK(tensor->size_bytes <= file_bytes - tensor->file_offset);
        CHECK(safetensors_find(safetensors, tensor->name) == tensor);
        CHECK(tensor->dimension_count <= SAFETENSORS_DIMENSION_COUNT_MAX);
        uint64_t bytes = dtype_size_bytes(tensor->dtype);
        for (uint32_t j = 0; j < tensor->dimension_count; j++)
            bytes *= tensor->dimensions[j];
        CHECK(tensor->dtype == DTYPE_NONE || bytes == tensor->size_bytes);
        char shape[8];
        safetensors_shape_write(tensor->dimension_count, tensor->dimensions, shape, sizeof(shape));
        total_bytes += tensor->size_bytes;
    }
    CHECK(total_bytes == file_bytes - data_begin);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes) {
    uint64_t header_bytes;
    if (size_bytes >= SAFETENSORS_PREFIX_BYTES &&
        safetensors_header_bytes(data, size_bytes, &header_bytes, NULL) == STATUS_OK)
        CHECK(header_bytes <= size_bytes - SAFETENSORS_PREFIX_BYTES);
    if (size_bytes < 2) return 0;
    uint64_t data_begin = SAFETENSORS_PREFIX_BYTES + size_bytes - 2;
    uint64_t file_bytes = data_begin + ((uint64_t)data[0] << 8 | data[1]);
    struct safetensors *safetensors = NULL;
    struct error error = {.text = ""};
    enum status status =
        safetensors_parse((const char *)data + 2, size_bytes - 2, file_bytes, &safetensors, &error);
    CHECK((status == STATUS_OK) == (error.text[0] == '\0'));
    CHECK((status == STATUS_OK) == (safetensors != NULL));
    if (status == STATUS_OK) check_tensors(safetensors, data_begin, file_bytes);
    safetensors_close(safetensors);
    return 0;
}
