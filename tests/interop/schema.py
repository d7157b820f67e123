"""Messages and stubs from a descriptor set, without generated code.

Works with the grpcio and protobuf of build/venv and with Debian's: neither protoc's plugins nor the
version of the generated code matter.
"""

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


class Schema:
    """The messages and services of an encoded FileDescriptorSet."""

    def __init__(self, data):
        self.files = descriptor_pb2.FileDescriptorSet.FromString(data)
        self.pool = descriptor_pool.DescriptorPool()
        for file in self.files.file:
            self.pool.Add(file)
        self.services = {f"{file.package}.{service.name}": service
                         for file in self.files.file for service in file.service}

    def message(self, name):
        """The class of a message by its full name."""
        descriptor = self.pool.FindMessageTypeByName(name.lstrip("."))
        if hasattr(message_factory, "GetMessageClass"):
            return message_factory.GetMessageClass(descriptor)
        return message_factory.MessageFactory(self.pool).GetPrototype(descriptor)

    def methods(self, service):
        """(name, input class, output class, client streams, server streams) of each method."""
        for method in self.services[service].method:
            yield (method.name, self.message(method.input_type), self.message(method.output_type),
                   method.client_streaming, method.server_streaming)

    def stub(self, channel, service):
        return Stub(self, channel, service)

    def handler(self, service, functions):
        """For grpc.Server.add_generic_rpc_handlers: the methods that `functions` has, by name."""
        handlers = {}
        for name, request, response, client_streams, server_streams in self.methods(service):
            if name in functions:
                make = getattr(grpc, f"{_word(client_streams)}_{_word(server_streams)}"
                                     "_rpc_method_handler")
                handlers[name] = make(functions[name], request_deserializer=request.FromString,
                                      response_serializer=response.SerializeToString)
        return grpc.method_handlers_generic_handler(service, handlers)


class Stub:
    """A callable for each method of a service, as generated stubs have them."""

    def __init__(self, schema, channel, service):
        for name, request, response, client_streams, server_streams in schema.methods(service):
            make = getattr(channel, f"{_word(client_streams)}_{_word(server_streams)}")
            setattr(self, name, make(f"/{service}/{name}",
                                     request_serializer=request.SerializeToString,
                                     response_deserializer=response.FromString))


def _word(is_stream):
    return "stream" if is_stream else "unary"
