"""What the authors publish: their weights on the Hugging Face hub, and the numbers they report for them.

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


def names(network: str) -> list[str]:
    """The published encoders or generators."""
    return [name for name, published in NETWORKS.items() if published.network == network]
