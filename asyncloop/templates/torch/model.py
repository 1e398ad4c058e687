"""A network of two layers: put your own module here. Losses, optimizer and all the rest stand in cfg.toml."""

from torch import Tensor, nn


class TwoLayers(nn.Module):
    """Any `torch.nn.Module` will do. The run's seed is PyTorch's seed already when this is constructed."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, x: Tensor) -> Tensor:
        """From the sources that `inputs` names, x (B, 2) here, to what `loss` calls `output`, logits (B, 2)."""
        return self.layers(x)
