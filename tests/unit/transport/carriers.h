// carriers: the ways that frames go in a test. Its state is one of these.
#pragma once

#include <stdbool.h>
#include <stdlib.h>

#include <cmocka.h>

enum carrier {
    CARRIER_LOCAL, // ports of one process, link_local
    CARRIER_UCX,   // link_ucx, by shared memory
    CARRIER_TCP,   // link_ucx where UCX finds no way, as between machines
};

static const enum carrier carriers[] = {CARRIER_LOCAL, CARRIER_UCX, CARRIER_TCP};

// Ports opened from now on have shared memory, or none.
static inline void carrier_use(enum carrier carrier) {
    if (carrier == CARRIER_TCP)
        (void)setenv("UCX_SHM_DEVICES", "none", 1);
    else
        (void)unsetenv("UCX_SHM_DEVICES");
}

static inline bool is_ucx(void **state) {
    enum carrier carrier = *(const enum carrier *)*state;
    carrier_use(carrier);
    return carrier != CARRIER_LOCAL;
}

#define OVER(name, carrier, test)                                                                  \
    { name "_" #test, test, NULL, NULL, (void *)&carriers[carrier] }
#define OVER_ALL(test)                                                                             \
    OVER("local", CARRIER_LOCAL, test), OVER("ucx", CARRIER_UCX, test),                            \
        OVER("tcp", CARRIER_TCP, test)
