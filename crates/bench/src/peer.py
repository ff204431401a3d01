"""The nets of the benchmark in PyTorch: takes orders on standard input, answers each with the seconds of its steps as JSON.

An order is `NET MODE BATCH STEPS FORMAT`, with MODE `train` or `infer` and FORMAT `nchw` or `channels-last`.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.pad = (filters - channels) // 2

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


def resnet20():
    blocks, channels = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for filters in (16, 32, 64):
        for _ in range(3):
            blocks.append(Block(channels, filters, 1 if filters == channels else 2))
            channels = filters
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vgg16():
    layers, channels = [], 3
    for count, filters in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, filters, 3, 1, 1), nn.BatchNorm2d(filters), nn.ReLU()]
            channels = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10))


def lenet5():
    features = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


def lenet300():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


NETS = {"lenet300": (lenet300, (1, 28, 28)), "lenet5": (lenet5, (1, 28, 28)), "resnet20": (resnet20, (3, 32, 32)), "vgg16-cifar": (vgg16, (3, 32, 32))}
MADE = {}


def made(name, batch, form):
    if (name, batch, form) not in MADE:
        build, shape = NETS[name]
        torch.manual_seed(0)
        net, images, labels = build().to(DEVICE), torch.rand(batch, *shape), torch.arange(batch) % 10
        if form.startswith("channels-last"):
            net, images = net.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        if DEVICE.type != "cpu":
            images, labels = images.pin_memory(), labels.pin_memory()
        MADE[name, batch, form] = net, images, labels, optimizer
    return MADE[name, batch, form]


def step(name, mode, batch, form):
    net, images, labels, optimizer = made(name, batch, form)
    images, labels = images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
    if mode == "infer":
        net.eval()
        with torch.no_grad():
            net(images)
        return
    net.train()
    optimizer.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()


DEVICE = torch.device(sys.argv[2])
torch.set_num_threads(int(sys.argv[1]))
torch.zeros(1, device=DEVICE)
print(json.dumps(torch.__version__), flush=True)
for order in sys.stdin:
    name, mode, batch, steps, form = order.split()
    # The first step of a turn finds cold caches and threads asleep, here as in the other turns.
    step(name, mode, int(batch), form)
    times = []
    if DEVICE.type == "cpu":
        for _ in range(int(steps)):
            began = time.perf_counter()
            step(name, mode, int(batch), form)
            times.append(time.perf_counter() - began)
    else:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(int(steps)):
            step(name, mode, int(batch), form)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / int(steps))
    print(json.dumps(times), flush=True)
