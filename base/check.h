// check: invariants of our own code. A failed CHECK is our bug, never bad input; it aborts, also in
// release builds.
#pragma once

#define CHECK(condition)                                                                           \
    (__builtin_expect(!!(condition), 1) ? (void)0 : check_failed(#condition, __FILE__, __LINE__))

__attribute__((noreturn, cold)) void check_failed(const char *condition, const char *file,
                                                  int line);
