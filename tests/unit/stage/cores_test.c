#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "stage/cpu/cores.h"

// -- made-up machines -----------------------------------------------------------------------------

static char root[64]; // of the machine of the test that runs

static int root_make(void **state) {
    (void)state;
    strcpy(root, "/tmp/stagecoach-cores-XXXXXX");
    return mkdtemp(root) != NULL ? 0 : -1;
}

static int root_remove(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

static void file_write(const char *path, const char *text) {
    char whole[512];
    snprintf(whole, sizeof(whole), "%s/%s", root, path);
    for (char *slash = strchr(whole + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(whole, 0700);
        *slash = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

// Processors 0 .. core_count * thread_count - 1; those of a core are core_count apart, as Linux
// numbers them on most machines.
static void topology_write(uint32_t core_count, uint32_t thread_count) {
    for (uint32_t id = 0; id < core_count * thread_count; id++) {
        char path[128], text[64];
        snprintf(path, sizeof(path), "sys/devices/system/cpu/cpu%u/topology/core_cpus_list", id);
        if (thread_count == 1)
            snprintf(text, sizeof(text), "%u\n", id);
        else
            snprintf(text, sizeof(text), "%u,%u\n", id % core_count, id % core_count + core_count);
        file_write(path, text);
    }
}

static void quota_v2_write(const char *text) {
    file_write("proc/self/cgroup", "0::/\n");
    file_write("proc/self/mountinfo",
               "25 1 254:0 / / rw - ext4 /dev/vda rw\n"
               "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
    file_write("sys/fs/cgroup/cpu.max", text);
}

static struct processor_set set_of(const char *list) {
    struct core_request request;
    assert_int_equal(core_request_parse(list, &request, NULL), STATUS_OK);
    struct processor_set set = {0};
    for (uint32_t i = 0; i < request.list.count; i++) {
        processor_set_add(&set, request.list.ids[i]);
    }
    return set;
}

// The plan as "threads" or "threads on cores", or the sentence of its error.
static const char *plan_of(const char *allowed, const char *cores, uint32_t thread_count) {
    static char text[512];
    struct processor_set set = set_of(allowed);
    struct core_request request = {0};
    struct core_plan plan;
    struct error error;
    if (cores != NULL) assert_int_equal(core_request_parse(cores, &request, &error), STATUS_OK);
    if (core_plan_make(root, &set, &request, thread_count, &plan, &error) != STATUS_OK) {
        strcpy(text, error.text);
        return text;
    }
    char list[256];
    core_list_format(&plan.cores, list, sizeof(list));
    snprintf(text, sizeof(text), plan.cores.count > 0 ? "%u on %s" : "%u", plan.thread_count, list);
    if (plan.cores.count > 0) assert_int_equal(plan.cores.count, plan.thread_count);
    return text;
}

#define assert_plan(allowed, cores, thread_count, expected)                                        \
    assert_string_equal(plan_of(allowed, cores, thread_count), expected)

// -- the default ----------------------------------------------------------------------------------

static void default_is_a_thread_for_each_physical_core(void **state) {
    (void)state;
    topology_write(64, 1);
    assert_plan("0", NULL, 0, "1");
    assert_plan("0-1", NULL, 0, "2");
    assert_plan("0-63", NULL, 0, "64");
    topology_write(64, 2);
    assert_plan("0-127", NULL, 0, "64");
    topology_write(1, 2);
    assert_plan("0-1", NULL, 0, "1");
}

static void default_counts_what_the_mask_allows(void **state) {
    (void)state;
    topology_write(8, 2);
    assert_plan("0-3", NULL, 0, "4");
    assert_plan("12-15", NULL, 0, "4"); // the second threads of four cores
    assert_plan("3,11", NULL, 0, "1");  // one core, both its threads
    assert_plan("3,10-11", NULL, 0, "2");
}

static void default_follows_the_mask_where_files_are_missing_or_odd(void **state) {
    (void)state;
    assert_plan("0-3", NULL, 0, "4"); // no files at all
    static const char *const texts[] = {"",    "\n", "x", "1", "0-", "0-1,", "0,99999999999",
                                        "0 1", "-1"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        file_write("sys/devices/system/cpu/cpu0/topology/core_cpus_list", texts[i]);
        file_write("sys/devices/system/cpu/online", texts[i]);
        file_write("proc/self/cgroup", texts[i]);
        file_write("proc/self/mountinfo", texts[i]);
        // An online list that only says "1" is well-formed and leaves that one.
        assert_plan("0-3", NULL, 0, strcmp(texts[i], "1") == 0 ? "1" : "4");
    }
}

static void siblings_are_read_under_their_old_name(void **state) {
    (void)state;
    file_write("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n");
    file_write("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2-3\n");
    assert_plan("0-3", NULL, 0, "2");
}

static void offline_processors_do_not_count(void **state) {
    (void)state;
    topology_write(4, 1);
    file_write("sys/devices/system/cpu/online", "0,2-3\n");
    assert_plan("0-3", NULL, 0, "3");
    // Nonsense: what is allowed is all offline.
    assert_plan("1", NULL, 0, "1");
}

static void default_is_no_more_than_a_team(void **state) {
    (void)state;
    struct processor_set allowed;
    memset(&allowed, 0xff, sizeof(allowed));
    struct core_request request = {0};
    struct core_plan plan;
    assert_int_equal(core_plan_make(root, &allowed, &request, 0, &plan, NULL), STATUS_OK);
    assert_int_equal(plan.thread_count, TEAM_THREAD_COUNT_MAX);
    assert_int_equal(plan.cores.count, 0);
}

// -- quotas ---------------------------------------------------------------------------------------

static void quota_limits_threads_to_the_nearest_number(void **state) {
    (void)state;
    static const struct {
        const char *text, *plan;
    } cases[] = {
        {"100000 100000\n", "1"},
        {"150000 100000\n", "2"},
        {"149000 100000\n", "1"},
        {"250000 100000\n", "3"},
        {"10000 100000\n", "1"},
        {"20000 10000", "2"},
        {"9900000 100000\n", "8"},
        {"max 100000\n", "8"},
        {"0 100000\n", "8"},
        {"100000 0\n", "8"},
        {"100000\n", "8"},
        {"-1 100000\n", "8"},
        {"", "8"},
        {"one two\n", "8"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        quota_v2_write(cases[i].text);
        assert_plan("0-7", NULL, 0, cases[i].plan);
    }
}

static void quota_of_a_group_above_counts(void **state) {
    (void)state;
    quota_v2_write("max 100000\n");
    file_write("proc/self/cgroup", "0::/kubepods/pod 7/main\n");
    file_write("sys/fs/cgroup/kubepods/pod 7/main/cpu.max", "400000 100000\n");
    assert_plan("0-7", NULL, 0, "4");
    file_write("sys/fs/cgroup/kubepods/cpu.max", "200000 100000\n");
    assert_plan("0-7", NULL, 0, "2");
    file_write("sys/fs/cgroup/cpu.max", "100000 100000\n");
    assert_plan("0-7", NULL, 0, "1");
}

static void quota_of_version_1_counts(void **state) {
    (void)state;
    file_write("proc/self/cgroup", "12:memory:/else\n4:cpuacct,cpu:/docker/abc\n0::/\n");
    file_write("proc/self/mountinfo",
               "30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
               "31 25 0:27 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n"
               "32 25 0:28 / /sys/fs/cgroup/cpu rw shared:6 - cgroup cgroup rw,cpu,cpuacct\n");
    file_write("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "-1\n");
    file_write("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000\n");
    assert_plan("0-7", NULL, 0, "8");
    file_write("sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", "300000\n");
    file_write("sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", "100000\n");
    assert_plan("0-7", NULL, 0, "3");
    file_write("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "100000\n");
    assert_plan("0-7", NULL, 0, "1");
}

// Without a cgroup namespace a container's group has the host's path, and the mount begins there.
static void quota_is_found_where_a_container_mounts_its_group(void **state) {
    (void)state;
    file_write("proc/self/cgroup", "0::/kubepods/pod7/main\n");
    file_write("proc/self/mountinfo",
               "30 25 0:26 /kubepods/pod7 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
    file_write("sys/fs/cgroup/main/cpu.max", "200000 100000\n");
    assert_plan("0-7", NULL, 0, "2");
    // Elsewhere than the mount: only the mount point itself is seen.
    file_write("proc/self/cgroup", "0::/../other\n");
    assert_plan("0-7", NULL, 0, "8");
    file_write("sys/fs/cgroup/cpu.max", "300000 100000\n");
    assert_plan("0-7", NULL, 0, "3");
    file_write("proc/self/cgroup", "0::/kubepods/pod77/main\n");
    assert_plan("0-7", NULL, 0, "3");
}

static void quota_of_this_process_can_be_read(void **state) {
    (void)state;
    assert_true(machine_quota_milli("") > 0);
}

// -- lists and shares -----------------------------------------------------------------------------

static void list_is_pinned_in_its_order(void **state) {
    (void)state;
    assert_plan("0-15", "3", 0, "1 on 3");
    assert_plan("0-15", "0-3,8,10-11", 0, "7 on 0-3,8,10-11");
    assert_plan("0-15", "8,2-4,1", 0, "5 on 8,2-4,1");
    assert_plan("0-15", "4-7", 2, "2 on 4-5");
    // Siblings and quotas are the business of who writes a list.
    topology_write(8, 2);
    quota_v2_write("100000 100000\n");
    assert_plan("0-15", "0,8", 0, "2 on 0,8");
}

static void list_that_cannot_be_had_is_refused(void **state) {
    (void)state;
    const char *text = plan_of("0-3,6", "2-5", 0);
    assert_non_null(strstr(text, "core 4"));
    assert_non_null(strstr(text, "0-3,6"));
    text = plan_of("0-3", "0-2", 4);
    assert_non_null(strstr(text, "--threads is 4"));
    assert_non_null(strstr(text, "0-2"));
    assert_non_null(strstr(text, "3 cores"));
}

static void shares_are_even_and_cover_all_cores(void **state) {
    (void)state;
    topology_write(8, 2);
    assert_plan("0-15", "1/1", 0, "8 on 0-7");
    assert_plan("0-15", "1/3", 0, "2 on 0-1");
    assert_plan("0-15", "2/3", 0, "3 on 2-4");
    assert_plan("0-15", "3/3", 0, "3 on 5-7");
    assert_plan("0-15", "8/8", 0, "1 on 7");
    assert_plan("4-7,12", "2/2", 0, "2 on 6-7");
    assert_plan("0-15", "2/2", 3, "3 on 4-6");
}

static void share_that_is_too_small_is_not_pinned(void **state) {
    (void)state;
    topology_write(2, 1);
    assert_plan("0-1", "1/3", 0, "1");
    assert_plan("0-1", "3/3", 0, "1");
    assert_plan("0-1", "2/2", 0, "1 on 1");
    assert_plan("0-1", "2/2", 2, "2");
}

static void share_of_a_quota_is_not_pinned(void **state) {
    (void)state;
    topology_write(8, 1);
    quota_v2_write("400000 100000\n");
    assert_plan("0-7", "2/2", 0, "2");
    assert_plan("0-7", "1/8", 0, "1");
    quota_v2_write("800000 100000\n");
    assert_plan("0-7", "2/2", 0, "4 on 4-7");
}

static void request_parse_refuses_mistakes(void **state) {
    (void)state;
    static const struct {
        const char *text, *word;
    } cases[] = {
        {"", "list such as"},      {"x", "list such as"},     {"0-", "list such as"},
        {"-1", "list such as"},    {"3-1", "list such as"},   {"0,", "list such as"},
        {",0", "list such as"},    {"0 1", "list such as"},   {"0x1", "list such as"},
        {"1/", "list such as"},    {"1/2,3", "list such as"}, {"1-2/2", "list such as"},
        {"1/2-3", "list such as"}, {"+1", "list such as"},    {"9999999999", "list such as"},
        {"0/2", "1/2 to 2/2"},     {"3/2", "1/2 to 2/2"},     {"0/0", "at most"},
        {"0,1,0", "core 0"},       {"0-3,2", "core 2"},       {"8192", "8191"},
        {"0-999999999", "8191"},   {"0-256", "256 cores"},    {"1/9999", "8192"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct core_request request = {.share_count = 77};
        struct error error = {0};
        assert_int_equal(core_request_parse(cases[i].text, &request, &error), STATUS_INVALID);
        if (strstr(error.text, cases[i].word) == NULL)
            fail_msg("%s: %s", cases[i].text, error.text);
        assert_int_equal(request.share_count, 77);
    }
}

static void format_ends_at_the_buffer(void **state) {
    (void)state;
    struct core_request request;
    assert_int_equal(core_request_parse("10-12,20,30", &request, NULL), STATUS_OK);
    char text[32];
    core_list_format(&request.list, text, sizeof(text));
    assert_string_equal(text, "10-12,20,30");
    for (size_t size = 1; size < 12; size++) {
        memset(text, 'x', sizeof(text));
        core_list_format(&request.list, text, size);
        assert_int_equal(strlen(text), size - 1);
        assert_memory_equal(text, "10-12,20,30", size - 1);
        assert_int_equal(text[size], 'x');
    }
}

int main(void) {
#define on_a_machine(test) cmocka_unit_test_setup_teardown(test, root_make, root_remove)
    const struct CMUnitTest tests[] = {
        on_a_machine(default_is_a_thread_for_each_physical_core),
        on_a_machine(default_counts_what_the_mask_allows),
        on_a_machine(default_follows_the_mask_where_files_are_missing_or_odd),
        on_a_machine(siblings_are_read_under_their_old_name),
        on_a_machine(offline_processors_do_not_count),
        on_a_machine(default_is_no_more_than_a_team),
        on_a_machine(quota_limits_threads_to_the_nearest_number),
        on_a_machine(quota_of_a_group_above_counts),
        on_a_machine(quota_of_version_1_counts),
        on_a_machine(quota_is_found_where_a_container_mounts_its_group),
        cmocka_unit_test(quota_of_this_process_can_be_read),
        on_a_machine(list_is_pinned_in_its_order),
        on_a_machine(list_that_cannot_be_had_is_refused),
        on_a_machine(shares_are_even_and_cover_all_cores),
        on_a_machine(share_that_is_too_small_is_not_pinned),
        on_a_machine(share_of_a_quota_is_not_pinned),
        cmocka_unit_test(request_parse_refuses_mistakes),
        cmocka_unit_test(format_ends_at_the_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
