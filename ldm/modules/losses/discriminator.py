"""The patch discriminator of pix2pix (Isola et al. 2017), as used to train KL first stages."""

from torch import Tensor, nn


class NLayerDiscriminator(nn.Module):
    """(N, input_nc, H, W) to a map of logits (N, 1, h, w), one for each overlapping patch."""

    def __init__(self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for n in range(1, n_layers + 1):
            width_in, width = width, ndf * min(2**n, 8)
            stride = 2 if n < n_layers else 1
            layers += [
                nn.Conv2d(width_in, width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, C, H, W) to logits (N, 1, h, w), each of a patch."""
        return self.main(x)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
