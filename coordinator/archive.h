// archive: a ZIP archive made in memory (PKWARE APPNOTE.TXT 6.3), its files deflated. It has no
// times in it: the same files in the same order make the same bytes.
#pragma once

#include "base/memory.h"

struct archive {
    struct buffer bytes;     // the archive, once finished
    struct buffer directory; // what archive_finish() puts behind the files
    uint16_t file_count;
};

void archive_init(struct archive *archive, size_t limit_bytes);
void archive_fini(struct archive *archive);

// STATUS_EXHAUSTED: beyond the limit, or too many files or too long a name for the format.
// STATUS_NO_MEMORY. After a failure the archive is of no use.
MUST_USE enum status archive_add(struct archive *archive, const char *name, const void *data,
                                 size_t size_bytes);
// Nothing can be added after this. The same failures.
MUST_USE enum status archive_finish(struct archive *archive);
