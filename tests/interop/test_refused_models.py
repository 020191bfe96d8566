"""What no network here computes, or not surely, is refused: where, and why."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from interop_problems import Written, cnn
from shared import close, in_turn
from torch import nn
from torch.nn.utils import prune

from tinyspur.interop import from_torch

conv, pool, sequence = nn.Conv2d, nn.MaxPool2d, nn.Sequential


# Modules


def filled(layer, value):
    with torch.no_grad():
        layer.bias[0] = value
    return layer


def scaled(layer, factor):
    with torch.no_grad():
        layer.weight *= factor
    return layer


def without(*names):
    return cnn(**dict.fromkeys(names, nn.Identity()))


def narrow():
    model = cnn()
    model.top.bias = nn.Parameter(torch.zeros(1))  # PyTorch would add it to all
    return model


def tied():
    model = sequence(nn.Flatten(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[3].weight = model[1].weight
    return model


def twice():
    layer = nn.Linear(4, 4)
    return sequence(nn.Flatten(), layer, nn.Tanh(), layer)


def with_weights(first, second):
    model = sequence(nn.Flatten(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[1].weight, model[3].weight = nn.Parameter(first), nn.Parameter(second)
    return model


def overlapping():
    whole = torch.randn(6, 4)
    return with_weights(whole[:4], whole[2:])


def side_by_side():
    whole = torch.randn(4, 8)
    return with_weights(whole[:, :4], whole[:, 4:])


def expanded():
    return with_weights(torch.randn(4, 1).expand(4, 4), torch.randn(4, 4))


def normed():
    model = cnn()
    nn.utils.parametrizations.weight_norm(model.lower)
    return model


def by_hook(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return cnn(lower=function(conv(2, 3, 3, padding=1)))


def pruned():
    model = cnn()
    prune.random_unstructured(model.upper, "weight", amount=0.5)
    return model


def hooked(change):
    model = cnn()
    model.upper.register_forward_hook(lambda _module, _inputs, out: change(out))
    return model


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(sequence(nn.Flatten(), nn.Linear(128, 2)))


MODULES = {
    "not a model": ([conv(2, 3, 1)], r"^model: expected a torch.nn.Module, got a list$"),
    "numbers alone": (cnn().state_dict(), "got a OrderedDict: load a state dict into its model"),
    "a class": (nn.Linear, r"^model: expected a torch.nn.Module, got a type$"),
    "TorchScript": (scripted(), r"^model .*expected a module of Python's, got one of TorchScript$"),
    "a module of another kind": (
        sequence(sequence(conv(2, 3, 1), sequence(nn.PReLU()))),
        r"^module '0\.1\.0' \(PReLU\(num_par.*\): expected a convolution, .*tanh\), got prelu$",
    ),
    "layer norm": (cnn(first=nn.LayerNorm(8)), r"^module 'first' .*, got layer_norm$"),
    "training mode": (
        cnn(first=nn.BatchNorm2d(3)),
        r"^module 'first' \(BatchNorm2d.*expected evaluation mode: call .eval\(\)",
    ),
    "dropout": (
        cnn(mean=sequence(nn.Dropout(0.5), nn.AvgPool2d(4))),
        r"^module 'mean.0' \(Dropout\(p=0.5.*expected evaluation mode: call .eval\(\)",
    ),
    "a hook that changes outputs": (
        hooked(lambda out: 2 * out),
        r"^line .* of test_refused_models.py, `.*`, in module 'upper': expected a .*, got mul",
    ),
    "weight norm": (normed(), r"^module 'lower' \(Param.*a parametrization of weight: "),
    "weight norm by a hook": (
        by_hook(nn.utils.weight_norm),
        r"^module 'lower' .*computed tensor, 'weight' .*remove_weight_norm",
    ),
    "spectral norm by a hook": (
        by_hook(nn.utils.spectral_norm),
        r"^module 'lower' .*a weight that is computed .*remove_spectral_norm",
    ),
    "pruned": (pruned(), r"^module 'upper' .*computed tensor, 'weight' .*prune.remove"),
    "lazy": (
        sequence(nn.LazyConv2d(3, 1), nn.Flatten()),
        r"^module '0' \(LazyConv2d.*expected an initialised module: run the model on one batch",
    ),
    "a bias of one number": (
        narrow(),
        r"^module 'top' .*expected a bias of shape \(3,\), got \(1,\)$",
    ),
    "padding mode": (
        cnn(lower=conv(2, 3, 3, padding=1, padding_mode="circular")),
        r"^module 'lower' .*expected padding with zeros, got .*circular",
    ),
    "channels": (cnn(lower=conv(3, 3, 1)), r"^model: expected one that runs on .*RuntimeError"),
    "features": (cnn(top=nn.Linear(5, 3)), r"^model: expected one that runs on 3 inputs \(2, 8"),
    "adaptive": (
        sequence(nn.AdaptiveAvgPool2d(3), nn.Flatten()),
        r"^module '0' .*expected an output_size that divides the maps \(8, 8\)$",
    ),
    "zeros before a pooling": (
        sequence(nn.ZeroPad2d(1), pool(2), nn.Flatten()),
        r"^module '1' .*expected a convolution after the padding with zeros, got max_pool2d$",
    ),
    "reflections": (
        sequence(nn.ReflectionPad2d(1), conv(2, 3, 3), nn.Flatten()),
        r"^module '0' .*expected padding with zeros, got .*reflect",
    ),
    "indices": (
        sequence(pool(2, return_indices=True)),
        r"^model: expected one tensor of outputs",
    ),
    "divisor": (
        sequence(nn.AvgPool2d(2, divisor_override=3), nn.Flatten()),
        r"^module '0' .*expected divisor_override None, got 3$",
    ),
    "flatten in part": (cnn(flat=nn.Flatten(2)), r"^model: expected one that runs"),
    "no flatten": (
        sequence(conv(2, 3, 3), nn.Linear(6, 2), nn.Flatten()),
        r"^module '1' .*expected nn.Flatten\(\) before it, got maps \(3, 6, 6\)$",
    ),
    "maps at the end": (
        sequence(conv(2, 3, 1)),
        r"^model: expected nn.Flatten\(\) at the end, after maps \(3, 8, 8\)$",
    ),
    "an activation before the first layer": (
        sequence(nn.ReLU(), conv(2, 3, 1), nn.Flatten()),
        r"^model: .*expected a layer with weights below the first activation",
    ),
    "negative slope": (
        cnn(first=nn.LeakyReLU(-0.1)),
        r"^module 'first' .*expected a finite slope >= 0, got -0.1$",
    ),
    "alpha": (cnn(first=nn.ELU(0.0)), r"^module 'first' .*expected a finite alpha > 0, got 0.0$"),
    "GELU by tanh": (cnn(first=nn.GELU("tanh")), r"'first' .*expected approximate none, got tanh$"),
    "softplus of another beta": (cnn(first=nn.Softplus(beta=2)), r"'first' .*expected beta 1, got"),
    "softplus of another threshold": (
        cnn(first=nn.Softplus(threshold=5)),
        r"^module 'first' .*expected a threshold within \(20, 80\), got 5$",
    ),
    "softmax": (
        cnn(top=sequence(nn.Linear(4, 3), nn.Softmax(1))),
        r"^module 'top.1' .* leave it out",
    ),
    "half": (
        cnn().half(),
        r"^model: expected weights of float32 or .*, as after .double\(\), got torch.float16$",
    ),
    "too large": (
        cnn(lower=scaled(conv(2, 3, 1), 1e30), upper=scaled(conv(3, 4, 5, padding=2), 1e30)),
        "^model: expected finite outputs for random inputs of size 1, got NaN or infinity$",
    ),
    "normalised by the batch": (
        cnn(first=nn.BatchNorm2d(3, track_running_stats=False)).eval(),
        "^module 'first' .*: expected running statistics, got track_running_stats=False$",
    ),
    "bfloat16": (cnn().bfloat16(), r"^model: expected weights of float32 .*, got torch.bfloat16$"),
    "mixed": (cnn(upper=conv(3, 4, 1).double()), r"^model: expected one that runs on .*float.*"),
    "NaN": (
        cnn(top=filled(nn.Linear(4, 3), torch.nan)),
        r"^module 'top' .*expected finite numbers in its bias, got NaN or infinity$",
    ),
    "infinity": (cnn(lower=filled(conv(2, 3, 1), torch.inf)), r"'lower' .*expected finite"),
    "no numbers": (cnn().to("meta"), r"^model: expected one that can be copied to the CPU"),
}
SHARED = {
    "tied": (tied, "module '3' .*of its own, got that of an earlier layer, '1.weight'$"),
    "used twice": (twice, "module '1' .*of its own, got that of an earlier layer, '1.weight'$"),
    "overlapping": (overlapping, "module '3' .*got memory of '1.weight' in it, '3.weight'$"),
    "side by side": (side_by_side, "module '3' .*got memory of '1.weight' in it, '3.weight'$"),
    "expanded": (expanded, "module '1' .*whose entries are its own, got repeated ones$"),
}
SHAPES = {
    "a number": (
        8,
        r"^input_shape: expected \(C, H, W\), \(C, W\) or \(d,\) of one sample, got 8$",
    ),
    "of a batch": ((5, 2, 8, 8), r"^input_shape: .*, got \(5, 2, 8, 8\)$"),
    "a tensor": (torch.zeros(2, 8, 8), r"^input_shape: .*, got tensor\(\[\[\[0"),
    "empty": ((2, 0, 8), r"^input_shape: .*, got \(2, 0, 8\)$"),
    "nothing": ((), r"^input_shape: .*, got \(\)$"),
    "of floats": ((2, 8.0, 8), r"^input_shape: .*, got \(2, 8.0, 8\)$"),
    "of other channels": (
        (3, 8, 8),
        r"^model: expected one that runs on 3 inputs \(3, 8, 8\), got",
    ),
    "of other sizes": (
        (2, 16, 8),
        r"^model: expected one that runs on 3 inputs \(2, 16, 8\), got",
    ),
    "of vectors": ((128,), r"^model: expected one that runs on 3 inputs \(128,\), got Runtime"),
}


def refused(model, shape, message):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        from_torch(model, shape)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", MODULES)
def test_the_model_is_refused_and_the_error_says_where_and_why(name):
    model, message = MODULES[name]
    refused(model, (2, 8, 8), message)


def test_vectors_of_the_input_that_are_normalised_get_advice_that_holds():
    norm, linear = nn.BatchNorm1d(4).double(), nn.Linear(4, 3).double()
    with torch.no_grad():
        for numbers in (norm.weight, norm.bias, norm.running_mean, norm.running_var.log_()):
            numbers.normal_()
        norm.running_var.exp_()
    model = sequence(norm, linear).eval()
    message = (
        r"^module '0' .*: expected nn.Linear below it, got the inputs \(4,\): normalise the data"
    )
    refused(model, (4,), message + " instead, or fold it into the linear layer above$")
    x = torch.randn(5, 4).double()
    normed, expected = norm(x).detach().numpy(), model(x).detach().numpy()
    theta = from_torch(linear, (4,))
    close(theta.net.forward(theta, normed), expected)
    with torch.no_grad():
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        linear.bias += linear.weight @ (norm.bias - factor * norm.running_mean)
        linear.weight *= factor
    theta = from_torch(linear, (4,))
    close(theta.net.forward(theta, x.numpy()), expected)


@pytest.mark.parametrize("name", SHARED)
def test_weights_that_share_memory_are_refused(name):
    make, message = SHARED[name]
    refused(make(), (1, 4), message)
    refused(make(), (4,), message)
    assert from_torch(copy.deepcopy(sequence(nn.Linear(4, 4))), (4,)).net.depth == 1


@pytest.mark.parametrize("name", SHAPES)
def test_an_input_that_the_model_does_not_read_is_refused(name):
    refused(cnn(), *SHAPES[name])


def test_the_model_that_the_refused_ones_change_is_accepted():
    assert from_torch(cnn(), (2, 8, 8)).net.depth == 5


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_on_all_modules_that_change_outputs_are_refused(kind):
    def change(_module, values, output=None):
        return tuple(v + 1 for v in values) if output is None else output + 1

    handle = getattr(nn.modules.module, f"register_module_{kind}")(change)
    try:
        refused(cnn(), (2, 8, 8), "expected a sum of two tensors that depend on the input")
    finally:
        handle.remove()
    assert from_torch(cnn(), (2, 8, 8)).net.depth == 5


# Forward passes


def branching(model, x):
    x = model.conv(x)
    if x.mean() > 0:
        x = F.relu(x)
    return model.top(x)


def by_the_number_of_samples(model, x):
    x = model.conv(x)
    return model.top(F.relu(x) if len(x) == 3 else x)


def counting(model, x):
    model.times += 1
    x = model.conv(x)
    return model.top(F.relu(x) if model.times > 1 else x)


def changed_through_a_view(model, x):
    x = model.conv(x)
    x.view(len(x), -1).relu_()
    return model.top(x)


def changed_in_part(model, x):
    x = model.conv(x)
    x[:, 0] = 0
    return model.top(x)


def changed_under_another(model, x):
    x = model.conv(x)
    y = x.detach()
    x.relu_()
    return model.top(y)


def changed_unseen(model, x):
    x = model.conv(x)
    x.data.mul_(2)
    return model.top(x)


def changed_at_the_end(model, x):
    x = model.top(model.conv(x))
    x[:, 0] = 0
    return x


def by_numpy(model, x):
    return torch.from_numpy(model.top(model.conv(x)).numpy())


FORWARDS = {
    "softmax": (
        lambda m, x: F.softmax(m.top(m.conv(x)), 1),
        "ends below softmax: leave it out, CrossEnt",
    ),
    "concatenation": (
        lambda m, x: m.top(torch.cat([m.conv(x), x], 1)[:, :3]),
        "got cat of",
    ),
    "a factor": (lambda m, x: 2 * m.top(m.conv(x)), "got mul"),
    "a constant": (lambda m, x: m.top(m.conv(x)) + 1, "expected a sum of two tensors"),
    "a product": (lambda m, x: m.top((y := m.conv(x)) * y), "got mul of more"),
    "a difference": (lambda m, x: m.top((y := m.conv(x)) - m.other(y)), "got sub of more"),
    "a weighted sum": (
        lambda m, x: m.top(torch.add(y := m.conv(x), m.other(y), alpha=0.5)),
        "expected a sum of two tensors",
    ),
    "a doubled tensor": (lambda m, x: m.top((y := m.conv(x)) + y), "got the same tensor twice"),
    "a sum with the input": (
        lambda m, x: m.top(m.conv(x + F.avg_pool2d(x, 3, 1, 1))),
        "expected a layer with weights below the first activation and in front of the first resid",
    ),
    "a sum of other shapes": (
        lambda m, x: m.top((y := m.conv(x)) + F.adaptive_avg_pool2d(y, 1)),
        r"expected a sum of equal shapes, got \(3, 4, 4\) and \(3, 1, 1\)",
    ),
    "a branch by values": (branching, "expected no use of the values of a tensor, got __bool__"),
    "a choice by values": (
        lambda m, x: m.top(torch.where((y := m.conv(x)) > 0, y, 0 * y)),
        "expected a convolution, .*, got (gt|where)",
    ),
    "other programs": (by_numpy, "expected no use of the values of a tensor, got numpy"),
    "maps at the end": (lambda m, x: m.conv(x), r"^model: expected nn.Flatten\(\) at the end"),
    "a branch by equality": (
        lambda m, x: m.top(m.conv(x) if torch.equal(x, x) else x),
        "expected no use of the values of a tensor, got equal$",
    ),
    "a maximum and its place": (
        lambda m, x: m.small(m.conv(x).flatten(2).max(2).values),
        "expected one tensor with a row for each sample, got what max returns$",
    ),
    "two outputs": (
        lambda m, x: (m.top(m.conv(x)), x),
        "^model: expected one tensor of outputs that depend on the inputs, got a tuple$",
    ),
    "a constant output": (
        lambda m, x: m.small.bias.expand(len(x), 4),
        "^model: expected one tensor of outputs that depend on .*, got one that does not, or that",
    ),
    "the input": (lambda m, x: x.flatten(1), "^model: network: expected at least one layer"),
    "an error": (lambda m, x: {}["no"], "^model: expected one that runs .*KeyError 'no'"),
    "samples mixed": (lambda m, x: m.linear(m.conv(x).view(-1, 3, 16)[:, 0]), "expected .*shape"),
    "samples as maps": (lambda m, x: m.top(m.conv(x).transpose(0, 1)), "got transpose"),
    "mirrored maps": (lambda m, x: m.top(m.conv(x).flip(3)), "got flip"),
    "transposed maps": (lambda m, x: m.top(m.conv(x).transpose(2, 3)), "got transpose"),
    "transposed maps, by an attribute": (lambda m, x: m.top(m.conv(x).mT), "got mT"),
    "permuted maps": (lambda m, x: m.top(m.conv(x).permute(0, 2, 3, 1)), "got permute"),
    "maps of another shape": (
        lambda m, x: m.top(m.other(m.conv(x).view(-1, 3, 2, 8))),
        r"expected maps \(3, 4, 4\) as they were made, got \(3, 2, 8\)",
    ),
    "a mean of samples": (lambda m, x: m.top((y := m.conv(x)) - y.mean(0)), "got dim 0"),
    "a mean of maps": (
        lambda m, x: m.small(m.conv(x).mean(1)[:, 0, :3]),
        "the mean over positions of a map, got dim 1",
    ),
    "a part of the maps": (
        lambda m, x: m.small(m.conv(x)[:, :, 0, 0]),
        r"expected an index that keeps all entries, got .* of \(3, 4, 4\)$",
    ),
    "maps in another order": (lambda m, x: m.top(m.conv(x)[:, [2, 1, 0]]), "that keeps all entr"),
    "a maximum of maps": (lambda m, x: m.small(m.conv(x).amax(1)[:, 0, :3]), "the amax over posit"),
    "a mean of all": (
        lambda m, x: m.top(m.conv(x)) + x.mean(),
        "expected one tensor with a row for each sample, got what mean returns$",
    ),
    "circular padding": (
        lambda m, x: m.top(F.conv2d(F.pad(x, (1,) * 4, "circular"), m.conv.weight)),
        "expected padding with zeros",
    ),
    "padding with ones": (
        lambda m, x: m.top(F.conv2d(F.pad(x, (1,) * 4, value=1.0), m.conv.weight)),
        "expected padding with zeros",
    ),
    "computed weights": (
        lambda m, x: m.top(F.conv2d(x, 2 * m.conv.weight, padding=1)),
        "expected plain numbers, got a weight that is computed",
    ),
    "random weights": (
        lambda m, x: m.top(F.conv2d(x, torch.randn(3, 2, 3, 3), padding=1)),
        "expected plain numbers, got a weight that is computed",
    ),
    "a layer twice": (
        lambda m, x: m.top(m.other(m.other(m.conv(x)))),
        "^module 'other' .*expected a weight of its own, got that of an earlier layer",
    ),
    "dropout as by default": (lambda m, x: m.top(F.dropout(m.conv(x))), "expected evaluation mode"),
    "dropout of another name": (
        lambda m, x: m.top(torch.dropout(m.conv(x), 0.5, True)),
        "^model: expected layers whose outputs are the model's, got others",
    ),
    "noise": (lambda m, x: m.top((y := m.conv(x)) + torch.randn_like(y)), "got randn_like"),
    "noise at the end": (lambda m, x: m.top(m.conv(x)) + torch.randn(4), "got one and a constant$"),
    "other numbers": (
        lambda m, x: m.top(m.conv(x).double().float()),
        "expected torch.float32 throughout, got torch.float64 of double",
    ),
    "a counter": (counting, "^model: expected layers whose outputs are the model's, got others"),
    "the number of samples": (by_the_number_of_samples, "^model: expected layers whose outputs"),
    "a change through a view": (changed_through_a_view, "got one of which a part or a view was ch"),
    "a change in part": (changed_in_part, "got one of which a part or a view was changed in place"),
    "a change under another": (changed_under_another, "got one of which a part or a view was chan"),
    "a change at the end": (changed_at_the_end, "^model: .*got one of which a part or a view was"),
    "a change unseen": (changed_unseen, "^model: expected layers whose outputs are the model's"),
}


LINE = r"line \d+ of .*, `.*`"
PLACE = rf"^(model|model: network|module '\w+' .*|{LINE}|{LINE}, in module '\w+'): expected "


@in_turn(
    pytest.mark.parametrize("dtype", [torch.float32, torch.float64]),
    pytest.mark.parametrize("name", FORWARDS),
)
def test_a_forward_pass_is_refused_and_the_error_names_the_line_or_the_module(name, dtype):
    way, message = FORWARDS[name]
    torch.manual_seed(0)
    model = Written(way).to(dtype)
    refused(model, (2, 4, 4), message if dtype == torch.float32 else PLACE)
    refused(model, (2, 4, 4), PLACE)


def test_what_the_forward_passes_change_is_accepted():
    net = from_torch(Written(lambda m, x: m.top(m.conv(x))), (2, 4, 4)).net
    assert [type(layer).__name__ for layer in net.layers] == ["Conv", "Dense"]
