"""Objects through a socket, arrays beside the pickle."""

from __future__ import annotations

import socket
import threading
from typing import Any

import numpy as np
import pytest

from sweep import frames


@pytest.mark.parametrize("size", [0, 1, frames.MAPPED - 1, frames.MAPPED, 5 * frames.MAPPED + 3])
def test_what_is_sent_is_received(size: int) -> None:
    array = np.arange(size, dtype=np.int64).view(np.uint8)[:size]
    value = {"array": array, "more": [array[::2], "text", None], "same": array}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frame = frames.pack(value)
        sender = threading.Thread(target=frames.send, args=(ours, 2**40 + size, frame))
        sender.start()
        number, received = frames.receive(theirs)
        sender.join()
    found: Any = frames.unpack(received)
    assert number == 2**40 + size and found["more"][1:] == ["text", None]
    assert np.array_equal(found["array"], array) and np.array_equal(found["more"][0], array[::2])
    if size:
        found["array"][0] = 7  # it is its receiver's own
        assert found["same"][0] == 7 and array[0] == 0


def test_an_array_travels_beside_the_pickle() -> None:
    array = np.zeros(2**20, np.float32)
    frame = frames.pack(("name", array))
    assert [part.nbytes for part in frame[1:]] == [array.nbytes] and frame[0].nbytes < 1000


def test_an_end_in_the_middle_is_noticed() -> None:
    for sent in (0, 3, 16, 20, 100):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            whole = b"".join([frames.HEAD.pack(1, 1), (1000).to_bytes(8, "big"), bytes(1000)])
            ours.sendall(whole[:sent])
            ours.close()
            with pytest.raises(EOFError):
                frames.receive(theirs)
