#include "stage/cpu/logits.h"

#include "stage/cpu/kernels.h"

static const struct {
    const struct kernels *kernels; // of the same instruction set
    const struct logits_passes *passes;
} all_passes[] = {
#if STAGE_X86_KERNELS
    {&kernels_avx512, &logits_passes_avx512},
    {&kernels_avx2, &logits_passes_avx2},
#endif
    {&kernels_portable, &logits_passes_portable},
};
enum { PASSES_COUNT = sizeof(all_passes) / sizeof(all_passes[0]) };

const struct logits_passes *const *logits_passes_supported(void) {
    // Each thread's own, so that threads need not agree on who fills it.
    static _Thread_local const struct logits_passes *supported[PASSES_COUNT + 1];
    size_t count = 0;
    for (size_t i = 0; i < PASSES_COUNT; i++) {
        if (all_passes[i].kernels->is_supported()) supported[count++] = all_passes[i].passes;
    }
    supported[count] = NULL;
    return supported;
}
