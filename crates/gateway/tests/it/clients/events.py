"""Reads server-sent events as a browser does: until the stream is cut, then it connects again. Prints side and first event of each
connection, and how it ended."""

import http.client
import sys


def first_event(address):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/events", headers={"Accept": "text/event-stream"})
    answer = connection.getresponse()
    print(answer.status, answer.headers["x-side"], answer.readline().decode().strip(), flush=True)
    return connection, answer


connection, answer = first_event(sys.argv[1])
try:
    answer.read()
    print("ended as if it were whole", flush=True)
except (http.client.IncompleteRead, ConnectionError):
    print("cut", flush=True)
first_event(sys.argv[1])
