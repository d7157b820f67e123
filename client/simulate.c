// simulate: the coordinator's decisions against simulated stages, on a virtual clock.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "client/client.h"
#include "client/message_json.h"
#include "client/simulate/simulation.h"
#include "client/verbs.h"

struct arguments {
    uint64_t seed, seed_count;
    uint64_t numbers[SIMULATION_NUMBER_COUNT];
    double hop_us, stage_us;
    const char *faults, *schedule, *feedback, *prefix_cache;
    bool is_long, as_json, is_verbose;
};

enum { OWN_SPEC_COUNT = 11 };

// -- reading --------------------------------------------------------------------------------------

static bool read_word(const char *option, const char *value, const char *no, const char *yes,
                      bool *out) {
    *out = strcmp(value, yes) == 0;
    if (*out || strcmp(value, no) == 0) return true;
    client_report("--%s is '%s', it must be %s or %s", option, value, no, yes);
    return false;
}

static bool read_settings(const struct arguments *a, struct simulation_settings *settings) {
    struct error error;
    *settings = simulation_settings_of(a->seed);
    memcpy(settings->numbers, a->numbers, sizeof(a->numbers));
    if (a->hop_us >= 0.0) settings->numbers[SIMULATION_HOP_NS] = (uint64_t)(a->hop_us * 1e3);
    if (a->stage_us >= 0.0) settings->numbers[SIMULATION_STAGE_NS] = (uint64_t)(a->stage_us * 1e3);
    settings->is_long = a->is_long;
    if (simulation_faults_parse(a->faults, &settings->faults, &error) != STATUS_OK) {
        client_report("--%s", error.text);
        return false;
    }
    return read_word("schedule", a->schedule, "pipelined", "naive", &settings->is_naive) &&
           read_word("feedback", a->feedback, "direct", "coordinator",
                     &settings->feedback_coordinator) &&
           read_word("prefix-cache", a->prefix_cache, "on", "off", &settings->no_prefix_cache);
}

// -- showing --------------------------------------------------------------------------------------

// Share of the steady part that the busiest stage computed; 0 without one.
static double steady_share(const struct simulation_report *r) {
    uint64_t busy_ns = 0;
    for (uint32_t i = 0; i < PIPELINE_STAGE_COUNT_MAX; i++)
        if (r->steady_busy_ns[i] > busy_ns) busy_ns = r->steady_busy_ns[i];
    return r->steady_ns > 0 ? (double)busy_ns / (double)r->steady_ns : 0.0;
}

static json_t *report_json(const struct simulation_settings *settings,
                           const struct simulation_report *r, const char *command) {
    json_t *out = json_pack("{s:s}", "command", command);
    for (int i = 0; i < SIMULATION_NUMBER_COUNT; i++)
        json_object_set_new(out, simulation_option((enum simulation_number)i)->name,
                            json_of_u64(settings->numbers[i]));
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {
        {"seed", settings->seed},
        {"end_ns", r->end_ns},
        {"first_token_ns", r->first_token_ns},
        {"events", r->event_count},
        {"steps", r->step_count},
        {"computed_rows", r->row_count},
        {"requests_done", r->done_count},
        {"requests_cancelled", r->cancelled_count},
        {"requests_refused", r->refused_count},
        {"requests_failed", r->failed_count},
        {"prompt_tokens", r->prompt_token_count},
        {"tokens", r->token_count},
        {"cached_tokens", r->cached_token_count},
        {"wasted_rows", r->wasted_row_count},
        {"faults", r->fault_count},
        {"epochs", r->epoch_count},
        {"replays", r->replay_count},
        {"stale_frames", r->stale_frame_count},
        {"steady_ns", r->steady_ns},
        {"steady_steps", r->steady_step_count},
        {"steady_tokens", r->steady_token_count},
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        json_object_set_new(out, counts[i].name, json_of_u64(counts[i].value));
    json_object_set_new(out, "steady_busy_share", json_real(steady_share(r)));
    if (r->failure[0] != '\0') json_object_set_new(out, "failure", json_string(r->failure));
    return out;
}

static void print_report(const struct simulation_settings *settings,
                         const struct simulation_report *r) {
    double seconds = (double)r->end_ns / 1e9;
    printf("seed %" PRIu64 ": %" PRIu64 " stages, %" PRIu32 " requests done, %" PRIu32
           " cancelled, %" PRIu32 " failed in %.6f s (virtual), %" PRIu64
           " tokens, %.1f a second\n",
           settings->seed, settings->numbers[SIMULATION_STAGES], r->done_count, r->cancelled_count,
           r->failed_count + r->refused_count, seconds, r->token_count,
           seconds > 0 ? (double)r->token_count / seconds : 0.0);
    printf("  %" PRIu64 " steps, %" PRIu64 " rows (%" PRIu64 " wasted), %" PRIu64
           " prompt tokens cached\n",
           r->step_count, r->row_count, r->wasted_row_count, r->cached_token_count);
    printf("  %" PRIu32 " faults, %" PRIu32 " epochs, %" PRIu64 " replays, %" PRIu64
           " stale frames\n",
           r->fault_count, r->epoch_count, r->replay_count, r->stale_frame_count);
    if (r->steady_ns > 0)
        printf("  steady decode: %.1f tokens/s, the busiest stage computes %.1f %% of the time\n",
               (double)r->steady_token_count * 1e9 / (double)r->steady_ns, 100 * steady_share(r));
    for (uint64_t i = 0; i < settings->numbers[SIMULATION_STAGES] && r->end_ns > 0; i++)
        printf("  stage %" PRIu64 ": busy %.1f %%\n", i,
               100.0 * (double)r->busy_ns[i] / (double)r->end_ns);
}

// Whether every rule held.
static bool run_one(const struct simulation_settings *settings, bool as_json, bool is_only,
                    int *exit_status) {
    char command[1024];
    simulation_command(settings, command, sizeof(command));
    simulation_announce(settings);
    struct simulation_report report;
    struct error error;
    if (simulation_run(settings, &report, &error) != STATUS_OK) {
        client_report("%s", error.text);
        *exit_status = CLIENT_EXIT_USAGE;
        return false;
    }
    struct simulation_settings drawn = *settings;
    simulation_settings_draw(&drawn);
    if (as_json)
        *exit_status = json_print_line(report_json(&drawn, &report, command));
    else if (is_only || report.failure[0] != '\0')
        print_report(&drawn, &report);
    if (report.failure[0] == '\0') return true;
    client_report("%s\nrepeat with: %s", report.failure, command);
    *exit_status = EXIT_FAILURE;
    return false;
}

static int simulate(const struct arguments *arguments) {
    struct simulation_settings settings;
    if (!read_settings(arguments, &settings)) return CLIENT_EXIT_USAGE;
    log_init("simulate", arguments->is_verbose ? LOG_INFO : LOG_NONE);
    int exit_status = EXIT_SUCCESS;
    for (uint64_t i = 0; i < arguments->seed_count; i++) {
        settings.seed = arguments->seed + i;
        if (!run_one(&settings, arguments->as_json, arguments->seed_count == 1, &exit_status))
            return exit_status;
    }
    if (arguments->seed_count > 1 && !arguments->as_json)
        printf("%" PRIu64 " seeds, every rule held\n", arguments->seed_count);
    int output_status = client_finish_output();
    return exit_status != EXIT_SUCCESS ? exit_status : output_status;
}

// -- the command line -----------------------------------------------------------------------------

static void fill_number_specs(struct arguments *a, struct option_spec *specs) {
    for (int i = 0; i < SIMULATION_NUMBER_COUNT; i++) {
        const struct simulation_option *option = simulation_option((enum simulation_number)i);
        a->numbers[i] = SIMULATION_DRAWN;
        specs[i] = (struct option_spec){.name = option->name,
                                        .kind = OPTION_COUNT,
                                        .target = &a->numbers[i],
                                        .argument = "N",
                                        .help = option->help,
                                        .minimum = (double)option->minimum,
                                        .maximum = (double)option->maximum};
    }
}

int verb_simulate(int argc, char **argv) {
    struct arguments a = {.seed = 1,
                          .seed_count = 1,
                          .hop_us = -1.0,
                          .stage_us = -1.0,
                          .faults = "none",
                          .schedule = "pipelined",
                          .feedback = "direct",
                          .prefix_cache = "on"};
    struct option_spec specs[OWN_SPEC_COUNT + SIMULATION_NUMBER_COUNT] = {
        {"seed", OPTION_COUNT, &a.seed, "N", "what is not given is drawn from it (default 1)", 0,
         9e15},
        {"seeds", OPTION_COUNT, &a.seed_count, "N", "run this many, from --seed on (default 1)", 1,
         1e9},
        {"faults", OPTION_TEXT, &a.faults, "LIST",
         "all, none (default), or some of delay,loss,stall,crash,control,damage,load,cancel", 0, 0},
        {"hop-us", OPTION_NUMBER, &a.hop_us, "X", "--hop-ns in microseconds", 0, 1e6},
        {"stage-us", OPTION_NUMBER, &a.stage_us, "X", "--stage-ns in microseconds", 0, 1e6},
        {"schedule", OPTION_TEXT, &a.schedule, "NAME",
         "pipelined (default), or naive: one microbatch of everything at a time", 0, 0},
        {"feedback", OPTION_TEXT, &a.feedback, "NAME",
         "direct (default): rows go ahead of their tokens; or coordinator", 0, 0},
        {"prefix-cache", OPTION_TEXT, &a.prefix_cache, "on|off", "share blocks (default on)", 0, 0},
        {"long", OPTION_FLAG, &a.is_long, NULL, "check less, for large numbers", 0, 0},
        {"json", OPTION_FLAG, &a.as_json, NULL, "one JSON object a seed", 0, 0},
        {"verbose", OPTION_FLAG, &a.is_verbose, NULL, "log what the coordinator does", 0, 0},
    };
    fill_number_specs(&a, specs + OWN_SPEC_COUNT);
    const struct options options = {
        .program = "stagecoach simulate",
        .purpose =
            "Runs the coordinator's scheduler, block accounting, pipeline and recovery on a\n"
            "virtual clock, with simulated stages, links, clients and faults, and checks\n"
            "every rule after every event. What is not given is drawn from the seed.",
        .usage = "[options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    switch (options_parse(&options, argc, argv, &positional_count)) {
    case OPTIONS_RUN:
        return simulate(&a);
    case OPTIONS_EXIT_OK:
        return EXIT_SUCCESS;
    case OPTIONS_EXIT_USAGE:
        break;
    }
    return CLIENT_EXIT_USAGE;
}
