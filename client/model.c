// model: what the coordinator serves.
#include <stdio.h>

#include "client/client.h"
#include "client/query.h"
#include "client/verbs.h"
#include "stagecoach/v1/inference.pb-c.h"

static int print_table(const ProtobufCMessage *response) {
    const Stagecoach__V1__Model *model = (const Stagecoach__V1__Model *)response;
    printf("name               %s\n", model->name);
    printf("architecture       %s\n", model->architecture);
    printf("layers             %u\n", model->layer_count);
    printf("hidden size        %u\n", model->hidden_size);
    printf("vocabulary         %u\n", model->vocabulary_size);
    printf("positions          %u\n", model->position_count_max);
    printf("end-of-text ids   ");
    for (size_t i = 0; i < model->n_eos_token_ids; i++)
        printf(" %u", model->eos_token_ids[i]);
    printf("\nweights            %s, from %s, kept as %s\n", model->weight_dtype,
           model->load_format, model->weight_format);
    printf("activations        %s\n", model->activation_dtype);
    printf("KV memory          %s\n", model->kv_dtype);
    return client_finish_output();
}

int verb_model(int argc, char **argv) {
    Stagecoach__V1__GetModelRequest request = STAGECOACH__V1__GET_MODEL_REQUEST__INIT;
    const struct query query = {
        .program = "stagecoach model",
        .purpose = "shows the model that the coordinator serves.",
        .service = &stagecoach__v1__inference__descriptor,
        .method = "GetModel",
        .request = &request.base,
        .print_table = print_table,
    };
    return query_run(&query, argc, argv);
}
