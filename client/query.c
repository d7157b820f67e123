#include "client/query.h"

#include <stdlib.h>

#include "client/client.h"
#include "client/message_json.h"

int query_run(const struct query *query, int argc, char **argv) {
    struct client_options connection = CLIENT_OPTIONS_DEFAULT;
    bool as_json = false;
    const struct option_spec specs[] = {
        CLIENT_OPTION_SPECS(&connection),
        {.name = "json", .kind = OPTION_FLAG, .target = &as_json, .help = "one line of JSON"},
    };
    const struct options options = {
        .program = query->program,
        .purpose = query->purpose,
        .usage = "[options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    struct client client;
    if (!client_open(&connection, NULL, &client)) return EXIT_FAILURE;
    ProtobufCMessage *response =
        client_call(&client, query->service, query->method, query->request);
    int exit_status = EXIT_FAILURE;
    if (response != NULL) {
        exit_status =
            as_json ? json_print_line(message_json(response)) : query->print_table(response);
        protobuf_c_message_free_unpacked(response, NULL);
    }
    client_close(&client);
    return exit_status;
}
