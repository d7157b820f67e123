#include "base/wake.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum status wake_init(struct wake *wake) {
    wake->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return wake->fd < 0 ? STATUS_IO : STATUS_OK;
}

void wake_fini(struct wake *wake) {
    close(wake->fd);
    wake->fd = -1;
}

void wake_signal(struct wake *wake) {
    uint64_t one = 1;
    // Fails only when 2^64-2 signals are pending, and then the sleeper wakes anyway.
    ssize_t ignored = write(wake->fd, &one, sizeof(one));
    (void)ignored;
}

void wake_clear(struct wake *wake) {
    uint64_t count;
    ssize_t ignored = read(wake->fd, &count, sizeof(count));
    (void)ignored;
}

void wake_wait(struct wake *wake, int timeout_ms) {
    struct pollfd pollfd = {.fd = wake->fd, .events = POLLIN};
    poll(&pollfd, 1, timeout_ms);
    wake_clear(wake);
}

bool wake_is_pending(const struct wake *wake) {
    struct pollfd pollfd = {.fd = wake->fd, .events = POLLIN};
    return poll(&pollfd, 1, 0) == 1;
}
