// cores: how many threads a compute team has, and which processors they are pinned to.
//
// Without --cores threads are not pinned: a process cannot know what else runs on the machine, and
// two stages that both pinned themselves to the first processors would fight for them.
#pragma once

#include "base/status.h"
#include "stage/cpu/machine.h"

// Processor ids in the order of the threads.
struct core_list {
    uint32_t count;
    uint32_t ids[TEAM_THREAD_COUNT_MAX];
};

// What --cores says: a list, or a share of the machine ("2/4": the second of four), or nothing.
struct core_request {
    struct core_list list;              // count 0: no list
    uint32_t share_number, share_count; // 1 .. share_count; 0 and 0: no share
};

// What a team gets: pinned to cores.ids[thread] when cores.count is thread_count, not when it is 0.
struct core_plan {
    uint32_t thread_count;
    struct core_list cores;
};

// Reads "0-3,8" or "2/4". STATUS_INVALID: the sentence says what is wrong with the text, and lacks
// the option's name and the text.
MUST_USE enum status core_request_parse(const char *text, struct core_request *request_out,
                                        struct error *error);

// Decides for this machine. `root` as in machine.h; thread_count 0: the default.
//   nothing asked for: a thread for each physical core of `allowed`, but not more than the CPU
//     quota, rounded to the nearest whole number, pays for; not pinned.
//   a list: pinned, a thread for each of its processors, or for the first thread_count of them.
//   a share: pinned to an equal part of the physical cores. Where there are fewer than shares, or
//     than threads in the part, or where a quota allows less than the cores: not pinned, and by
//     default the part of the quota, at least one thread.
// STATUS_INVALID: the list has fewer processors than thread_count, or one that is not allowed.
MUST_USE enum status core_plan_make(const char *root, const struct processor_set *allowed,
                                    const struct core_request *request, uint32_t thread_count,
                                    struct core_plan *plan_out, struct error *error);

// STATUS_INVALID: the request has a list of fewer processors than thread_count (0: any will do).
MUST_USE enum status core_request_check(const struct core_request *request, uint32_t thread_count,
                                        struct error *error);

// Writes the list as "0-3,8", cut at the end of the buffer.
void core_list_format(const struct core_list *list, char *text, size_t size_bytes);
