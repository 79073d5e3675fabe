"""Independent work that runs side by side in threads."""

import os
import platform
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT

from parallel import side_by_side
from parallel.side_by_side import count_cores, map_side_by_side, run_side_by_side, stream_side_by_side


def test_results_come_in_the_order_of_the_items():
    assert map_side_by_side(lambda number: number**2, range(20)) == [number**2 for number in range(20)]
    assert run_side_by_side(lambda: "first", lambda: 2) == ["first", 2]


@pytest.mark.skipif(count_cores() < 2, reason="needs two cores")
def test_two_tasks_run_at_the_same_time():
    meeting = threading.Barrier(2)
    places = run_side_by_side(lambda: meeting.wait(30), lambda: meeting.wait(30))
    assert sorted(places) == [0, 1]  # The barrier gives each of those who met there a number.


def test_an_exception_of_a_task_is_raised():
    with pytest.raises(ZeroDivisionError):
        run_side_by_side(lambda: 1 / 0, lambda: 2)


def test_gradients_are_recorded_only_if_the_caller_records_them():
    with torch.no_grad():
        assert map_side_by_side(lambda _: torch.is_grad_enabled(), range(4)) == [False] * 4
    assert map_side_by_side(lambda _: torch.is_grad_enabled(), range(4)) == [True] * 4


def test_the_callers_number_of_threads_stays():
    before = torch.get_num_threads()
    map_side_by_side(lambda _: torch.zeros(3) + 1, range(4))
    assert torch.get_num_threads() == before


def test_another_device_takes_the_items_one_after_the_other_in_the_callers_thread():
    threads = map_side_by_side(lambda _: threading.get_ident(), range(3), torch.device("meta"))
    assert set(threads) == {threading.get_ident()}


def test_several_threads_share_a_gpu_but_not_too_many(monkeypatch):
    monkeypatch.setattr(side_by_side, "count_cores", lambda: 64)
    meeting = threading.Barrier(side_by_side.MOST_GPU_WORKERS)

    def meet(_):
        meeting.wait(30)
        return threading.get_ident()

    threads = map_side_by_side(meet, range(2 * side_by_side.MOST_GPU_WORKERS), torch.device("cuda"))
    assert len(set(threads)) == side_by_side.MOST_GPU_WORKERS


def test_a_stream_keeps_the_order_and_takes_few_items_in_advance():
    taken: list[int] = []

    def count_up():
        for number in range(100):
            taken.append(number)
            yield number

    stream = stream_side_by_side(lambda number: number**2, count_up())
    assert [next(stream) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 5 + count_cores()
    assert list(stream) == [number**2 for number in range(5, 100)]


def test_a_stream_takes_the_items_in_the_callers_thread():
    takers = {threading.get_ident()}
    items = (takers.add(threading.get_ident()) for _ in range(5))
    assert list(stream_side_by_side(lambda item: item, items)) == [None] * 5
    assert takers == {threading.get_ident()}


def test_a_stream_records_no_gradients_and_divides_no_operators():
    results = list(stream_side_by_side(lambda _: (torch.is_grad_enabled(), torch.get_num_threads()), range(3)))
    assert results == [(False, 1)] * 3


def test_a_stream_raises_an_exception_when_its_result_is_due_and_leaves_the_rest():
    begun: list[int] = []

    def divide(number):
        begun.append(number)
        return 1 // (3 - number)

    stream = stream_side_by_side(divide, range(1000))
    assert [next(stream) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert len(begun) <= 5 + count_cores()


def test_a_closed_stream_works_no_more():
    begun: list[int] = []
    stream = stream_side_by_side(begun.append, range(1000))
    next(stream)
    stream.close()
    count = len(begun)
    assert count <= 2 + count_cores()
    assert list(stream) == []
    assert len(begun) == count


COUNT_HEAPS = """
import ctypes, sys, threading

if sys.argv[1] == "script":
    import command_line
glibc, everybody_is_here = ctypes.CDLL(None), threading.Barrier(4)
glibc.malloc.restype = glibc.fopen.restype = ctypes.c_void_p


def allocate():
    everybody_is_here.wait()
    for _ in range(1000):
        glibc.malloc(64)
    everybody_is_here.wait()


threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
report = ctypes.c_void_p(glibc.fopen(sys.argv[2].encode(), b"w"))
glibc.malloc_info(0, report)
glibc.fclose(report)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has a heap for each thread")
def test_the_threads_of_a_script_share_one_heap(tmp_path):
    def count_heaps(who):
        path = tmp_path / who
        environment = {
            name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
        }
        subprocess.run([sys.executable, "-c", COUNT_HEAPS, who, path], cwd=ROOT, env=environment, check=True)
        return path.read_text().count("<heap nr")

    assert count_heaps("other program") > 1
    assert count_heaps("script") == 1


KEEP_FREED_MEMORY = """
import ctypes, resource

import command_line

glibc = ctypes.CDLL(None)
glibc.malloc.restype, glibc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


blocks = [glibc.malloc(1000) for _ in range(100_000)]
for block in blocks:
    ctypes.memset(block, 1, 1000)
on_top = glibc.malloc(1000)
for block in blocks:
    glibc.free(block)
before_mb = resident_mb()
command_line.give_back_memory()
print(before_mb - resident_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_memory_that_is_free_below_used_memory_is_given_back():
    done = subprocess.run(
        [sys.executable, "-c", KEEP_FREED_MEMORY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) > 50
