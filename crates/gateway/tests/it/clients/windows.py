"""One HTTP/2 connection with a write that fills its window, reads beside it, and a second write that is taken back. Waits for a
line of input before each next step."""

import socket
import sys

import h2.config
import h2.connection
import h2.events

BODY = b"w" * 300_000


class Client:
    def __init__(self, address):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.answers, self.sent = {}, {}
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def start(self, method, path, has_body=False):
        stream = self.h2.get_next_available_stream_id()
        names = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)]
        self.h2.send_headers(stream, names, end_stream=not has_body)
        self.flush()
        return stream

    def push(self, stream):
        """Sends as much of the body as the windows take; true when it is all out."""
        sent = self.sent.get(stream, 0)
        while sent < len(BODY):
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(BODY) - sent)
            if room == 0:
                break
            self.h2.send_data(stream, BODY[sent : sent + room], end_stream=sent + room == len(BODY))
            sent += room
        self.sent[stream] = sent
        self.flush()
        return sent == len(BODY)

    def receive(self):
        data = self.socket.recv(65536)
        assert data, "the gateway closed"
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                headers = dict(event.headers)
                self.answers[event.stream_id] = f"{headers[':status']} {headers['x-side']}"
            elif isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                raise SystemExit(f"unexpected {event}")
        self.flush()

    def answer(self, stream):
        while stream not in self.answers:
            self.receive()
        return self.answers[stream]


def say(*words):
    print(*words, flush=True)
    sys.stdin.readline()


client = Client(sys.argv[1])
write = client.start("PUT", "/stuck", has_body=True)
assert not client.push(write), "the body went out at once"
say("stuck after", client.sent[write])
reads = [client.answer(client.start("GET", f"/beside/{number}")) for number in range(5)]
say("reads", *reads)
back = client.start("POST", "/back", has_body=True)
say("another")
client.h2.reset_stream(back, error_code=8)
client.flush()
say("taken back")
while write not in client.answers and not client.push(write):
    client.receive()
say("write", client.answer(write))
