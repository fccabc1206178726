"""The work loads in PyTorch: parameter groups with fused Adam, the same compiled, and fastai's optimizer."""

# pyright: reportMissingImports=false
# It runs in an environment of its own.

import torch
from serving import cuts, serve, wanted
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    def __init__(self, channels: int, filters: int, strides: int):
        super().__init__()
        self.shortcut = nn.Conv2d(channels, filters, 1, strides) if strides > 1 else nn.Identity()
        self.one, self.other = unit(channels, filters, strides), unit(filters, filters, 1)

    def forward(self, x):
        return functional.relu(self.shortcut(x) + self.other(self.one(x)))


def unit(channels: int, filters: int, strides: int) -> nn.Module:
    convolution = nn.Conv2d(channels, filters, 3, strides, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU())


class Attending(nn.Module):
    def __init__(self, width: int, heads: int, wide: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width, eps=1e-3)
        self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)
        self.last_norm = nn.LayerNorm(width, eps=1e-3)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.last_norm(x + self.down(functional.gelu(self.up(x))))


class Mean(nn.Module):
    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.mean(self.axes)


def small_layers():
    hidden = [part for _ in range(99) for part in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, 64)), (torch.randn(32, 64), torch.randn(32, 64))


def resnet():
    blocks, channels = [], 16
    for filters in (16, 32, 64):
        for block in range(3):
            blocks.append(Residual(channels, filters, 2 if filters > 16 and block == 0 else 1))
            channels = filters
    model = nn.Sequential(unit(3, 16, 1), *blocks, Mean(2, 3), nn.Linear(64, 10))
    return model, (torch.randn(32, 3, 32, 32), torch.randn(32, 10))


def transformer():
    layers = [Attending(384, 12, 1536) for _ in range(6)]
    model = nn.Sequential(nn.Embedding(30522, 384), nn.LayerNorm(384, eps=1e-3), *layers, Mean(1), nn.Linear(384, 1))
    return model, (torch.randint(0, 30522, (16, 64)), torch.randn(16, 1))


WORKLOADS = {"small layers": small_layers, "resnet": resnet, "transformer": transformer}


def parts(model: nn.Module, groups: int) -> list[list[nn.Parameter]]:
    """Cuts between modules that have parameters of their own, or if these are too few between parameters."""
    owned = [list(module.parameters(recurse=False)) for module in model.modules()]
    units = [part for part in owned if part]
    if groups > len(units):
        units = [[parameter] for parameter in model.parameters()]
    return [[p for i in cut for p in units[i]] for cut in cuts(len(units), min(groups, len(units)))]


def make_optimizer(system: str, groups: list[list[nn.Parameter]]):
    rates = [1e-4 * 0.99**i for i in range(len(groups))]
    if system == "fastai":
        from fastai.optimizer import Adam

        return Adam(groups, lr=rates)
    return torch.optim.Adam(
        [{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True)], fused=True
    )


def main() -> None:
    name, system, groups = wanted()
    torch.manual_seed(0)
    model, (x, y) = WORKLOADS[name]()
    model.train()
    optimizer = make_optimizer(system, parts(model, groups))
    call = torch.compile(model) if system == "torch, compiled" else model

    def step() -> None:
        functional.mse_loss(call(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    serve(step)


main()
