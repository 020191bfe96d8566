"""The stand-in for a device is as strict as it claims."""

import copy
import operator
import sys

import numpy as np
import pytest
import scipy.special
import strict_device as xp

OPERATORS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv),
    *(operator.mod, operator.pow, operator.matmul, operator.eq, operator.ne, operator.lt),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.imatmul),
]


@pytest.fixture
def host():
    return np.array([3.0, 1.0, 2.0, 5.0])


@pytest.fixture
def device(host):
    return xp.asarray(host)


def same(result, expected):
    """Whether `result` is a device array equal to `expected`, type and all."""
    expected = np.asarray(expected)
    assert isinstance(result, xp.ndarray)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    return np.array_equal(result.get(), expected)


def test_the_namespace_is_found_from_the_array(device):
    assert xp.ndarray.__module__ == "strict_device"
    assert sys.modules[type(device).__module__.split(".")[0]] is xp


def test_round_trip_copies(host, device):
    host[0] = 9
    assert device[0].item() == 3
    back = device.get()
    back[1] = 9
    assert type(back) is np.ndarray
    assert device.tolist() == [3, 1, 2, 5]
    assert np.array_equal(xp.asnumpy(device), device.get())
    out = np.empty(4)
    assert device.get(out=out) is out
    assert same(device, out)
    device.set(np.arange(4.0))
    assert same(device, np.arange(4.0))
    with pytest.raises(ValueError, match="shape and type"):
        device.set(np.arange(4))


def test_array_and_asarray(host, device):
    assert xp.asarray(device) is device
    assert xp.array(device) is not device
    assert same(xp.asarray([[1, 2], [3, 4]], dtype=xp.float32), np.float32([[1, 2], [3, 4]]))
    assert same(xp.array([device, device]), np.array([host, host]))
    assert same(xp.array([host, host]), np.array([host, host]))
    assert same(xp.asarray(2.5), 2.5)
    with pytest.raises(TypeError, match="Unsupported type"):
        xp.array([device, host])


@pytest.mark.parametrize("bad", [["a"], [None], "text", np.array([object()]), [np.longdouble(1)]])
def test_unsupported_types_of_entries(bad):
    with pytest.raises(ValueError, match="Unsupported dtype"):
        xp.asarray(bad)


@pytest.mark.parametrize("operation", OPERATORS)
def test_operators_refuse_host_arrays(operation, host, device):
    for left, right in [(device, host), (host, device), (device, host[0:1]), (device, [1.0] * 4)]:
        with pytest.raises(TypeError, match=r"Unsupported type|does not support ufuncs"):
            operation(left, right)


@pytest.mark.parametrize(
    "call",
    [
        lambda d, h: xp.maximum(d, h),
        lambda d, h: xp.maximum(h, d),
        lambda d, h: xp.sum(h),
        lambda d, h: xp.concatenate([d, h]),
        lambda d, h: xp.stack((d, [h])),
        lambda d, h: xp.einsum("i,i->", d, h),
        lambda d, h: xp.exp(d, out=h),
        lambda d, h: xp.where(d > 1, d, h),
        lambda d, h: xp.zeros_like(h),
        lambda d, h: d.dot(h),
        lambda d, h: d.sum(out=h),
        lambda d, h: d.take(h.argsort()),
        lambda d, h: d[h.argsort()],
        lambda d, h: d[h > 1],
        lambda d, h: d[[h.argsort()[:2]]],
        lambda d, h: operator.setitem(d, h > 1, 0),
        lambda d, h: operator.setitem(d, slice(None), h),
        lambda d, h: operator.setitem(d, slice(0, 2), [1.0, 2.0]),
        lambda d, h: d.fill(h),
    ],
)
def test_functions_indices_and_values_refuse_host_arrays(call, host, device):
    with pytest.raises(TypeError, match="Unsupported type"):
        call(device, host)
    assert same(device, host)


@pytest.mark.parametrize(
    "call",
    [
        lambda d, h: np.asarray(d),
        lambda d, h: np.array([d, d]),
        lambda d, h: np.array([d[0], d[1]]),
        lambda d, h: np.sum(d),
        lambda d, h: np.exp(d),
        lambda d, h: np.add(h, d),
        lambda d, h: np.add(h, 1, out=d),
        lambda d, h: np.concatenate([h, d]),
        lambda d, h: np.shape(d),
        lambda d, h: h.dot(d),
        lambda d, h: operator.setitem(h, slice(None), d),
        lambda d, h: operator.getitem(h, d.argsort()),
        lambda d, h: scipy.special.logsumexp(d),
        lambda d, h: scipy.special.expit(d),
    ],
)
def test_host_functions_refuse_device_arrays(call, host, device):
    with pytest.raises(TypeError):
        call(device, host)


def test_a_device_array_is_no_index_of_python(device):
    count = xp.count_nonzero(device > 1)
    assert same(count, 3)
    for call in (range, [1, 2].__getitem__, xp.zeros, device[None].reshape, xp.eye):
        with pytest.raises(TypeError):
            call(count)
    with pytest.raises(TypeError):
        device[:count]


def test_views_share_memory(device):
    device[1:3][...] = 7
    device.reshape(2, 2)[1, 1] = 8
    device.ravel()[0] = 9
    assert device.tolist() == [9, 7, 7, 8]
    entry = device[3]
    entry += 1
    device[2:].T[0] = 6
    assert device.tolist() == [9, 7, 6, 9]
    assert xp.shares_memory(device, xp.moveaxis(device.reshape(2, 2), 0, 1))
    chosen = device[[0, 1]]
    chosen[...] = 0
    assert device[0].item() == 9
    before = device
    device *= 2
    assert before is device
    assert xp.exp(device, out=device) is device
    assert not xp.shares_memory(device, copy.copy(device))


def test_indexing(host, device):
    host, device = host.reshape(2, 2), device.reshape(2, 2)
    order = [1, 0]
    for key in (0, (1, 1), (..., 0), (None, 1), ([1, 0], 1), np.int64(1), slice(None, None, -1)):
        assert same(device[key], host[key])
    assert same(device[xp.asarray(order)], host[order])
    assert same(device[device > 1], host[host > 1])
    device[device > 1] = 0
    device[0, 1] = np.float64(4)
    device[1] = device[0]
    assert device.tolist() == [[0, 4], [0, 4]]
    assert [same(row, [0.0, 4.0]) for row in device] == [True, True]
    assert len(device) == 2
    with pytest.raises(TypeError):
        iter(device[0, 0])


def test_operators_with_scalars(host, device):
    half = np.float64(0.5)
    for result, expected in [
        (2 * device - 1, 2 * host - 1),
        (half * device, half * host),
        (half / device, half / host),
        (-abs(device - 2), -abs(host - 2)),
        (device**2 // 3 % 2, host**2 // 3 % 2),
        (np.int64(2) < device, host > 2),
        (~(device > 1) | (device == 3), ~(host > 1) | (host == 3)),
        (device @ device, host @ host),
    ]:
        assert same(result, expected)
    assert bool((device > 0).all()) and float(device[:1]) == 3.0 and int(device[3]) == 5
    with pytest.raises(ValueError):
        bool(device)
    assert f"{device.max():.1f}" == "5.0"


def test_functions_give_device_arrays(host, device):
    square = xp.zeros((2, 2), dtype=xp.float64)
    for result, expected in [
        (xp.sum(device), host.sum()),
        (device.mean(), host.mean()),
        (xp.argsort(device, kind="stable"), host.argsort()),
        (xp.einsum("i,j->ij", device, device), np.outer(host, host)),
        (xp.concatenate([device, xp.ones(2)]), np.concatenate([host, np.ones(2)])),
        (xp.where(device > 2, device, 0.0), np.where(host > 2, host, 0.0)),
        (xp.flatnonzero(device > 2), np.flatnonzero(host > 2)),
        (xp.packbits(device > 2), np.packbits(host > 2)),
        (xp.pad(square, ((0, 0), (1, 1))), np.zeros((2, 4))),
        (xp.allclose(device, device), True),
        (xp.maximum(2, 3), 3),
        (xp.unique(xp.sign(device), return_counts=True)[1], np.array([4])),
        (xp.searchsorted(xp.sort(device), device), np.array([2, 0, 1, 3])),
        (xp.tensordot(square, square, axes=([1], [0])), np.zeros((2, 2))),
        (xp.broadcast_to(device, (2, 4)), np.broadcast_to(host, (2, 4))),
    ]:
        assert same(result, expected)
    xp.add.at(square, (xp.asarray([0, 0]), xp.asarray([1, 1])), 1.0)
    assert square.tolist() == [[0, 2], [0, 0]]


def test_constants_and_types_pass_through(device):
    assert xp.float32 is np.float32 and xp.bool_ is np.bool_ and xp.newaxis is None
    assert (xp.pi, xp.inf) == (np.pi, np.inf)
    assert xp.finfo(xp.float64).eps == np.finfo(float).eps
    assert xp.result_type(device, xp.float32) == np.dtype(float)
    assert xp.shape(device) == (4,)


@pytest.mark.parametrize(
    "name",
    [
        *("linalg", "random", "testing", "fft", "object_", "str_", "bytes_", "longdouble"),
        *("errstate", "geomspace", "insert", "block", "nditer", "vectorize", "r_", "nonsense"),
        *("trapezoid", "vecdot", "concat", "load", "__path__"),
    ],
)
def test_what_a_device_lacks(name):
    assert not hasattr(xp, name)


@pytest.mark.parametrize(
    "call",
    [
        lambda d: xp.sum([1.0, 2.0]),
        lambda d: xp.prod((2, 3)),
        lambda d: xp.maximum(d, [1.0] * 4),
        lambda d: xp.concatenate([[1.0], [2.0]]),
        lambda d: xp.max(d, initial=0.0),
        lambda d: xp.exp(d, where=d > 1),
        lambda d: d.sum(where=d > 1),
        lambda d: d.argsort(kind="stable"),
        lambda d: xp.einsum("i->", d, out=d[0]),
        lambda d: xp.searchsorted(d, 1.0),
        lambda d: xp.zeros(2).repeat(repeats=d.astype(int)),
        lambda d: xp.sort(d, kind="heapsort"),
        lambda d: xp.zeros(2, dtype=object),
        lambda d: xp.maximum.reduce(d),
    ],
)
def test_calls_that_only_numpy_takes(call, device):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        call(device)


def test_special_functions_are_scipys_for_device_arrays(host, device):
    for name in ("erf", "erfc", "expit", "ndtr", "softmax"):
        function = getattr(xp.special, name)
        assert same(function(device), getattr(scipy.special, name)(host))
        for dtype in (np.float32, np.float64):
            assert function(xp.asarray(host, dtype=dtype)).dtype == dtype
        for wrong in (host, [1.0, 2.0]):
            with pytest.raises(TypeError, match="Unsupported type"):
                function(wrong)
        with pytest.raises(TypeError):
            getattr(scipy.special, name)(device)


def test_strided_views_share_memory(host, device):
    view = xp.lib.stride_tricks.as_strided(device, (3, 2), device.strides * 2)
    assert same(view, np.lib.stride_tricks.as_strided(host, (3, 2), host.strides * 2))
    device[...] = 5
    assert (view == 5).all()
    with pytest.raises(TypeError, match="Unsupported type"):
        xp.lib.stride_tricks.as_strided(host, (2,), host.strides)


# Transfers

INDICES = xp.asarray([1, 0])


@pytest.mark.parametrize(
    "call",
    [
        lambda d, h: xp.array(h),
        lambda d, h: xp.asarray(h),
        lambda d, h: xp.asarray(h, dtype=xp.float32),
        lambda d, h: xp.asarray([1.0, 2.0]),
        lambda d, h: xp.asarray([h, h]),
        lambda d, h: xp.asarray(2.0),
        lambda d, h: d.set(h),
        lambda d, h: d[[1, 0]],
        lambda d, h: d[None, (1, 0)],
        lambda d, h: d.take([1, 0]),
        lambda d, h: xp.take(d, (1, 0)),
        lambda d, h: operator.setitem(d, [1, 0], d[:2]),
        lambda d, h: operator.setitem(d, INDICES, 2.0),
        lambda d, h: xp.add.at(d, INDICES, 2.0),
        lambda d, h: xp.add.at(d, [1, 0], d[:2]),
    ],
)
def test_transfers_to_the_device_are_counted(call, host, device):
    with xp.transfers() as count:
        call(device, host)
    assert (count.to_device, count.to_host) == (1, 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.get(),
        lambda d: d.get(out=np.empty(4)),
        lambda d: xp.asnumpy(d),
        lambda d: d.tolist(),
        lambda d: d[0].item(),
        lambda d: float(d[0]),
        lambda d: int(d[0]),
        lambda d: complex(d[0]),
        lambda d: bool(d[0]),
        lambda d: not d.all(),
        lambda d: max(1.0, d[0]),
        lambda d: 2.0 in d[1:2],
        lambda d: str(d),
        lambda d: repr(d),
        lambda d: f"{d[0]:.1f}",
        lambda d: xp.array_str(d),
        lambda d: d.nonzero(),
        lambda d: xp.nonzero(d),
        lambda d: xp.flatnonzero(d),
        lambda d: xp.where(d > 1),
        lambda d: xp.unique(d),
        lambda d: d[d > 1],
        lambda d: operator.setitem(d, d > 1, d[0]),
    ],
)
def test_transfers_to_the_host_are_counted(call, device):
    with xp.transfers() as count:
        call(device)
    assert (count.to_device, count.to_host) == (0, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda d, h: 2 * d + np.float64(1) > 0,
        lambda d, h: xp.where(d > 1, d, -np.inf).sum(),
        lambda d, h: xp.full((2, 2), 3.0) @ xp.zeros((2, 1)),
        lambda d, h: xp.array([d, d]),
        lambda d, h: xp.asarray(d, dtype=xp.float32),
        lambda d, h: xp.concatenate([d, d]).reshape([2, 4]),
        lambda d, h: d[None, 1:, ...],
        lambda d, h: d[np.int64(1)],
        lambda d, h: d[INDICES],
        lambda d, h: operator.setitem(d, slice(1, 3), 2.0),
        lambda d, h: operator.setitem(d, INDICES, d[:2]),
        lambda d, h: d.fill(3),
        lambda d, h: [len(d), d.shape, d.dtype, list(d), copy.copy(d)],
        lambda d, h: xp.asnumpy(h),
    ],
)
def test_what_stays_where_it_is_does_not_count(call, host, device):
    with xp.transfers() as count:
        call(device, host)
    assert (count.to_device, count.to_host) == (0, 0)


def test_a_mask_is_read_and_what_it_sets_is_sent(device):
    with xp.transfers() as count:
        device[device > 1] = 0
    assert (count.to_device, count.to_host) == (1, 1)
    with xp.transfers() as count:
        device[[True, False, True, False]]
    assert (count.to_device, count.to_host) == (1, 1)


def test_transfers_are_counted_within_each_block(host):
    with xp.transfers() as outer:
        device = xp.asarray(host)
        with xp.transfers() as inner:
            device.get()
        with pytest.raises(ValueError), xp.transfers() as failed:
            device.set(host[:2])
    device.get()
    assert (outer.to_device, outer.to_host) == (1, 1)
    assert (inner.to_device, inner.to_host) == (0, 1)
    assert (failed.to_device, failed.to_host) == (0, 0)
