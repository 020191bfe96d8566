"""Models as people write them in PyTorch, small: a class each, and the input that it reads.

`norm` makes a batch normalisation of so many maps; without one there is nothing in its place.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


def nothing(maps):
    """Return what stands in place of a normalisation."""
    return nn.Identity()


class LeNet5(nn.Module):
    """The network of PyTorch's tutorial, for images 1 x 32 x 32."""

    def __init__(self, maps=(6, 16), widths=(120, 84, 10)):
        super().__init__()
        self.conv1 = nn.Conv2d(1, maps[0], 5)
        self.conv2 = nn.Conv2d(maps[0], maps[1], 5)
        self.fc1 = nn.Linear(maps[1] * 5 * 5, widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1])
        self.fc3 = nn.Linear(widths[1], widths[2])

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)

    def num_flat_features(self, x):
        size = x.size()[1:]
        num_features = 1
        for s in size:
            num_features *= s
        return num_features


class AlexNet(nn.Module):
    """AlexNet for images 3 x 32 x 32."""

    def __init__(self, width=4, num_classes=10):
        super().__init__()
        n = width
        self.features = nn.Sequential(
            nn.Conv2d(3, n, kernel_size=3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2),
            nn.Conv2d(n, 3 * n, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            nn.Conv2d(3 * n, 6 * n, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6 * n, 4 * n, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * n, 4 * n, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(4 * n, 8 * n),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(8 * n, 8 * n),
            nn.ReLU(inplace=True),
            nn.Linear(8 * n, num_classes),
        )

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.classifier(x)
        return x


class VGG11(nn.Module):
    """VGG with 11 layers for images 3 x 32 x 32; `width` is 64 in the paper."""

    CONFIGURATION = (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")

    def __init__(self, width=2, num_classes=10, norm=nothing):
        super().__init__()
        layers, maps = [], 3
        for part in self.CONFIGURATION:
            if part == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                conv = nn.Conv2d(maps, part * width, kernel_size=3, padding=1)
                layers += [conv, norm(part * width), nn.ReLU(inplace=True)]
                maps = part * width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(maps, num_classes)

    def forward(self, x):
        out = self.features(x)
        out = out.view(out.size(0), -1)
        return self.classifier(out)


class BasicBlock(nn.Module):
    """Two convolutions and what they read, or a projection of it (He et al. 2016)."""

    def __init__(self, in_planes, planes, stride=1, norm=nothing):
        super().__init__()
        bias = norm is nothing
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=bias)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=bias)
        self.bn2 = norm(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, kernel_size=1, stride=stride, bias=bias), norm(planes)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """A ResNet of CIFAR-10's kind: three groups of blocks, their maps halved between them.

    With one block in a group it has 8 layers with weights, with three 20.
    """

    def __init__(self, blocks=1, width=4, num_classes=10, norm=nothing, channels=3):
        super().__init__()
        self.in_planes = width
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=norm is nothing)
        self.bn1 = norm(width)
        self.layer1 = self._make_layer(width, blocks, 1, norm)
        self.layer2 = self._make_layer(2 * width, blocks, 2, norm)
        self.layer3 = self._make_layer(4 * width, blocks, 2, norm)
        self.linear = nn.Linear(4 * width, num_classes)

    def _make_layer(self, planes, blocks, stride, norm):
        layers = []
        for step in [stride] + [1] * (blocks - 1):
            layers.append(BasicBlock(self.in_planes, planes, step, norm))
            self.in_planes = planes
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer1(out)
        out = self.layer2(out)
        out = self.layer3(out)
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class PreActivationBlock(nn.Module):
    """A block whose normalisations and activations come first (He et al. 2016, Identity mappings).

    The projection reads what is activated.
    """

    def __init__(self, in_planes, planes, stride=1, norm=nothing):
        super().__init__()
        self.bn1, self.bn2 = norm(in_planes), norm(planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1)
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Conv2d(in_planes, planes, 1, stride)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class PreActivationResNet(nn.Module):
    def __init__(self, width=3, num_classes=10, norm=nothing, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.layer1 = PreActivationBlock(width, width, 1, norm)
        self.layer2 = PreActivationBlock(width, 2 * width, 2, norm)
        self.bn = norm(2 * width)
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        out = self.layer2(self.layer1(self.conv1(x)))
        out = F.relu(self.bn(out))
        out = out.mean(dim=(2, 3))
        return self.linear(out)


class SeparableBlock(nn.Module):
    """A convolution of each map by itself, then one of single positions (MobileNet)."""

    def __init__(self, in_planes, out_planes, stride=1, norm=nothing):
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_planes, in_planes, kernel_size=3, stride=stride, padding=1, groups=in_planes
        )
        self.bn1 = norm(in_planes)
        self.conv2 = nn.Conv2d(in_planes, out_planes, kernel_size=1)
        self.bn2 = norm(out_planes)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)))


class InvertedResidual(nn.Module):
    """A block that is wide inside, without an activation at its end (MobileNetV2)."""

    def __init__(self, maps, expand_ratio=2, norm=nothing):
        super().__init__()
        hidden = expand_ratio * maps
        self.conv = nn.Sequential(
            nn.Conv2d(maps, hidden, 1, bias=norm is nothing),
            norm(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=norm is nothing),
            norm(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, maps, 1, bias=norm is nothing),
            norm(maps),
        )

    def forward(self, x):
        return x + self.conv(x)


class MobileNet(nn.Module):
    def __init__(self, width=3, num_classes=10, norm=nothing):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1)
        self.bn1 = norm(width)
        self.layers = nn.Sequential(
            SeparableBlock(width, 2 * width, norm=norm),
            SeparableBlock(2 * width, 2 * width, 2, norm),
            InvertedResidual(2 * width, norm=norm),
        )
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layers(out)
        out = F.adaptive_avg_pool2d(out, 1).squeeze(-1).squeeze(-1)
        return self.linear(out)


class Signals(nn.Module):
    """A network for signals of several channels, its activations of two kinds."""

    def __init__(self, channels=2, num_classes=3):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, 4, kernel_size=7, stride=2, padding=3)
        self.conv2 = nn.Conv1d(4, 5, kernel_size=3, dilation=2)
        self.pool = nn.MaxPool1d(2)
        self.fc = nn.Linear(5, num_classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = F.leaky_relu(self.conv2(x), 0.1)
        return self.fc(x.mean(-1))


class MLP(nn.Module):
    """Dense layers for vectors, or for images that are flattened first."""

    def __init__(self, sizes=(8, 12, 9, 3), activation=F.relu, bias=True):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(n, m, bias=bias) for n, m in itertools.pairwise(sizes)
        )
        self.activation = activation

    def forward(self, x):
        x = x.flatten(start_dim=1)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class DeepLinear(nn.Module):
    """Linear layers without biases and with nothing between them (Kawaguchi 2016)."""

    def __init__(self, sizes=(6, 5, 5, 2)):
        super().__init__()
        pairs = itertools.pairwise(sizes)
        self.factors = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in pairs)

    def forward(self, x):
        for factor in self.factors:
            x = factor(x)
        return x


class SumWithInput(nn.Module):
    """Blocks from the first layer on, that sums of the input itself begin."""

    def __init__(self, planes=2, num_classes=3):
        super().__init__()
        self.block1 = BasicBlock(planes, planes)
        self.block2 = BasicBlock(planes, planes)
        self.linear = nn.Linear(16 * planes, num_classes)

    def forward(self, x):
        out = self.block2(self.block1(x))
        return self.linear(out.flatten(1))


MODELS = {  # makes the model, the shape of an input
    "LeNet-5": (lambda: LeNet5((2, 3), (8, 6, 4)), (1, 32, 32)),
    "AlexNet": (lambda: AlexNet(2, 4), (3, 32, 32)),
    "VGG-11": (lambda: VGG11(1, 4, norm=nn.BatchNorm2d), (3, 32, 32)),
    "ResNet-8": (lambda: ResNet(1, 2, 4, norm=nn.BatchNorm2d), (3, 8, 8)),
    "ResNet-20": (lambda: ResNet(3, 2, 4, norm=nn.BatchNorm2d), (3, 8, 8)),
    "ResNet with activations first": (
        lambda: PreActivationResNet(2, 4, norm=nn.BatchNorm2d),
        (3, 6, 6),
    ),
    "ResNet without normalisation": (lambda: ResNet(1, 2, 4), (3, 8, 8)),
    "sum with the input": (lambda: SumWithInput(), (2, 4, 4)),
    "MobileNet": (lambda: MobileNet(3, 4, norm=nn.BatchNorm2d), (3, 8, 8)),
    "signals": (lambda: Signals(), (2, 24)),
    "MLP": (lambda: MLP(), (8,)),
    "MLP of images": (lambda: MLP((9, 6, 2)), (1, 3, 3)),
    "deep linear": (lambda: DeepLinear(), (6,)),
}
"""What makes each model in evaluation mode, and the shape of one sample."""


def model_of(name, dtype=torch.float64, seed=0):
    """Return a model at random numbers, in evaluation mode, and the shape of its input."""
    make, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().to(dtype).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # variances of 1, so that numbers are its own
                module.running_var.fill_(1 - module.eps)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        return model, shape
