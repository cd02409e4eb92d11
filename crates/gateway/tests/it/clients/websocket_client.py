"""Sends a message on one connection for each line of its input, and prints the answers. When the connection is cut it says so
and opens the next one, as a page does."""

import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def talk(connection):
    while True:
        line = sys.stdin.readline().strip()
        if not line:
            return
        if line == "wait for the end":
            for _ in connection:
                pass
            raise ConnectionError("the end came")
        connection.send(line)
        print(connection.recv(), flush=True)


while True:
    try:
        with connect(f"ws://{sys.argv[1]}/", proxy=None, open_timeout=30) as connection:
            print("open", flush=True)
            talk(connection)
            break
    except (ConnectionClosed, ConnectionError):
        print("cut", flush=True)
