"""Message framing: send pickled objects through a socket, with arrays outside the pickle to avoid copies.

`multiprocessing.Connection` reads 200 KiB at a time and needs the GIL after each read. With another thread busy in
Python, a megabyte took 25 ms.
"""

from __future__ import annotations

import mmap
import pickle
import socket
import struct
from typing import Any

Frame = list[memoryview]  # a pickle, followed by the buffers of its arrays

HEAD = struct.Struct("!QQ")  # message id and number of parts; the lengths of the parts follow
MAPPED = 2**20  # bytes from which a part is received into mapped pages, which need not be filled with zeros first


def pack(value: Any) -> Frame:
    """Return an object as a frame.

    Raises:
        Exception: the object cannot be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return [memoryview(pickled), *(buffer.raw() for buffer in buffers)]


def unpack(frame: Frame) -> Any:
    """Return the object of a frame; its arrays use the memory of the frame."""
    return pickle.loads(frame[0], buffers=frame[1:])


def send(connection: socket.socket, number: int, frame: Frame) -> None:
    """Send a frame with its message id.

    Raises:
        OSError: the connection is broken.
    """
    connection.sendall(HEAD.pack(number, len(frame)) + struct.pack(f"!{len(frame)}Q", *(part.nbytes for part in frame)))
    for part in frame:
        connection.sendall(part)


def receive(connection: socket.socket) -> tuple[int, Frame]:
    """Wait for a frame; return its message id and the frame.

    Raises:
        EOFError: the other side has closed the connection.
        OSError: the connection is broken.
    """
    number, parts = HEAD.unpack(_read(connection, HEAD.size))
    lengths = struct.Struct(f"!{parts}Q")
    return number, [_read(connection, length) for length in lengths.unpack(_read(connection, lengths.size))]


def _read(connection: socket.socket, length: int) -> memoryview:
    buffer = memoryview(mmap.mmap(-1, length) if length >= MAPPED else bytearray(length))
    received = 0
    while received < length:
        count = connection.recv_into(buffer[received:], length - received, socket.MSG_WAITALL)
        if not count:
            raise EOFError("the other side has closed the connection")
        received += count
    return buffer
