#include "descriptors.h"

__asm__(".section .rodata\n"
        ".global interop_descriptors_begin\n"
        ".global interop_descriptors_end\n"
        ".balign 16\n"
        "interop_descriptors_begin:\n"
        ".incbin \"" INTEROP_DESCRIPTORS_PATH "\"\n"
        "interop_descriptors_end:\n"
        ".byte 0\n"
        ".previous\n");
