#include "stage/settings.h"

#include <stdio.h>

#include "base/limits.h"

static bool cores_set(const char *text, struct settings *s) {
    struct error error;
    if (core_request_parse(text, &s->cores, &error) != STATUS_OK) {
        fprintf(stderr, "stagecoach-stage: --cores is '%s': %s\n", text, error.text);
        return false;
    }
    if (core_request_check(&s->cores, (uint32_t)s->thread_count, &error) != STATUS_OK) {
        fprintf(stderr, "stagecoach-stage: %s\n", error.text);
        return false;
    }
    return true;
}

enum options_result settings_parse(int argc, char **argv, struct settings *settings_out) {
    struct settings s = {
        .data_listen = "127.0.0.1:0", .kernel = "auto", .drain_seconds = 30, .stall_seconds = 60};
    const char *log_level = "info", *log_format = "text", *cores = NULL;
    const struct option_spec specs[] = {
        {"coordinator", OPTION_TEXT, &s.coordinator, "HOST:PORT",
         "the coordinator to join (required)", 0, 0},
        {"model", OPTION_TEXT, &s.model_path, "DIR",
         "this machine's copy of the model (default: the coordinator's path)", 0, 0},
        {"name", OPTION_TEXT, &s.name, "NAME",
         "unique name in status and logs (default: host name and process id)", 0, 0},
        {"data-listen", OPTION_TEXT, &s.data_listen, "HOST:PORT",
         "where neighbours send activations, port 0 for any (default 127.0.0.1:0)", 0, 0},
        RPC_ACCESS_OPTIONS_TLS(&s.access),
        RPC_ACCESS_OPTIONS_DIAL(&s.access),
        {"insecure", OPTION_FLAG, &s.access.insecure, NULL,
         "plaintext also beyond loopback: --listen, and a token that is sent", 0, 0},
        {"listen", OPTION_TEXT, &s.listen, "HOST:PORT",
         "where it answers health checks, port 0 for any (default: nowhere)", 0, 0},
        {"port-file", OPTION_TEXT, &s.port_file, "PATH",
         "file that gets the port of --listen once it is open", 0, 0},
        {"threads", OPTION_COUNT, &s.thread_count, "N",
         "compute threads (default: one for each physical core, within the CPU quota)", 1,
         TEAM_THREAD_COUNT_MAX},
        {"cores", OPTION_TEXT, &cores, "LIST",
         "pin compute threads: to 0-3,8 one thread a core; 1/2 is the first of two equal shares "
         "of the machine (default: not pinned)",
         0, 0},
        {"kernel", OPTION_TEXT, &s.kernel, "NAME",
         "auto, avx512bf16, avx512, avx2, portable or reference (default auto)", 0, 0},
        {"drain-seconds", OPTION_NUMBER, &s.drain_seconds, "S",
         "after SIGTERM, how long it stays for the coordinator's running requests (default 30)", 0,
         86400},
        {"stall-seconds", OPTION_NUMBER, &s.stall_seconds, "S",
         "not ready when frames wait and nothing is computed for so long (default 60)", 0.1, 86400},
        {"log-level", OPTION_TEXT, &log_level, "LEVEL", "error, warn, info or debug (default info)",
         0, 0},
        {"log-format", OPTION_TEXT, &log_format, "FORMAT",
         "lines of the log: text, or json for one object each (default text)", 0, 0},
    };
    const struct options options = {
        .program = "stagecoach-stage",
        .purpose = "runs the range of a model's layers that a coordinator assigns to it",
        .usage = "--coordinator HOST:PORT [options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN) return result;
    if (s.coordinator == NULL) {
        fprintf(stderr, "stagecoach-stage: --coordinator is required, see --help\n");
        return OPTIONS_EXIT_USAGE;
    }
    if (s.port_file != NULL && s.listen == NULL) {
        fprintf(stderr, "stagecoach-stage: --port-file needs --listen\n");
        return OPTIONS_EXIT_USAGE;
    }
    if (!log_level_parse(log_level, &s.log_level)) {
        fprintf(stderr,
                "stagecoach-stage: --log-level is '%s', it must be error, warn, info or debug\n",
                log_level);
        return OPTIONS_EXIT_USAGE;
    }
    if (!log_format_parse(log_format, &s.log_format)) {
        fprintf(stderr, "stagecoach-stage: --log-format is '%s', it must be text or json\n",
                log_format);
        return OPTIONS_EXIT_USAGE;
    }
    if (cores != NULL && !cores_set(cores, &s)) return OPTIONS_EXIT_USAGE;
    *settings_out = s;
    return OPTIONS_RUN;
}
