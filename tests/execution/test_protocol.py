"""The pipe between worker and parent: every whole message arrives, in order, however it was cut on the way."""

import json
import os
import threading

from memsim.execution.protocol import PIPE_BYTES, Messages, read_messages


def sent(lines: list[bytes]) -> list[object]:
    """Return what the parent reads of ``lines``, written one by one, of which the pipe cannot hold all at once."""
    read_end, write_end = os.pipe()

    def write() -> None:
        for line in lines:
            os.write(write_end, line)
        os.close(write_end)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(read_end, "rb") as pipe:
        found = list(read_messages(pipe))
    writer.join()
    return found


def test_more_messages_than_a_pipe_holds_arrive_in_order() -> None:
    lines = [json.dumps([index, 0.5, 0.25, index * index]).encode() + b"\n" for index in range(5000)]
    assert sum(map(len, lines)) > PIPE_BYTES
    assert sent(lines) == [[index, 0.5, 0.25, index * index] for index in range(5000)]


def test_a_message_cut_in_two_is_one_and_a_last_one_cut_short_is_dropped() -> None:
    assert sent([b'{"kind": "st', b'ep"}\n[1, 2', b", 3]\n[4"]) == [{"kind": "step"}, [1, 2, 3]]
    assert sent([b"[1"]) == sent([]) == []


def test_messages_are_what_the_worker_sends() -> None:
    read_end, write_end = os.pipe()
    messages = Messages(write_end)
    messages.send("stage", name="packing")
    messages.send_node(7, 1.5, 0.25, 4096)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert list(read_messages(pipe)) == [{"kind": "stage", "name": "packing"}, [7, 1.5, 0.25, 4096]]
