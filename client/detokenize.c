// detokenize: token ids to text.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/message_json.h"
#include "client/parse.h"
#include "client/verbs.h"
#include "stagecoach/v1/inference.pb-c.h"

static int print_text(const Stagecoach__V1__DetokenizeResponse *response) {
    printf("%s\n", response->text);
    return client_finish_output();
}

static int detokenize(const struct client_options *connection, uint32_t *ids, size_t id_count,
                      bool keep_special_tokens, bool as_json) {
    struct client client;
    if (!client_open(connection, NULL, &client)) return EXIT_FAILURE;
    Stagecoach__V1__DetokenizeRequest request = STAGECOACH__V1__DETOKENIZE_REQUEST__INIT;
    request.token_ids = ids;
    request.n_token_ids = id_count;
    request.keep_special_tokens = keep_special_tokens;
    ProtobufCMessage *response =
        client_call(&client, &stagecoach__v1__inference__descriptor, "Detokenize", &request.base);
    int exit_status = EXIT_FAILURE;
    if (response != NULL) {
        exit_status = as_json ? json_print_line(message_json(response))
                              : print_text((Stagecoach__V1__DetokenizeResponse *)response);
        protobuf_c_message_free_unpacked(response, NULL);
    }
    client_close(&client);
    return exit_status;
}

// The ids of the command line or of standard input; the caller frees them. False: reported.
static bool read_ids(const char *argument, uint32_t **ids_out, size_t *id_count_out) {
    struct error error;
    char *text = NULL;
    if (argument == NULL || strcmp(argument, "-") == 0) {
        if (parse_standard_input(&text, &error) != STATUS_OK) goto report;
        argument = text;
    }
    enum status status = parse_token_ids("token-ids", argument, ids_out, id_count_out, &error);
    free(text);
    if (status == STATUS_OK) return true;
report:
    client_report("%s", error.text);
    return false;
}

int verb_detokenize(int argc, char **argv) {
    struct client_options connection = CLIENT_OPTIONS_DEFAULT;
    const char *token_ids = NULL;
    bool keep_special_tokens = false, as_json = false;
    const struct option_spec specs[] = {
        CLIENT_OPTION_SPECS(&connection),
        {.name = "token-ids",
         .kind = OPTION_TEXT,
         .target = &token_ids,
         .argument = "IDS",
         .help = "the same as the argument, such as 1,2,3"},
        {.name = "keep-special-tokens",
         .kind = OPTION_FLAG,
         .target = &keep_special_tokens,
         .help = "show special tokens, such as the end of the text"},
        {.name = "json", .kind = OPTION_FLAG, .target = &as_json, .help = "one line of JSON"},
    };
    const struct options options = {
        .program = "stagecoach detokenize",
        .purpose = "turns token ids into text; without IDS or with -, standard input.",
        .usage = "[options] [IDS]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
        .positional_max = 1,
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    if (positional_count == 1) token_ids = argv[1];
    uint32_t *ids;
    size_t id_count;
    if (!read_ids(token_ids, &ids, &id_count)) return CLIENT_EXIT_USAGE;
    int exit_status = detokenize(&connection, ids, id_count, keep_special_tokens, as_json);
    free(ids);
    return exit_status;
}
