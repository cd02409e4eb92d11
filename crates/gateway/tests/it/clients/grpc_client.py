"""A unary and a server-streaming call, each for one line of input; prints what came."""

import sys

import grpc

with grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)]) as channel:
    place, watch = channel.unary_unary("/shop.Orders/Place"), channel.unary_stream("/shop.Orders/Watch")
    for line in sys.stdin:
        order = line.strip().encode()
        print(place(order, timeout=30, wait_for_ready=True).decode(), flush=True)
        print(", ".join(event.decode() for event in watch(order, timeout=30)), flush=True)
