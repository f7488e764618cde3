"""What is published elsewhere: the authors' weights, with the numbers they report for them; tokenizers, images, Inception.

Facts of the release (its README, and the layout of the hub repository); sizes and hashes as they are known; light.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

PAPER = "2602.04770"  # on arXiv
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

PRESETS = {"ablation": "ablation", "b2": "latent_B_sota", "l2": "latent_L_sota"}  # which of them a preset trains itself


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


class File(NamedTuple):
    """A published file, where it can be had, and its size and hash as far as they are known."""

    name: str
    bytes: int | None = None
    source: str = ""
    md5: str = ""
    sha256: str = ""
    exact: bool = True  # False where nobody states the size to the byte

    @property
    def size(self) -> str:
        if self.bytes is None:
            return "size not known"
        return f"{self.bytes:,} bytes" if self.exact else f"about {self.bytes / 1e6:,.1f} MB"

    @property
    def hash(self) -> str:
        return f"MD5 {self.md5}" if self.md5 else f"SHA-256 {self.sha256}" if self.sha256 else "hash not known"


_IMAGENET = "https://image-net.org/download-images (ILSVRC2012, for account holders)"
IMAGENET = {  # by the key of data.archives
    "train": File("ILSVRC2012_img_train.tar", 147_897_477_120, _IMAGENET, "1d675b47d978889d74fa0da5fadfb00e"),
    "val": File("ILSVRC2012_img_val.tar", 6_744_924_160, _IMAGENET, "29b22e2961454d5413ddabcf34fc5622"),
    "devkit": File(
        "ILSVRC2012_devkit_t12.tar.gz", 2_500_000, _IMAGENET, "fa75699e90414af021442c21a62c3abf", exact=False
    ),
}  # fmt: skip
CIFAR10 = File(
    "cifar-10-binary.tar.gz", 170_052_171, "https://www.cs.toronto.edu/~kriz/cifar.html", "c32a1d4ab5d03f1284b67883e8d87530"
)
INCEPTION = File(
    "pt_inception-2015-12-05-6726825d.pth",
    95_628_359,
    "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
SD_VAE_FILES = (
    File("config.json", 547, sha256="92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e"),
    File(
        "diffusion_pytorch_model.safetensors",
        334_643_276,
        sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    ),
)


def archive(md5: str | None) -> File:
    """What is known of the archive with this MD5."""
    known = {file.md5: file for file in (*IMAGENET.values(), CIFAR10)}
    return known.get(md5 or "", File("", md5=md5 or ""))
