// capture: what a function writes to standard output or standard error, as text.
#pragma once

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct capture {
    int target_fd, saved_fd, file_fd;
};

static inline struct capture capture_begin(int target_fd) {
    fflush(NULL);
    struct capture capture = {.target_fd = target_fd};
    capture.saved_fd = dup(target_fd);
    capture.file_fd = memfd_create("capture", MFD_CLOEXEC);
    assert_true(capture.saved_fd >= 0 && capture.file_fd >= 0);
    assert_int_equal(dup2(capture.file_fd, target_fd), target_fd);
    return capture;
}

// Puts the descriptor back; text_out is cut at its capacity.
static inline void capture_end(struct capture *capture, char *text_out, size_t capacity_bytes) {
    fflush(NULL);
    assert_int_equal(dup2(capture->saved_fd, capture->target_fd), capture->target_fd);
    close(capture->saved_fd);
    ssize_t size = pread(capture->file_fd, text_out, capacity_bytes - 1, 0);
    assert_true(size >= 0);
    text_out[size] = '\0';
    close(capture->file_fd);
}
