"""Speak to a target's control socket with nothing but the standard library.

    python examples/control.py disk.img.sock '{"version": 1, "verb": "info"}'

One JSON object a line goes in, one comes out. ``docs/reference/control-socket.md`` lists the verbs. With a
file as third argument, that file is opened here and its descriptor is sent along: the target then needs no
right to open it.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def call(path: str, request: str, image: str | None = None) -> dict[str, object]:
    """Send one request and return the answer: ``ok`` or ``error`` is one of its members."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        fds = [] if image is None else [os.open(image, os.O_RDWR | os.O_CLOEXEC)]
        socket.send_fds(client, [request.encode() + b"\n"], fds)
        for fd in fds:
            os.close(fd)
        with client.makefile("rb") as answers:
            answer: dict[str, object] = json.loads(answers.readline())
            return answer


if __name__ == "__main__":
    answer = call(f"{sys.argv[1]}.ctl", *sys.argv[2:])
    print(json.dumps(answer, indent=2))
    sys.exit("error" in answer)
