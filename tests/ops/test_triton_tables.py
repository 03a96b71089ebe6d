"""What the kernels keep of a scan table: no longer than it lives, nothing read back, in order on all streams."""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from visionssm.ops import tables as facts  # noqa: E402
from visionssm.ops.selective_scan.triton import streams, tables  # noqa: E402
from visionssm.scans import scan_table  # noqa: E402
from visionssm.scans.tables import clear_tables  # noqa: E402


def test_tables_of_many_sizes_are_freed():
    clear_tables()
    gc.collect()
    before = len(tables._known), len(facts._facts)
    for size in range(1, 301):
        order = scan_table("cross", 2, size)
        tables.table_use(order, 2 * size)
    assert len(tables._known) > before[0]
    del order
    clear_tables()
    gc.collect()
    assert (len(tables._known), len(facts._facts)) == before


def test_values_of_a_new_table_are_not_read():
    seen = []

    class Trace(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    order = scan_table("local3+local3_flip", 5, 7)
    with Trace():
        tables.table_use(order, 35)
        tables.table_visits(order, 35, True)
    assert "aten::cat" in seen
    waiting = ("local_scalar", "bincount", "nonzero", "item", "unique")
    assert not [name for name in seen if any(part in name for part in waiting)]


def test_entries_go_on_with_the_last():
    order = torch.tensor([[0, 2, 1], [1, -1, -1]])
    entries = tables.table_use(order, 3).entries
    assert entries.dtype == torch.int32 and entries[:, :3].equal(order.int())
    assert entries[:, 3:].equal(torch.tensor([[1], [-1]]).int().expand(2, entries.shape[1] - 3))


class Stream:
    def __init__(self, number):
        self.cuda_stream, self.waited = number, []

    def wait_event(self, event):
        self.waited.append(event.stream)


class Event:
    def record(self, stream):
        self.stream = stream.cuda_stream


class OnGPU:
    """A tensor as far as `Shared` looks at it."""

    device = torch.device("cuda", 0)

    def __init__(self):
        self.recorded = []

    def record_stream(self, stream):
        self.recorded.append(stream.cuda_stream)


@pytest.fixture
def fake_gpu(monkeypatch):
    state = {"stream": Stream(1), "capturing": False}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: state["stream"])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["capturing"])
    monkeypatch.setattr(streams, "_in_graphs", {})
    return state


def test_other_streams_wait_and_are_known_to_the_allocator(fake_gpu):
    tensor = OnGPU()
    shared = streams.Shared((tensor,))
    shared.use()
    assert fake_gpu["stream"].waited == tensor.recorded == []
    fake_gpu["stream"] = other = Stream(2)
    shared.use()
    shared.use()
    assert other.waited == [1] and tensor.recorded == [2]


def test_what_a_graph_reads_is_kept(fake_gpu):
    tensor = OnGPU()
    shared = streams.Shared((tensor,))
    fake_gpu.update(stream=Stream(2), capturing=True)
    shared.use()
    assert fake_gpu["stream"].waited == [] and list(streams._in_graphs.values()) == [tensor]


def test_what_a_graph_makes_is_not_remembered(monkeypatch):
    order = torch.tensor([[0, 1, 2]])
    monkeypatch.setattr(tables, "capturing", lambda device: True)
    use = tables.table_use(order, 3)
    tables.table_visits(order, 3, True)
    assert tables.table_use(order, 3) is not use and id(order) not in tables._known
