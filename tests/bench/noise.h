// noise: how much of the machine's processor time went to others, in this machine or (steal)
// outside of it: figures that were taken meanwhile mean little.
#pragma once

struct noise {
    double busy_seconds, idle_seconds; // of all processors since the machine's start
    double own_seconds;                // of this process
};

struct noise noise_now(void);
// The share of all processor time between two moments that others used, 0 to 1; to about 10 ms.
// 0 where the system does not say.
double noise_share(const struct noise *before, const struct noise *after);
