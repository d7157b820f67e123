// stagecoach-coordinator: see --help.
#include "base/signals.h"
#include "coordinator/access_log.h"
#include "coordinator/coordinator.h"

int main(int argc, char **argv) {
    signals_block();
    struct settings settings;
    enum options_result result = settings_parse(argc, argv, &settings);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? 0 : 2;
    log_init("coordinator", settings.log_level);
    log_set_format(settings.log_format);
    access_log_enable(!settings.no_access_log);
    struct error error;
    if (coordinator_run(&settings, &error) == STATUS_OK) return 0;
    log_error("%s", error.text);
    return 1;
}
