"""Sends reads and writes in one go on one connection and prints the answers in the order in which they come."""

import socket
import sys

REQUESTS = [("GET", 1, ""), ("POST", 2, "two"), ("GET", 3, ""), ("POST", 4, "four"), ("GET", 5, "")]


def request(method, number, body):
    head = f"{method} /{number} HTTP/1.1\r\nHost: a\r\nX-Request-Id: r{number}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def answer(stream):
    status = stream.readline().split()[1].decode()
    headers = {}
    while line := stream.readline().strip().decode():
        name, value = line.split(": ", 1)
        headers[name] = value
    stream.read(int(headers["content-length"]))
    return f"{headers['x-request-id']} {status} {headers['x-side']}"


host, port = sys.argv[1].split(":")
with socket.create_connection((host, int(port)), timeout=30) as connection:
    connection.sendall(b"".join(request(*one) for one in REQUESTS))
    stream = connection.makefile("rb")
    for _ in REQUESTS:
        print(answer(stream), flush=True)
