"""A small convolutional network."""

from __future__ import annotations

from torch import Tensor, nn


class Net(nn.Module):
    """Images (B, 1, H, W) to logits (B, classes): five convolutions with batch norm, the picture halved twice on the way."""

    def __init__(self, width: int = 32, n_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(1, width),
            *convolution(width, width),
            nn.MaxPool2d(2),
            *convolution(width, 2 * width),
            *convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *convolution(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, n_classes),
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.layers(image_BCHW)


def convolution(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
