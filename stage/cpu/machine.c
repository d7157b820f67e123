#include "stage/cpu/machine.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t processor_set_count(const struct processor_set *set) {
    uint32_t count = 0;
    for (size_t i = 0; i < PROCESSOR_ID_COUNT / 64; i++) {
        count += (uint32_t)__builtin_popcountll(set->words[i]);
    }
    return count;
}

// At most 9 digits, so that nothing overflows; longer numbers are no ids.
static bool number_read(const char **text, uint64_t *number_out) {
    size_t digit_count = strspn(*text, "0123456789");
    if (digit_count == 0 || digit_count > 9) return false;
    *number_out = strtoull(*text, NULL, 10);
    *text += digit_count;
    return true;
}

bool processor_range_read(const char **text, uint64_t *first_out, uint64_t *last_out) {
    const char *at = *text;
    uint64_t first, last;
    if (!number_read(&at, &first)) return false;
    last = first;
    if (*at == '-') {
        at++;
        if (!number_read(&at, &last) || last < first) return false;
    }
    *first_out = first;
    *last_out = last;
    *text = at;
    return true;
}

void machine_allowed(struct processor_set *set_out) {
    memset(set_out, 0, sizeof(*set_out));
    enum { SET_COUNT = PROCESSOR_ID_COUNT / CPU_SETSIZE };
    cpu_set_t sets[SET_COUNT];
    memset(sets, 0, sizeof(sets));
    if (sched_getaffinity(0, sizeof(sets), sets) == 0) {
        for (uint32_t id = 0; id < PROCESSOR_ID_COUNT; id++) {
            if (CPU_ISSET_S(id, sizeof(sets), sets)) processor_set_add(set_out, id);
        }
    }
    if (processor_set_count(set_out) == 0) processor_set_add(set_out, 0);
}

// -- processors -----------------------------------------------------------------------------------

enum {
    // Of a file of one line; a longer line is not understood.
    LINE_BYTES = 4096,
    // Of a path below `root`; a longer one is not found.
    PATH_BYTES = 3 * 4096,
};

static bool line_read(const char *path, char text[LINE_BYTES]) {
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    bool is_whole = fgets(text, LINE_BYTES, file) != NULL;
    if (is_whole) {
        size_t length = strcspn(text, "\n");
        is_whole = text[length] == '\n' || feof(file);
        text[length] = '\0';
    }
    fclose(file);
    return is_whole;
}

// A list such as "0-3,8" in a file. False, and an unknown set, when it is anything else.
static bool set_read(const char *path, struct processor_set *set_out) {
    char line[LINE_BYTES];
    if (!line_read(path, line)) return false;
    memset(set_out, 0, sizeof(*set_out));
    const char *at = line;
    for (;;) {
        uint64_t first, last;
        if (!processor_range_read(&at, &first, &last) || last >= PROCESSOR_ID_COUNT) return false;
        for (uint64_t id = first; id <= last; id++) {
            processor_set_add(set_out, (uint32_t)id);
        }
        if (*at == '\0') return true;
        if (*at++ != ',') return false;
    }
}

// The hardware threads of the physical core that `id` belongs to.
static bool siblings_read(const char *root, uint32_t id, struct processor_set *set_out) {
    // The second is the name before Linux 5.3.
    static const char *const names[] = {"core_cpus_list", "thread_siblings_list"};
    for (size_t i = 0; i < 2; i++) {
        char path[PATH_BYTES];
        snprintf(path, sizeof(path), "%s/sys/devices/system/cpu/cpu%" PRIu32 "/topology/%s", root,
                 id, names[i]);
        if (set_read(path, set_out) && processor_set_has(set_out, id)) return true;
    }
    return false;
}

static void set_keep(struct processor_set *set, const struct processor_set *other) {
    for (size_t i = 0; i < PROCESSOR_ID_COUNT / 64; i++) {
        set->words[i] &= other->words[i];
    }
}

void machine_physical_cores(const char *root, const struct processor_set *allowed,
                            struct processor_set *set_out) {
    struct processor_set left = *allowed, online;
    char path[PATH_BYTES];
    snprintf(path, sizeof(path), "%s/sys/devices/system/cpu/online", root);
    if (set_read(path, &online)) set_keep(&left, &online);
    if (processor_set_count(&left) == 0) left = *allowed;
    memset(set_out, 0, sizeof(*set_out));
    for (uint32_t id = 0; id < PROCESSOR_ID_COUNT; id++) {
        if (!processor_set_has(&left, id)) continue;
        processor_set_add(set_out, id);
        struct processor_set siblings;
        if (!siblings_read(root, id, &siblings)) continue;
        for (size_t i = 0; i < PROCESSOR_ID_COUNT / 64; i++) {
            left.words[i] &= ~siblings.words[i];
        }
    }
}

// -- quotas ---------------------------------------------------------------------------------------

// Quota and period in microseconds. No quota ("max", -1) and nonsense limit nothing.
static uint64_t milli_of(const char *quota, const char *period) {
    uint64_t quota_us, period_us;
    if (!number_read(&quota, &quota_us) || *quota != '\0') return UINT64_MAX;
    if (!number_read(&period, &period_us) || *period != '\0') return UINT64_MAX;
    if (quota_us == 0 || period_us == 0) return UINT64_MAX;
    return quota_us * 1000 / period_us;
}

// What the group of one folder allows by itself.
static uint64_t group_milli(const char *folder, bool is_v2) {
    char path[PATH_BYTES + 32], quota[LINE_BYTES], period[LINE_BYTES];
    if (is_v2) {
        snprintf(path, sizeof(path), "%s/cpu.max", folder);
        if (!line_read(path, quota)) return UINT64_MAX;
        char *space = strchr(quota, ' ');
        if (space == NULL) return UINT64_MAX;
        *space = '\0';
        return milli_of(quota, space + 1);
    }
    snprintf(path, sizeof(path), "%s/cpu.cfs_quota_us", folder);
    if (!line_read(path, quota)) return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/cpu.cfs_period_us", folder);
    if (!line_read(path, period)) return UINT64_MAX;
    return milli_of(quota, period);
}

// Is `word` in a list separated by commas?
static bool list_has(const char *list, const char *word) {
    size_t length = strlen(word);
    while (*list != '\0') {
        size_t item_length = strcspn(list, ",");
        if (item_length == length && memcmp(list, word, length) == 0) return true;
        list += item_length + (list[item_length] == ',');
    }
    return false;
}

// The group of this process in the hierarchy of version 2, or in that of version 1 with the cpu
// controller: lines "0::/path" and "4:cpu,cpuacct:/path".
static bool group_path_read(const char *root, bool is_v2, char path_out[LINE_BYTES]) {
    char path[PATH_BYTES];
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    bool is_found = false;
    char *line = NULL;
    size_t size_bytes = 0;
    while (!is_found && getline(&line, &size_bytes, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL || strlen(group + 1) >= LINE_BYTES) continue;
        *controllers++ = '\0';
        *group++ = '\0';
        is_found =
            is_v2 ? strcmp(line, "0") == 0 && *controllers == '\0' : list_has(controllers, "cpu");
        if (is_found) memcpy(path_out, group, strlen(group) + 1);
    }
    free(line);
    fclose(file);
    return is_found;
}

// The least of the group's folder and of those above it, up to where the hierarchy is mounted.
static uint64_t groups_milli(const char *root, const char *point, const char *group, bool is_v2) {
    char folder[PATH_BYTES];
    int length = snprintf(folder, sizeof(folder), "%s%s%s", root, point, group);
    if (length < 0 || (size_t)length >= sizeof(folder)) return UINT64_MAX;
    size_t top_length = strlen(root) + strlen(point);
    uint64_t least = UINT64_MAX;
    for (;;) {
        uint64_t milli = group_milli(folder, is_v2);
        if (milli < least) least = milli;
        if (strlen(folder) <= top_length) return least;
        *strrchr(folder, '/') = '\0'; // `group` begins with one
    }
}

// A line of proc_pid_mountinfo(5): "ID PARENT DEVICE ROOT POINT OPTIONS [TAG]... - TYPE SOURCE
// OPTIONS". False when it does not mount the hierarchy that is looked for.
static bool mount_parse(const char *line, bool is_v2, char mount_root_out[LINE_BYTES],
                        char point_out[LINE_BYTES]) {
    char type[16], options[1024];
    const char *tail = strstr(line, " - ");
    if (tail == NULL || sscanf(tail, " - %15s %*s %1023s", type, options) != 2) return false;
    if (strcmp(type, is_v2 ? "cgroup2" : "cgroup") != 0) return false;
    if (!is_v2 && !list_has(options, "cpu")) return false;
    return sscanf(line, "%*s %*s %*s %4095s %4095s", mount_root_out, point_out) == 2;
}

// The part of `group` below the mount's root. A container sees its own group as the mount's root,
// and may see paths of the host: what is not below is the mount point itself.
static const char *group_below(const char *group, const char *mount_root) {
    size_t length = strcmp(mount_root, "/") == 0 ? 0 : strlen(mount_root);
    bool is_below = strncmp(group, mount_root, length) == 0 && group[length] == '/';
    if (!is_below || group[length + 1] == '\0' || strstr(group, "/..") != NULL) return "";
    return group + length;
}

static uint64_t hierarchy_milli(const char *root, bool is_v2) {
    char path[PATH_BYTES], group[LINE_BYTES];
    if (!group_path_read(root, is_v2, group)) return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/proc/self/mountinfo", root);
    FILE *file = fopen(path, "re");
    if (file == NULL) return UINT64_MAX;
    uint64_t least = UINT64_MAX;
    char *line = NULL;
    size_t size_bytes = 0;
    while (getline(&line, &size_bytes, file) > 0) {
        char mount_root[LINE_BYTES], point[LINE_BYTES];
        if (!mount_parse(line, is_v2, mount_root, point)) continue;
        uint64_t milli = groups_milli(root, point, group_below(group, mount_root), is_v2);
        if (milli < least) least = milli;
    }
    free(line);
    fclose(file);
    return least;
}

uint64_t machine_quota_milli(const char *root) {
    uint64_t v1 = hierarchy_milli(root, false), v2 = hierarchy_milli(root, true);
    return v1 < v2 ? v1 : v2;
}
