"""Work in another thread, as a generator of what it writes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.demo.streaming import StoppedError, streamed


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(1) as threads:
        yield threads


def taken(generator):
    """What it yields, and what it returns."""
    pieces = []
    while True:
        try:
            pieces.append(next(generator))
        except StopIteration as end:
            return pieces, end.value


def test_pieces_come_in_order_and_the_result_last(executor):
    def work(write):
        for piece in ("a", "b ", "c"):
            write(piece)
        return 3

    assert taken(streamed(executor, work)) == (["a", "b ", "c"], 3)


def test_a_piece_is_there_before_the_work_ends(executor):
    seen = threading.Event()

    def work(write):
        write("first")
        assert seen.wait(20)

    stream = streamed(executor, work)
    assert next(stream) == "first"
    seen.set()
    assert taken(stream) == ([], None)


def test_errors_come_after_what_was_written(executor):
    def work(write):
        write("a")
        raise ValueError("no more")

    stream = streamed(executor, work)
    assert next(stream) == "a"
    with pytest.raises(ValueError, match="no more"):
        next(stream)


def test_closing_ends_the_work(executor):
    ended = threading.Event()

    def endless(write):
        try:
            while True:
                write("again")
        except StoppedError:
            ended.set()
            raise

    stream = streamed(executor, endless)
    assert next(stream) == "again"
    stream.close()
    assert ended.wait(20)
    assert taken(streamed(executor, lambda write: 1)) == ([], 1)  # and the thread is free
