"""Forward passes in the many words that PyTorch has for the same."""

import pytest
import torch
import torch.nn.functional as F
from shared import close
from torch import nn

import tinyspur as ts
from tinyspur.interop import from_torch


class Forward(nn.Module):
    """Two convolutions and two dense layers, and a forward pass from outside."""

    def __init__(self, way, **more):
        super().__init__()
        self.way = way
        self.conv, self.over = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.small, self.top = nn.Linear(4, 3), nn.Linear(120, 3)
        for name, module in more.items():
            self.add_module(name, module)

    def maps(self, x):
        return F.relu(self.conv(x))

    def forward(self, x):
        return self.way(self, x)


def sum_in_place(m, x):
    x = m.conv(x)
    y = m.over(F.relu(x))
    y += x
    return m.top(F.relu(y).flatten(1))


MEAN = [ts.Conv(4), ts.AveragePool((6, 5)), ts.Dense(3)]
MOST = [ts.Conv(4), ts.MaxPool((6, 5)), ts.Dense(3)]
FLAT = [ts.Conv(4), ts.Dense(3)]
TWO = [ts.Conv(4, activation=ts.Identity()), ts.Conv(4), ts.Dense(3)]
BLOCK = ts.Residual([ts.Same(), ts.Conv(4)])
SUM = [ts.Conv(4, activation=ts.Identity()), BLOCK, ts.Dense(3)]
AROUND = [ts.Conv(4, padding=((3, 2), (2, 1))), ts.AveragePool((9, 6)), ts.Dense(3)]
SAME = {
    "mean of flattened": (lambda m, x: m.small(m.maps(x).flatten(2).mean(-1)), MEAN),
    "mean of a view": (lambda m, x: m.small(m.maps(x).view(len(x), 4, -1).mean(dim=2)), MEAN),
    "mean over two axes": (lambda m, x: m.small(m.maps(x).mean((2, 3))), MEAN),
    "mean from behind": (lambda m, x: m.small(m.maps(x).mean([-2, -1], True).flatten(1)), MEAN),
    "mean by NumPy's word": (lambda m, x: m.small(torch.mean(m.maps(x), axis=(-1, 2))), MEAN),
    "mean of each direction": (
        lambda m, x: m.small(m.maps(x).mean(3).mean(-1)),
        [ts.Conv(4), ts.AveragePool((1, 5)), ts.AveragePool((6, 1)), ts.Dense(3)],
    ),
    "mean of means": (
        lambda m, x: m.small(m.maps(x).mean((2, 3), True).mean((2, 3))),
        [*MEAN[:2], ts.AveragePool(1), ts.Dense(3)],
    ),
    "maximum over two axes": (lambda m, x: m.small(m.maps(x).amax((2, 3))), MOST),
    "maximum of flattened": (lambda m, x: m.small(m.maps(x).flatten(2).amax(-1)), MOST),
    "first entries": (lambda m, x: m.small(F.adaptive_avg_pool2d(m.maps(x), 1)[:, :, 0, 0]), MEAN),
    "last entries": (lambda m, x: m.small(F.adaptive_max_pool2d(m.maps(x), 1)[..., -1, 0]), MOST),
    "squeezed": (lambda m, x: m.small(torch.squeeze(F.adaptive_avg_pool2d(m.maps(x), 1))), MEAN),
    "adaptive": (
        lambda m, x: m.small(F.adaptive_avg_pool2d(m.maps(x), (1, 1)).reshape(x.shape[0], -1)),
        MEAN,
    ),
    "as large as the maps": (
        lambda m, x: m.small(F.avg_pool2d(y := m.maps(x), y.size()[2:]).reshape(-1, 4)),
        MEAN,
    ),
    "as long as the maps": (
        lambda m, x: m.small(F.max_pool2d(y := m.maps(x), kernel_size=y.shape[2:]).view(-1, 4)),
        MOST,
    ),
    "flattened": (lambda m, x: m.top(nn.Flatten(1)(m.maps(x))), FLAT),
    "in another shape and back": (lambda m, x: m.top(m.maps(x).view(-1, 8, 15).flatten(1)), FLAT),
    "unflattened": (
        lambda m, x: m.top(F.relu(m.over(m.back(m.conv(x).flatten(1)))).flatten(1)),
        TWO,
    ),
    "a view back": (
        lambda m, x: m.top(F.relu(m.over(m.conv(x).flatten(1).view(-1, 4, 6, 5))).flatten(1)),
        TWO,
    ),
    "zeros around": (lambda m, x: m.small(m.maps(F.pad(x, (1, 0, 2, 1))).mean((2, 3))), AROUND),
    "zeros by a module": (lambda m, x: m.small(m.maps(m.zeros(x)).mean((2, 3))), AROUND),
    "zeros around zeros": (
        lambda m, x: m.small(m.maps(F.pad(F.pad(x, (1, 0)), (0, 0, 2, 1))).mean((2, 3))),
        AROUND,
    ),
    "zeros as many on each side": (
        lambda m, x: m.small(m.maps(F.pad(x, [1] * 4, "constant", 0)).mean((2, 3))),
        [ts.Conv(4, padding=2), ts.AveragePool((8, 7)), ts.Dense(3)],
    ),
    "a sum": (
        lambda m, x: m.top(F.relu(torch.add(m.over(F.relu(y := m.conv(x))), y)).flatten(1)),
        SUM,
    ),
    "a sum by a method": (
        lambda m, x: m.top((y := m.conv(x)).add(m.over(F.relu(y))).relu().flatten(1)),
        SUM,
    ),
    "a sum in place": (sum_in_place, SUM),
    "leaky": (lambda m, x: m.top(m.leaky(m.conv(x)).flatten(1)), FLAT),
    "SiLU": (lambda m, x: m.top(nn.SiLU(inplace=True)(m.conv(x)).flatten(1)), FLAT),
    "GELU": (lambda m, x: m.top(nn.GELU()(m.conv(x)).flatten(1)), FLAT),
}


def model_of(way):
    torch.manual_seed(0)
    more = {"back": nn.Unflatten(1, (4, 6, 5)), "zeros": nn.ZeroPad2d((1, 0, 2, 1))}
    return Forward(way, **more, leaky=nn.LeakyReLU(0.2, inplace=True)).double()


@pytest.mark.parametrize("name", SAME)
def test_the_same_in_other_words_is_the_same_network(name):
    way, layers = SAME[name]
    model, x = model_of(way), torch.randn(4, 2, 6, 5).double()
    theta = from_torch(model, (2, 6, 5))
    assert theta.net.layers == ts.Network((2, 6, 5), layers).layers
    close(theta.net.forward(theta, x.numpy()), model(x).detach().numpy(), 1e-10)


OTHER = {
    "ReLU6": (
        nn.ReLU6(),
        r"module 'new' \(ReLU6\(\)\): expected a convolution, .*, got (relu6|hardtanh)$",
    ),
    "Mish": (nn.Mish(), r"module 'new' \(Mish\(\)\): expected a convolution, .*, got mish$"),
    "PReLU": (nn.PReLU(), "module 'new' .*, got prelu$"),
    "GELU by tanh": (nn.GELU("tanh"), "module 'new' .*: expected approximate none, got tanh$"),
    "softmax": (nn.Softmax(1), "'new' .* below softmax: leave it out, CrossEntropy has it$"),
    "its logarithm": (nn.LogSoftmax(1), "module 'new' .* below log_softmax: leave it out"),
    "group norm": (nn.GroupNorm(1, 3), "module 'new' .*, got group_norm$"),
}


@pytest.mark.parametrize("name", OTHER)
def test_an_activation_that_is_none_here_is_refused_by_the_name_of_its_module(name):
    module, words = OTHER[name]
    model = Forward(lambda m, x: m.new(m.top(m.maps(x).flatten(1))), new=module).double()
    with pytest.raises(ValueError, match=words):
        from_torch(model, (2, 6, 5))
