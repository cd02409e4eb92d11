"""A gRPC server without generated code: `Place` answers once, `Watch` three times, both with this server's name. Prints its port."""

import sys
from concurrent import futures

import grpc


def place(request, _context):
    return f"{sys.argv[1]} placed {request.decode()}".encode()


def watch(request, _context):
    for number in range(3):
        yield f"{sys.argv[1]} {request.decode()} {number}".encode()


server = grpc.server(futures.ThreadPoolExecutor(4))
methods = {
    "Place": grpc.unary_unary_rpc_method_handler(place),
    "Watch": grpc.unary_stream_rpc_method_handler(watch),
}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("shop.Orders", methods)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
