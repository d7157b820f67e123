// stage_profile: where a stage's time goes, by kind of operation. The linker puts these functions
// in place of the backend's (see CMakeLists.txt), so the stage itself knows nothing of it.
#pragma once

#include <jansson.h>

// Forgets what was counted.
void profile_reset(void);
// Prints the share of each kind in `seconds`, which were taken since the reset, and what is left
// for everything else; the same as a JSON object.
json_t *profile_report(double seconds);
