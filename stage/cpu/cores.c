#include "stage/cpu/cores.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

// -- text -----------------------------------------------------------------------------------------

static enum status list_add(struct core_list *list, uint64_t first, uint64_t last,
                            struct error *error) {
    if (last >= PROCESSOR_ID_COUNT) {
        return error_set(error, STATUS_INVALID, "core ids end at %d", PROCESSOR_ID_COUNT - 1);
    }
    for (uint64_t id = first; id <= last; id++) {
        for (uint32_t i = 0; i < list->count; i++) {
            if (list->ids[i] != id) continue;
            return error_set(error, STATUS_INVALID, "core %" PRIu64 " is in it twice", id);
        }
        if (list->count == TEAM_THREAD_COUNT_MAX) {
            return error_set(error, STATUS_INVALID, "the limit is %d cores", TEAM_THREAD_COUNT_MAX);
        }
        list->ids[list->count++] = (uint32_t)id;
    }
    return STATUS_OK;
}

static enum status syntax_error(struct error *error) {
    return error_set(error, STATUS_INVALID,
                     "it must be a list such as 0-3,8 or a share such as 1/2");
}

static enum status share_parse(uint64_t number, const char *count_text,
                               struct core_request *request_out, struct error *error) {
    uint64_t count, last;
    if (!processor_range_read(&count_text, &count, &last) || last != count || *count_text != '\0') {
        return syntax_error(error);
    }
    if (number == 0 || number > count || count > PROCESSOR_ID_COUNT) {
        return error_set(error, STATUS_INVALID,
                         "shares are 1/%" PRIu64 " to %" PRIu64 "/%" PRIu64 " of at most %d", count,
                         count, count, PROCESSOR_ID_COUNT);
    }
    *request_out =
        (struct core_request){.share_number = (uint32_t)number, .share_count = (uint32_t)count};
    return STATUS_OK;
}

enum status core_request_parse(const char *text, struct core_request *request_out,
                               struct error *error) {
    struct core_request request = {0};
    for (;;) {
        uint64_t first, last;
        if (!processor_range_read(&text, &first, &last)) return syntax_error(error);
        if (*text == '/' && request.list.count == 0 && first == last) {
            return share_parse(first, text + 1, request_out, error);
        }
        enum status status = list_add(&request.list, first, last, error);
        if (status != STATUS_OK) return status;
        if (*text == '\0') break;
        if (*text++ != ',') return syntax_error(error);
    }
    *request_out = request;
    return STATUS_OK;
}

void core_list_format(const struct core_list *list, char *text, size_t size_bytes) {
    size_t length = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < list->count && length < size_bytes; i++) {
        uint32_t first = i;
        while (i + 1 < list->count && list->ids[i + 1] == list->ids[i] + 1) {
            i++;
        }
        char *at = text + length;
        size_t left = size_bytes - length;
        const char *comma = first > 0 ? "," : "";
        int written = i > first ? snprintf(at, left, "%s%" PRIu32 "-%" PRIu32, comma,
                                           list->ids[first], list->ids[i])
                                : snprintf(at, left, "%s%" PRIu32, comma, list->ids[i]);
        if (written > 0) length += (size_t)written;
    }
}

// -- plans ----------------------------------------------------------------------------------------

enum { TEXT_BYTES = 128 }; // of a list in a sentence

// The processors of `set` from `first` of them on, at most `count` and what a list holds.
static void list_from_set(const struct processor_set *set, uint32_t first, uint32_t count,
                          struct core_list *list_out) {
    uint32_t index = 0;
    list_out->count = 0;
    for (uint32_t id = 0; id < PROCESSOR_ID_COUNT; id++) {
        if (!processor_set_has(set, id)) continue;
        if (index++ < first) continue;
        if (list_out->count == count || list_out->count == TEAM_THREAD_COUNT_MAX) return;
        list_out->ids[list_out->count++] = id;
    }
}

enum status core_request_check(const struct core_request *request, uint32_t thread_count,
                               struct error *error) {
    if (request->list.count == 0 || thread_count <= request->list.count) return STATUS_OK;
    char text[TEXT_BYTES];
    core_list_format(&request->list, text, sizeof(text));
    return error_set(error, STATUS_INVALID,
                     "--threads is %" PRIu32 ", but --cores is '%s': %" PRIu32 " core%s",
                     thread_count, text, request->list.count, request->list.count == 1 ? "" : "s");
}

static enum status plan_list(const struct processor_set *allowed, const struct core_list *list,
                             uint32_t thread_count, struct core_plan *plan_out,
                             struct error *error) {
    for (uint32_t i = 0; i < list->count; i++) {
        if (processor_set_has(allowed, list->ids[i])) continue;
        struct core_list may_use;
        char text[TEXT_BYTES];
        list_from_set(allowed, 0, TEAM_THREAD_COUNT_MAX, &may_use);
        core_list_format(&may_use, text, sizeof(text));
        return error_set(error, STATUS_INVALID,
                         "core %" PRIu32 " of --cores does not exist here or is not allowed; "
                         "this process may use %s",
                         list->ids[i], text);
    }
    plan_out->cores = *list;
    if (thread_count != 0) plan_out->cores.count = thread_count;
    plan_out->thread_count = plan_out->cores.count;
    return STATUS_OK;
}

static uint32_t at_most(uint64_t count, uint32_t limit) {
    return count < limit ? (uint32_t)count : limit;
}

// Part `number` of `count` things, as even as can be: its size, and what comes before it.
static uint32_t share_of(uint32_t thing_count, uint32_t number, uint32_t count,
                         uint32_t *first_out) {
    *first_out = (uint32_t)((uint64_t)thing_count * (number - 1) / count);
    return (uint32_t)((uint64_t)thing_count * number / count) - *first_out;
}

static void plan_machine(const char *root, const struct processor_set *allowed,
                         const struct core_request *request, uint32_t thread_count,
                         struct core_plan *plan_out) {
    struct processor_set cores;
    machine_physical_cores(root, allowed, &cores);
    uint32_t core_count = processor_set_count(&cores);
    uint64_t quota_milli = machine_quota_milli(root);
    // Half a processor more than 1.5 paid ones stops all threads for a quarter of the time, and
    // computes half as much again as one; what rounding down leaves is for the threads that move
    // frames.
    uint32_t paid_count =
        quota_milli == UINT64_MAX ? core_count : at_most((quota_milli + 500) / 1000, core_count);
    uint32_t number = request->share_count != 0 ? request->share_number : 1;
    uint32_t share_count = request->share_count != 0 ? request->share_count : 1;
    uint32_t first;
    uint32_t count = share_of(paid_count, number, share_count, &first);
    if (count == 0) count = 1;
    plan_out->thread_count =
        thread_count != 0 ? thread_count : at_most(count, TEAM_THREAD_COUNT_MAX);
    plan_out->cores.count = 0;
    // Under a quota the kernel should be free to find idle processors: others use them too.
    bool may_pin = request->share_count != 0 && paid_count == core_count &&
                   core_count >= share_count && count >= plan_out->thread_count;
    if (may_pin) list_from_set(&cores, first, plan_out->thread_count, &plan_out->cores);
}

enum status core_plan_make(const char *root, const struct processor_set *allowed,
                           const struct core_request *request, uint32_t thread_count,
                           struct core_plan *plan_out, struct error *error) {
    enum status status = core_request_check(request, thread_count, error);
    if (status != STATUS_OK) return status;
    if (request->list.count > 0) {
        return plan_list(allowed, &request->list, thread_count, plan_out, error);
    }
    plan_machine(root, allowed, request, thread_count, plan_out);
    return STATUS_OK;
}
