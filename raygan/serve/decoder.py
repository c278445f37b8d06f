"""A process that decodes uploads for the gateway: whatever a file does to a decoder, it does to this process alone.

It reads requests from standard input and writes answers to standard output, one after another. Its memory is limited;
the gateway limits its time (`workers.Decoders`). It imports little, so that another one starts quickly.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from typing import BinaryIO

from raygan.serve.uploads import Refused, decode_upload

#: A request: length of the file in bytes, side of the square in px, limit in megapixels; the file follows.
REQUEST = struct.Struct("!IId")

#: An answer: `DECODED` or an HTTP status, and the length of what follows: pixels, or the reason.
ANSWER = struct.Struct("!HI")
DECODED = 200

#: What the process writes once it can decode.
READY = b"ready"

#: Bytes of address space: many times what the largest permitted picture takes.
_MAX_MEMORY = 2 * 2**30


def main() -> None:
    """Answer until the gateway closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a decoder prints may reach the pipe
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    os.nice(5)  # computing samples comes first
    answers.write(READY)
    answers.flush()
    while _answer_one(sys.stdin.buffer, answers):
        pass


def _answer_one(requests: BinaryIO, answers: BinaryIO) -> bool:
    header = requests.read(REQUEST.size)
    if len(header) < REQUEST.size:
        return False
    length, size, max_megapixels = REQUEST.unpack(header)
    data = requests.read(length)
    try:
        status, body = DECODED, decode_upload(data, size, max_megapixels=max_megapixels).tobytes()
    except Refused as refused:
        status, body = refused.status, str(refused).encode()
    except MemoryError:
        status, body = 413, b"takes too much memory to decode"
    answers.write(ANSWER.pack(status, len(body)) + body)
    answers.flush()
    return True


if __name__ == "__main__":
    main()
