"""Development programs on handwritten digits: MLP, CNN, residual CNN, ViT, VAE, contrastive encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.data import digits
from benchmarks.zoo.programs.layers import ViT, stack
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, warm_cosine


def make_mlp(*, depth: int = 4, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Module:
    return stack([64, *[96] * (depth - 1), 10], activation, dropout=dropout)


def mlp(seed: int) -> Recipe:
    return Recipe("mlp", seed, 300, 32, digits(), make_mlp, cross_entropy, OptimizerSpec("adam", 1e-3), learns=0.2)


def make_cnn(*, depth: int = 3, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), activation()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(16, 16, 3, padding=1), activation()]
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, 10)]
    return nn.Sequential(*layers)


def cnn(seed: int) -> Recipe:
    return Recipe("cnn", seed, 250, 32, digits(), make_cnn, cross_entropy, OptimizerSpec("sgd", 0.03), learns=0.2)


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(x + self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))


def make_resnet(*, width: int = 12) -> nn.Module:
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    body = [Residual(width), nn.MaxPool2d(2), Residual(width), Residual(width)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def resnet(seed: int) -> Recipe:
    spec = OptimizerSpec("nesterov", 0.1, weight_decay=5e-4)
    return Recipe("resnet", seed, 240, 32, digits(), make_resnet, cross_entropy, spec, schedule=warm_cosine, learns=0.2)


def vit(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 4e-3, weight_decay=0.05)
    return Recipe("vit", seed, 300, 32, digits(), ViT, cross_entropy, spec, schedule=warm_cosine, learns=0.2)


class VAE(nn.Module):
    """A variational autoencoder with eight latent numbers."""

    def __init__(self, *, depth: int = 3, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.encoder = stack([64, *[96] * (depth - 1), 16], activation)
        self.decoder = stack([8, *[96] * (depth - 1), 64], activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, dim=-1)
        log_var = log_var.clamp(-8.0, 8.0)
        latent = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return self.decoder(latent), mean, log_var


def evidence_bound(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error plus the divergence from the prior, a number a pixel."""
    rebuilt, mean, log_var = model(batch[0])
    divergence = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(-1).float().mean()
    return F.mse_loss(rebuilt.float(), batch[1].float()) + 0.1 * divergence / 64


def vae(seed: int) -> Recipe:
    data = digits().mapped(lambda part: (part[0], part[0]))
    return Recipe("vae", seed, 300, 64, data, VAE, evidence_bound, OptimizerSpec("adam", 2e-3), learns=0.6)


def make_encoder(*, depth: int = 4, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return stack([64, *[96] * (depth - 1), 32], activation)


def contrast(model: nn.Module, batch: Batch) -> Tensor:
    """Two noisy, moved views of each image must find each other among all others (InfoNCE)."""
    first, second = (F.normalize(model(_view(images)).float(), dim=-1) for images in batch)
    return F.cross_entropy(first @ second.T / 0.2, torch.arange(len(first)))


def _view(images: Tensor) -> Tensor:
    moved = torch.roll(images.view(-1, 8, 8), shifts=int(torch.randint(-1, 2, ())), dims=2).flatten(1)
    return moved + 0.3 * torch.randn_like(moved)


def contrastive(seed: int) -> Recipe:
    data = digits().mapped(lambda part: (part[0], part[0]))
    return Recipe("contrastive", seed, 300, 64, data, make_encoder, contrast, OptimizerSpec("adam", 1e-3), learns=0.5)


PROGRAMS = (
    Program("mlp", "MLP, digits, Adam", mlp, traits("classes labels features relu depth dropout cheap"), 1e-3, 0.05),
    Program("cnn", "CNN, digits, SGD", cnn, traits("classes labels features relu depth dropout cheap"), 1e-3, 0.03),
    Program("resnet", "ResNet, digits, SGD", resnet, traits("classes labels features relu batchnorm"), 3e-3, 0.1),
    Program("vit", "ViT, digits, AdamW", vit, traits("classes labels features attention dropout"), 4e-3, 0.03),
    Program("vae", "VAE, digits, Adam", vae, traits("labels features relu depth"), 2e-3, 0.1),
    Program(
        "contrastive", "SimCLR, digits, Adam", contrastive, traits("pairs labels features relu depth cheap"), 1e-3, 0.1
    ),
)
