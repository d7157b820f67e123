// status_view: the state of a pipeline as text for people.
#pragma once

#include <stdio.h>

#include "stagecoach/v1/admin.pb-c.h"

// What it is and does, its stages and their layers, and the meters. Lines end with `line_end`, such
// as "\n".
void status_view_write(FILE *file, const Stagecoach__V1__Pipeline *pipeline, const char *line_end);
