// model: what the coordinator serves.
#include <stdio.h>
#include <stdlib.h>

#include "client/client.h"
#include "client/message_json.h"
#include "client/verbs.h"
#include "stagecoach/v1/inference.pb-c.h"

static int print_table(const Stagecoach__V1__Model *model) {
    printf("name               %s\n", model->name);
    printf("architecture       %s\n", model->architecture);
    printf("layers             %u\n", model->layer_count);
    printf("hidden size        %u\n", model->hidden_size);
    printf("vocabulary         %u\n", model->vocabulary_size);
    printf("positions          %u\n", model->position_count_max);
    printf("end-of-text ids   ");
    for (size_t i = 0; i < model->n_eos_token_ids; i++)
        printf(" %u", model->eos_token_ids[i]);
    printf("\nweights            %s\n", model->weight_dtype);
    printf("activations        %s\n", model->activation_dtype);
    printf("KV memory          %s\n", model->kv_dtype);
    return client_finish_output();
}

int verb_model(int argc, char **argv) {
    const char *coordinator = CLIENT_COORDINATOR_DEFAULT;
    bool as_json = false;
    const struct option_spec specs[] = {
        CLIENT_OPTION_COORDINATOR(&coordinator),
        {.name = "json", .kind = OPTION_FLAG, .target = &as_json, .help = "one line of JSON"},
    };
    const struct options options = {
        .program = "stagecoach model",
        .purpose = "shows the model that the coordinator serves.",
        .usage = "[options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    struct client client;
    if (!client_open(coordinator, &client)) return EXIT_FAILURE;
    Stagecoach__V1__GetModelRequest request = STAGECOACH__V1__GET_MODEL_REQUEST__INIT;
    ProtobufCMessage *response =
        client_call(&client, &stagecoach__v1__inference__descriptor, "GetModel", &request.base);
    int exit_status = EXIT_FAILURE;
    if (response != NULL) {
        exit_status = as_json ? json_print_line(message_json(response))
                              : print_table((Stagecoach__V1__Model *)response);
        protobuf_c_message_free_unpacked(response, NULL);
    }
    client_close(&client);
    return exit_status;
}
