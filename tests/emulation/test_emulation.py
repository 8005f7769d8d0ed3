"""The host emulation computes what CUDA would, and notices what CUDA leaves undefined."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.emulation import harness

ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]

if harness.compiler() is None:
    pytest.skip("no C++ compiler to build the emulation with", allow_module_level=True)


def build(*flags):
    library = harness.library([harness.HERE / "example.cu"], "example", *flags)
    for name in ("copy", "row_sum", "total", "cluster", "async"):
        getattr(library, f"example_{name}").restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def example():
    return build()


@pytest.fixture(scope="module")
def emulation(example):
    return harness.Emulation(example)


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def row_sum(example, x, mistake=0):
    out = torch.full((x.shape[0],), float("nan"))
    error = example.example_row_sum(pointer(x), pointer(out), x.shape[0], x.shape[1], mistake, None)
    return out, error


def cluster_sum(example, x, cluster, mistake=0):
    out = torch.full_like(x, float("nan"))
    error = example.example_cluster(pointer(x), pointer(out), len(x), cluster, mistake, None)
    return out, error


@pytest.fixture
def x():
    return torch.randn(6, 300, generator=torch.Generator().manual_seed(0))


def test_a_kernel_that_does_nothing_moves_its_data(example, x):
    out = torch.full_like(x, float("nan"))
    assert example.example_copy(pointer(x), pointer(out), ctypes.c_int64(x.numel()), None) is None
    assert torch.equal(out, x)


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_shuffles_and_shared_memory_give_the_same_bits_in_any_order(example, emulation, x, order, seed):
    expected, _ = row_sum(example, x)
    with emulation.settings(order=order, seed=seed):
        out, error = row_sum(example, x)
    assert error is None
    assert torch.equal(out, expected)
    torch.testing.assert_close(out.double(), x.double().sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_the_last_block_sums_all_in_order_and_leaves_the_ticket_zeroed(example, emulation, x, order, seed):
    ticket = torch.zeros(1, dtype=torch.int32)
    partial, out = torch.full((6,), float("nan")), torch.full((1,), float("nan"))
    with emulation.settings(order=order, seed=seed):
        error = example.example_total(pointer(x), pointer(partial), pointer(ticket), pointer(out), 6, 300, None)
    assert error is None
    assert ticket.item() == 0
    expected = torch.zeros(())
    for row in x:
        total = torch.zeros(())
        for value in row:
            total += value
        expected += total
    assert torch.equal(out[0], expected)


@pytest.mark.parametrize("cluster", [1, 2, 8, 16])
@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_blocks_of_a_cluster_read_each_others_shared_memory(example, emulation, cluster, order, seed):
    x = torch.arange(32.0)
    with emulation.settings(order=order, seed=seed):
        out, error = cluster_sum(example, x, cluster)
    assert error is None
    assert torch.equal(out, x.view(-1, cluster).sum(1, keepdim=True).expand(-1, cluster).reshape(-1))


def test_asynchronous_copies_arrive_when_waited_for(example):
    x, out = torch.randn(256), torch.full((256,), float("nan"))
    assert example.example_async(pointer(x), pointer(out), 0, None) is None
    assert torch.equal(out.view(64, 4), x.view(64, 4).flip(0))


def test_an_asynchronous_copy_not_waited_for_reads_poison(example):
    x, out = torch.randn(256), torch.zeros(256)
    assert example.example_async(pointer(x), pointer(out), 1, None) is None
    assert out.isnan().all()


def test_a_misaligned_asynchronous_copy_is_refused(example):
    x, out = torch.randn(257)[1:], torch.zeros(256)
    assert b"misaligned" in example.example_async(pointer(x), pointer(out), 0, None)


def test_a_missing_barrier_reads_poison_in_some_order(example, emulation, x):
    wrong = 0
    for order, seed in ORDERS:
        with emulation.settings(order=order, seed=seed):
            out, error = row_sum(example, x, mistake=1)
        assert error is None
        wrong += bool(out.isnan().any())
    assert wrong > 0


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (2, b"deadlock: 127 threads wait at __syncthreads, 1 have ended"),
        (3, b"past the end of the shared array partial"),
        (4, b"deadlock: 64 threads wait at a warp shuffle"),
    ],
)
def test_a_thread_that_skips_a_barrier_a_shuffle_or_its_bounds_ends_the_launch(example, x, mistake, message):
    _, error = row_sum(example, x, mistake)
    assert error is not None
    assert message in error
    assert row_sum(example, x)[1] is None  # and the next launch is clean


def test_a_missing_cluster_barrier_is_noticed_at_either_end(example, emulation):
    x = torch.arange(32.0)
    outcomes = []
    for order, seed in ORDERS:
        with emulation.settings(order=order, seed=seed):
            out, error = cluster_sum(example, x, 8, mistake=1)
            outcomes.append(error is not None or bool(out.isnan().any()))
            _, error = cluster_sum(example, x, 8, mistake=2)
            assert b"has ended" in error
    assert any(outcomes)


def test_launches_that_a_gpu_would_refuse_are_refused(example, emulation):
    x = torch.arange(32.0)
    assert b"cluster size" in cluster_sum(example, x, 3)[1]
    assert b"grid is empty" in row_sum(example, torch.empty(0, 4))[1]
    with emulation.settings(arch=80):
        assert b"compute capability 9.0" in cluster_sum(example, x, 2)[1]
    before = emulation.launches()
    cluster_sum(example, x, 2)
    assert emulation.launches() == before + 1


def test_other_processors_switch_threads_through_ucontext(example, x):
    portable = build("-DKDX_EMULATION_UCONTEXT")
    assert torch.equal(row_sum(portable, x)[0], row_sum(example, x)[0])
    assert torch.equal(cluster_sum(portable, x[0, :32], 8)[0], cluster_sum(example, x[0, :32], 8)[0])
