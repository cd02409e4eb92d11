"""A WebSocket echo server: answers each message with its own name before it. Prints its port."""

import sys

from websockets.sync.server import serve


def echo(connection):
    for message in connection:
        connection.send(f"{sys.argv[1]}:{message}")


with serve(echo, "127.0.0.1", 0) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
