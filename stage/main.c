// stagecoach-stage: see --help.
#include "base/signals.h"
#include "stage/control.h"

int main(int argc, char **argv) {
    signals_block();
    struct settings settings;
    enum options_result result = settings_parse(argc, argv, &settings);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? 0 : 2;
    log_init(settings.name != NULL ? settings.name : "stage", settings.log_level);
    log_set_format(settings.log_format);
    struct error error;
    if (control_run(&settings, &error) == STATUS_OK) return 0;
    log_error("%s", error.text);
    return 1;
}
