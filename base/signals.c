#include "base/signals.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

static struct wake *stop_wake;
static volatile sig_atomic_t stop_asked;

static void on_stop(int signal_number) {
    (void)signal_number;
    int saved_errno = errno;
    if (stop_asked < 2) stop_asked++;
    wake_signal(stop_wake);
    errno = saved_errno;
}

void signals_block(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

enum status signals_listen(struct wake *wake) {
    stop_wake = wake;
    struct sigaction action = {.sa_handler = on_stop};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGTERM, &action, NULL) != 0 || sigaction(SIGINT, &action, NULL) != 0)
        return STATUS_IO;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    return pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0 ? STATUS_OK : STATUS_IO;
}

bool signals_stop_asked(void) {
    return stop_asked != 0;
}

bool signals_stop_now_asked(void) {
    return stop_asked > 1;
}
