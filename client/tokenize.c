// tokenize: text to token ids.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/message_json.h"
#include "client/parse.h"
#include "client/verbs.h"
#include "stagecoach/v1/inference.pb-c.h"

static int print_ids(const Stagecoach__V1__TokenizeResponse *response) {
    for (size_t i = 0; i < response->n_token_ids; i++)
        printf("%s%u", i == 0 ? "" : " ", response->token_ids[i]);
    printf("\n");
    return client_finish_output();
}

static int tokenize(const struct client_options *connection, char *text, bool no_special_tokens,
                    bool as_json) {
    struct client client;
    if (!client_open(connection, NULL, &client)) return EXIT_FAILURE;
    Stagecoach__V1__TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    request.text = text;
    request.no_special_tokens = no_special_tokens;
    ProtobufCMessage *response =
        client_call(&client, &stagecoach__v1__inference__descriptor, "Tokenize", &request.base);
    int exit_status = EXIT_FAILURE;
    if (response != NULL) {
        exit_status = as_json ? json_print_line(message_json(response))
                              : print_ids((Stagecoach__V1__TokenizeResponse *)response);
        protobuf_c_message_free_unpacked(response, NULL);
    }
    client_close(&client);
    return exit_status;
}

int verb_tokenize(int argc, char **argv) {
    struct client_options connection = CLIENT_OPTIONS_DEFAULT;
    bool no_special_tokens = false, as_json = false;
    const struct option_spec specs[] = {
        CLIENT_OPTION_SPECS(&connection),
        {.name = "no-special-tokens",
         .kind = OPTION_FLAG,
         .target = &no_special_tokens,
         .help = "do not add the model's special tokens, such as a leading BOS"},
        {.name = "json", .kind = OPTION_FLAG, .target = &as_json, .help = "one line of JSON"},
    };
    const struct options options = {
        .program = "stagecoach tokenize",
        .purpose = "turns text into token ids; without TEXT or with -, standard input.",
        .usage = "[options] [TEXT]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
        .positional_max = 1,
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    if (positional_count == 1 && strcmp(argv[1], "-") != 0)
        return tokenize(&connection, argv[1], no_special_tokens, as_json);
    char *text;
    struct error error;
    if (parse_standard_input(&text, &error) != STATUS_OK) {
        client_report("%s", error.text);
        return EXIT_FAILURE;
    }
    int exit_status = tokenize(&connection, text, no_special_tokens, as_json);
    free(text);
    return exit_status;
}
