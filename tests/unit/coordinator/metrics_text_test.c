#include "coordinator/metrics_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static char *write_text(const Stagecoach__V1__Pipeline *pipeline, struct buffer *buffer) {
    buffer_init(buffer, 1 << 20);
    assert_int_equal(metrics_text_write(pipeline, buffer), STATUS_OK);
    return buffer->data;
}

static void assert_has(const char *text, const char *words) {
    if (strstr(text, words) == NULL) fail_msg("no '%s' in:\n%s", words, text);
}

static void values_have_base_units(void **state) {
    (void)state;
    Stagecoach__V1__StageTimes times = STAGECOACH__V1__STAGE_TIMES__INIT;
    times.busy_ns = 1234567890123;
    times.wire_ns = 1;
    times.queued_ns = 5000000000;
    Stagecoach__V1__Stage stage = STAGECOACH__V1__STAGE__INIT, spare = stage;
    stage.name = (char *)"first";
    stage.state = STAGECOACH__V1__STAGE_STATE__STAGE_STATE_RUNNING;
    stage.layer_count = 2;
    stage.stage_index = 3;
    stage.times = stage.times_window = &times;
    stage.heartbeat_age_ms = 250;
    stage.clock_offset_ns = -1500000000;
    Stagecoach__V1__Stage *stages[] = {&stage, &spare};
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    pipeline.model_name = (char *)"m";
    pipeline.stages = stages;
    pipeline.n_stages = 2;
    pipeline.window_seconds = 10;
    pipeline.kv_block_count = 8;
    pipeline.kv_block_used_count = 2;
    pipeline.request_running_count = 5;
    pipeline.completion_token_count = UINT64_MAX;
    struct buffer buffer;
    const char *text = write_text(&pipeline, &buffer);
    assert_has(text, "# TYPE stagecoach_stage_busy_seconds_total counter\n"
                     "stagecoach_stage_busy_seconds_total{stage=\"3\"} 1234.567890123\n");
    assert_has(text, "\nstagecoach_stage_idle_seconds_total{stage=\"3\",cause=\"wire\"} 1e-09\n");
    assert_has(text, "\nstagecoach_stage_queue_depth{stage=\"3\"} 0.5\n");
    assert_has(text, "\nstagecoach_stage_up{stage=\"3\",name=\"first\"} 1\n");
    assert_has(text, "\nstagecoach_stage_heartbeat_age_seconds{stage=\"3\"} 0.25\n");
    assert_has(text, "\nstagecoach_stage_clock_offset_seconds{stage=\"3\"} -1.5\n");
    assert_has(text, "\nstagecoach_kv_used_ratio 0.25\n");
    assert_has(text, "\nstagecoach_completion_tokens_total 18446744073709551615\n");
    assert_has(text, "\nvllm:num_requests_running{model_name=\"m\"} 5\n");
    assert_has(text, "\nvllm:kv_cache_usage_perc{model_name=\"m\"} 0.25\n");
    assert_has(text, "\nvllm:cache_config_info{block_size=\"32\",num_gpu_blocks=\"8\"} 1\n");
    buffer_fini(&buffer);
}

static void buckets_are_cumulative(void **state) {
    (void)state;
    double bounds[] = {0.1, 1, 10};
    uint64_t counts[] = {3, 0, 4, 1};
    Stagecoach__V1__Histogram histogram = STAGECOACH__V1__HISTOGRAM__INIT;
    histogram.bounds_seconds = bounds;
    histogram.n_bounds_seconds = 3;
    histogram.counts = counts;
    histogram.n_counts = 4;
    histogram.sum_seconds = 123.5;
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    pipeline.first_token = &histogram;
    struct buffer buffer;
    const char *text = write_text(&pipeline, &buffer);
    assert_has(text, "# TYPE stagecoach_time_to_first_token_seconds histogram\n"
                     "stagecoach_time_to_first_token_seconds_bucket{le=\"0.1\"} 3\n"
                     "stagecoach_time_to_first_token_seconds_bucket{le=\"1\"} 3\n"
                     "stagecoach_time_to_first_token_seconds_bucket{le=\"10\"} 7\n"
                     "stagecoach_time_to_first_token_seconds_bucket{le=\"+Inf\"} 8\n"
                     "stagecoach_time_to_first_token_seconds_sum 123.5\n"
                     "stagecoach_time_to_first_token_seconds_count 8\n");
    // A histogram that nobody measured, or whose parts do not fit, is left out.
    assert_null(strstr(text, "stagecoach_inter_token_seconds"));
    histogram.n_counts = 3;
    buffer_fini(&buffer);
    text = write_text(&pipeline, &buffer);
    assert_null(strstr(text, "stagecoach_time_to_first_token_seconds"));
    buffer_fini(&buffer);
}

static void labels_are_escaped(void **state) {
    (void)state;
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    char name[600];
    memset(name, 'x', sizeof(name));
    memcpy(name, "a\"b\\c\nd", 7);
    name[sizeof(name) - 1] = '\0';
    pipeline.model_name = name;
    struct buffer buffer;
    const char *text = write_text(&pipeline, &buffer);
    assert_has(text, "{model_name=\"a\\\"b\\\\c\\ndxxx");
    assert_has(text, "xxx\"} 0\n"); // however long
    buffer_fini(&buffer);
}

static void a_text_beyond_its_limit_fails(void **state) {
    (void)state;
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    struct buffer buffer;
    buffer_init(&buffer, 1000);
    assert_int_equal(metrics_text_write(&pipeline, &buffer), STATUS_EXHAUSTED);
    buffer_fini(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_have_base_units),
        cmocka_unit_test(buckets_are_cumulative),
        cmocka_unit_test(labels_are_escaped),
        cmocka_unit_test(a_text_beyond_its_limit_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
