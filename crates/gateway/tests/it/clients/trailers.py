"""Uploads in chunks, with a trailer behind them, and prints the status."""

import socket
import sys

HEAD = "PUT /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n"

host, port = sys.argv[1].split(":")
with socket.create_connection((host, int(port)), timeout=30) as connection:
    connection.sendall(HEAD.encode())
    for piece in ["one", "and another"]:
        connection.sendall(f"{len(piece):x}\r\n{piece}\r\n".encode())
    connection.sendall(b"0\r\nx-sum: 42\r\n\r\n")
    print(connection.recv(4096).split()[1].decode(), flush=True)
