"""Objects through a socket, with their arrays beside the pickle: those are copied by the kernel, and by nobody else.

`multiprocessing.Connection` reads 200 KiB at a time, and wants Python's interpreter after each: where another thread is
busy in that, a megabyte took 25 ms.
"""

from __future__ import annotations

import mmap
import pickle
import socket
import struct
from typing import Any

Frame = list[memoryview]  # a pickle, and what it refers to

HEAD = struct.Struct("!QQ")  # a frame's number, and how many parts it has, whose lengths follow
MAPPED = 2**20  # bytes from which on a part has pages of its own, which nobody has to fill with zeros first


def pack(value: Any) -> Frame:
    """Return an object as a frame.  Raises what pickling it raises."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return [memoryview(pickled), *(buffer.raw() for buffer in buffers)]


def unpack(frame: Frame) -> Any:
    """Return the object, whose arrays are the frame's own memory."""
    return pickle.loads(frame[0], buffers=frame[1:])


def send(to: socket.socket, number: int, frame: Frame) -> None:
    """Send a frame with a number.

    Raises:
        OSError: the other side is gone.
    """
    to.sendall(HEAD.pack(number, len(frame)) + struct.pack(f"!{len(frame)}Q", *(part.nbytes for part in frame)))
    for part in frame:
        to.sendall(part)


def receive(of: socket.socket) -> tuple[int, Frame]:
    """Wait for a frame and its number.

    Raises:
        EOFError: the other side has closed the socket.
        OSError: it is gone otherwise.
    """
    number, parts = HEAD.unpack(_read(of, HEAD.size))
    lengths = struct.Struct(f"!{parts}Q")
    return number, [_read(of, length) for length in lengths.unpack(_read(of, lengths.size))]


def _read(of: socket.socket, length: int) -> memoryview:
    whole = memoryview(mmap.mmap(-1, length) if length >= MAPPED else bytearray(length))
    done = 0
    while done < length:
        read = of.recv_into(whole[done:], length - done, socket.MSG_WAITALL)
        if not read:
            raise EOFError("the other side has closed the socket")
        done += read
    return whole
