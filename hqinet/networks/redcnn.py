"""RED-CNN, the field's reference network for low-dose CT (Chen et al. 2017)."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from hqinet.networks.recipe import SMALLEST_OF_REDCNN

_DEPTH = 5
_KERNEL = 5


class REDCNN(nn.Module):
    """Residual encoder-decoder: five 5x5 convolutions, five 5x5 transposed ones, three shortcuts.

    As published (section II.B and figure 2): 96 filters, stride 1, no zero padding, ReLU after
    every layer; the input and the outputs of convolutions 2 and 4 are added to the mirrored
    transposed convolutions before their ReLU. Weights are drawn from N(0, 0.01), biases are 0.
    Only the middle slice of the window is seen, as there.
    """

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        widths = [1] + [channels] * _DEPTH
        steps = list(pairwise(widths))
        self.encoder = nn.ModuleList(nn.Conv2d(i, o, _KERNEL) for i, o in steps)
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(o, i, _KERNEL) for i, o in reversed(steps))
        for layer in [*self.encoder, *self.decoder]:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, windows: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002 - one interface
        """`(n, 3, h, w) in [0, 1], (n,) -> (n, 1, h, w)`; ValueError under 21x21 pixels."""
        if min(windows.shape[-2:]) < SMALLEST_OF_REDCNN:
            least, shape = SMALLEST_OF_REDCNN, tuple(windows.shape[-2:])
            message = f"RED-CNN needs slices of {least}x{least} or more, got {shape}"
            raise ValueError(message)
        x = windows[:, 1:2]
        shortcuts: list[Tensor | None] = []
        for i, layer in enumerate(self.encoder):
            shortcuts.append(x if i % 2 == 0 else None)
            x = F.relu(layer(x))
        for layer, shortcut in zip(self.decoder, reversed(shortcuts), strict=True):
            x = layer(x)
            x = F.relu(x if shortcut is None else x + shortcut)
        return x
