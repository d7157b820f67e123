// query: a verb that makes one call without arguments and shows the answer as a table or as JSON.
#pragma once

#include <protobuf-c/protobuf-c.h>

struct query {
    const char *program; // such as "stagecoach status"
    const char *purpose;
    const ProtobufCServiceDescriptor *service;
    const char *method;
    const ProtobufCMessage *request;
    int (*print_table)(const ProtobufCMessage *response); // gives the exit status
};

// The exit status of the verb.
int query_run(const struct query *query, int argc, char **argv);
