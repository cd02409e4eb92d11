"""Ends its sending side right after the request and reads to the end. Prints what it got, or `nothing`."""

import socket
import sys

host, port = sys.argv[1].split(":")
with socket.create_connection((host, int(port)), timeout=30) as connection:
    connection.sendall(b"POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    connection.shutdown(socket.SHUT_WR)
    answer = b""
    while piece := connection.recv(4096):
        answer += piece
    print(answer.split()[1].decode() if answer else "nothing", flush=True)
