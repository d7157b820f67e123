#include "base/port_file.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum status port_file_write(const char *path, uint16_t port, struct error *error) {
    char temporary[PATH_MAX];
    int size = snprintf(temporary, sizeof(temporary), "%s.tmp", path);
    FILE *file = size < (int)sizeof(temporary) ? fopen(temporary, "w") : NULL;
    bool is_written = file != NULL && fprintf(file, "%u\n", (unsigned)port) > 0;
    if (file != NULL && fclose(file) != 0) is_written = false;
    if (!is_written || rename(temporary, path) != 0)
        return error_set(error, STATUS_IO, "--port-file %s: %s", path, strerror(errno));
    return STATUS_OK;
}
