#include "proto/descriptors.h"

__asm__(".section .rodata\n"
        ".global descriptors_begin\n"
        ".global descriptors_end\n"
        ".balign 16\n"
        "descriptors_begin:\n"
        ".incbin \"" DESCRIPTORS_PATH "\"\n"
        "descriptors_end:\n"
        ".byte 0\n"
        ".previous\n");
