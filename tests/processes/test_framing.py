"""Message framing: objects sent through a socket, with arrays outside the pickle."""

from __future__ import annotations

import socket
import threading
from typing import Any

import numpy as np
import pytest

from sweep.processes import framing


@pytest.mark.parametrize("size", [0, 1, framing.MAPPED - 1, framing.MAPPED, 5 * framing.MAPPED + 3])
def test_sent_objects_are_received(size: int) -> None:
    array = np.arange(size, dtype=np.int64).view(np.uint8)[:size]
    value = {"array": array, "more": [array[::2], "text", None], "same": array}
    near, far = socket.socketpair()
    with near, far:
        frame = framing.pack(value)
        sender = threading.Thread(target=framing.send, args=(near, 2**40 + size, frame))
        sender.start()
        number, received = framing.receive(far)
        sender.join()
    copy: Any = framing.unpack(received)
    assert number == 2**40 + size and copy["more"][1:] == ["text", None]
    assert np.array_equal(copy["array"], array) and np.array_equal(copy["more"][0], array[::2])
    if size:
        copy["array"][0] = 7  # the receiver owns its memory
        assert copy["same"][0] == 7 and array[0] == 0


def test_arrays_are_not_part_of_the_pickle() -> None:
    array = np.zeros(2**20, np.float32)
    frame = framing.pack(("name", array))
    assert [part.nbytes for part in frame[1:]] == [array.nbytes] and frame[0].nbytes < 1000


def test_an_incomplete_frame_raises_eof_error() -> None:
    for sent in (0, 3, 16, 20, 100):
        near, far = socket.socketpair()
        with near, far:
            frame = b"".join([framing.HEAD.pack(1, 1), (1000).to_bytes(8, "big"), bytes(1000)])
            near.sendall(frame[:sent])
            near.close()
            with pytest.raises(EOFError):
                framing.receive(far)
