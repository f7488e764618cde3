"""What is published on the Hugging Face hub: the authors' weights, with the numbers they report for them; tokenizers.

Facts of the release (its README, and the layout of the hub repository); light.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

REPOSITORY = "Goodeat/drifting"
REVISION = "1a5afa9fc22c3beefe06e4689e84d3e6500b5983"
METADATA, PARAMETERS = "metadata.json", "ema_params.msgpack"
SCALING_FACTOR = 0.18215  # of the latents that these weights know: SD-VAE ft-mse


class Reported(NamedTuple):
    """FID-50K and IS at `alpha`, of the paper's model and of the released checkpoint; None where nobody says."""

    alpha: float
    fid_paper: float | None
    fid_release: float | None
    is_paper: float | None
    is_release: float | None


class Published(NamedTuple):
    """One network of the repository."""

    network: Literal["encoder", "generator"]
    folder: str  # inside the repository
    reported: Reported | None = None


NETWORKS = {
    "ablation": Published("generator", "models/gen/jax/ablation", Reported(2.0, 8.46, 8.49, None, 144.0)),
    "latent_B_sota": Published("generator", "models/gen/jax/latent_B_sota", Reported(1.1, 1.75, 1.74, 263.2, 263.4)),
    "latent_L_sota": Published("generator", "models/gen/jax/latent_L_sota", Reported(1.0, 1.54, 1.53, 258.9, 260.1)),
    "mae_latent_256": Published("encoder", "models/mae/jax/mae_latent_256"),
    "mae_latent_640": Published("encoder", "models/mae/jax/mae_latent_640"),
}


def reported(source: str) -> Reported | None:
    """What is reported for a generator.source, where it is a published one."""
    network = NETWORKS.get(source.removeprefix("released:").partition("@")[0]) if source.startswith("released:") else None
    return network.reported if network else None


def names(network: str) -> list[str]:
    """The published encoders or generators."""
    return [name for name, published in NETWORKS.items() if published.network == network]


class Download(NamedTuple):
    """Files of one repository at one commit; `folder` is where they lie inside it."""

    key: str  # name of the folder below results/sources
    repository: str
    revision: str
    folder: str
    files: tuple[str, ...]


def download(name: str, revision: str = "") -> Download:
    """A published network, at the pinned commit unless another is given."""
    folder, revision = NETWORKS[name].folder, revision or REVISION
    return Download(f"{name}-{revision[:8]}", REPOSITORY, revision, folder, (METADATA, PARAMETERS))


def tokenizer_download(repository: str, revision: str) -> Download:
    """A tokenizer as diffusers publishes one."""
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    return Download(f"{repository.rpartition('/')[2]}-{revision[:8]}", repository, revision, "", files)


SD_VAE = tokenizer_download("stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493")
