"""Where a tokenizer comes from: the Hugging Face hub, a local folder, or a small one trained on the training images."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import TokenizerManifest, hashes, publish, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.data import draws
from drifting_core.data.images import centre_crops
from drifting_core.data.index import ImageReader
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress
from drifting_core.models.tokenizer import CONFIG, WEIGHTS, Autoencoder, Tokenizer, load, normalised
from drifting_core.sources.fetching import fetched_folder

log = logging.getLogger(__name__)

FOLDER = "vae"

# Posterior variances start small: a tokenizer that begins with noise of size 1 first learns to ignore its latents.
_LOG_VARIANCE_START = -6.0

# On the photos at 400 steps of 16 (one seed): warm-up and clip +0.6 dB, betas without decay +0.5 dB.
_WARMUP_STEPS = 50
_CLIP = 1.0
_BETAS = (0.9, 0.95)

# Weight of the error along green-magenta. That axis has so little variance that four channels drop it for sharper edges:
# reconstructed grass was brown. Measured at 800 steps of 8: unexplained 0.91 without, 0.35 with it, for 1.9 dB.
_COLOUR_WEIGHT = 1.0


def obtain(
    section: config.Tokenizer,
    data: config.Data | None,
    index: Path | None,
    output: Path,
    configuration: str,
    device: torch.device,
    threads: int = 1,
    fetched: Path | None = None,
) -> TokenizerManifest:
    """Bring the tokenizer that `section` describes beside `output`, and write its manifest there.

    `data` and `index` (index.json) are needed for source 'trained' only, `fetched` (its manifest) for 'hub'. Raises Fault.
    """
    if section.source == "hub":
        assert section.hub is not None
        if fetched is None:
            raise Fault("make_tokenizer: tokenizer.source 'hub' lacks its download; give --fetched, the manifest of it")
        description = f"{section.hub.id} at {section.hub.revision}"
        return adopt(section, fetched_folder(fetched), description, output, configuration, hashes({"fetched": fetched}))
    if section.source == "folder":
        assert section.folder is not None
        return adopt(section, Path(section.folder), f"folder {Path(section.folder).name}", output, configuration)
    if data is None or index is None:
        raise Fault("make_tokenizer: tokenizer.source 'trained' lacks its images; give --index and the slice 'data'")
    readers = (ImageReader(index, split, data.archives) for split in ("train", "val"))
    images, held_out = (
        torch.from_numpy(centre_crops(reader, range(len(reader)), data.image_size, threads)) for reader in readers
    )
    return train(section, images, held_out, output, configuration, hashes({"index": index}), device)


# --- from the hub or a folder -----------------------------------------------------------------------------------------


def adopt(
    section: config.Tokenizer,
    source: Path,
    description: str,
    output: Path,
    configuration: str,
    inputs: dict[str, str] | None = None,
) -> TokenizerManifest:
    """Check the tokenizer in `source`, copy it beside `output` and write its manifest there. Raises Fault."""
    load(source)
    return _publish(section, source, description, output, configuration, inputs or {}, None)


def _publish(
    section: config.Tokenizer,
    source: Path,
    description: str,
    output: Path,
    configuration: str,
    inputs: dict[str, str],
    psnr_db: float | None,
) -> TokenizerManifest:
    folder = output.parent / FOLDER
    for name in (CONFIG, WEIGHTS):
        with publish(folder / name) as scratch:
            shutil.copyfile(source / name, scratch)
    tokenizer = Tokenizer(folder)
    for field in ("factor", "channels"):
        if getattr(tokenizer, field) != getattr(section, field):
            raise Fault(
                f"tokenizer.{field}: {getattr(section, field)}, but the tokenizer from {description} has "
                f"{getattr(tokenizer, field)}; set the key to that"
            )
    made = TokenizerManifest(
        configuration=configuration,
        code=code_version(),
        inputs=inputs,
        files=records(output.parent, [f"{FOLDER}/{CONFIG}", f"{FOLDER}/{WEIGHTS}"]),
        source=description,
        folder=FOLDER,
        weights_sha256=tokenizer.sha256,
        scaling_factor=tokenizer.scaling_factor,
        channels=tokenizer.channels,
        factor=tokenizer.factor,
        psnr_db=psnr_db,
    )
    made.write(output)
    return made


# --- trained here -----------------------------------------------------------------------------------------------------


def train(
    section: config.Tokenizer,
    images: Tensor,
    held_out: Tensor,
    output: Path,
    configuration: str,
    inputs: dict[str, str],
    device: torch.device | str = "cpu",
) -> TokenizerManifest:
    """Train a small AutoencoderKL on `images` and save it with the scale that gives latents the standard deviation 1.

    `images`, `held_out`: uint8 (N, 3, S, S); PSNR is measured on the latter. Loss: L1 + MSE + colour + kl_weight KL,
    on plain and mirrored images; AdamW without decay on a cosine schedule, clipped gradients. Raises Fault when it
    diverges.
    """
    assert section.training is not None
    model = _fit(section, images, torch.device(device)).eval().requires_grad_(False)
    std = _posterior_std(model, images, section.training)
    model.register_to_config(scaling_factor=round(1.0 / std, 6))
    psnr = round(_psnr(model, held_out, section.training.batch), 3)
    log.info("trained tokenizer: PSNR %.2f dB on %d held-out images, latent scale %.4f", psnr, len(held_out), 1.0 / std)
    with tempfile.TemporaryDirectory() as scratch:
        model.cpu().save_pretrained(scratch, safe_serialization=True)
        return _publish(section, Path(scratch), "trained on the training images", output, configuration, inputs, psnr)


def small_autoencoder(section: config.Tokenizer) -> Autoencoder:
    """The untrained model: one layer per block, `training.channels` per resolution, no attention.

    Attention in the middle takes a quarter of the time and gave no better PSNR at 1,250 steps (one run each).
    """
    assert section.training is not None
    stages = len(section.training.channels)
    if 2 ** (stages - 1) != section.factor:
        raise Fault(
            f"tokenizer.training.channels: {stages} resolutions make a factor of {2 ** (stages - 1)}, tokenizer.factor is "
            f"{section.factor}; give one number of channels more per halving"
        )
    model: Autoencoder = AutoencoderKL(
        block_out_channels=section.training.channels,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        layers_per_block=1,
        norm_num_groups=section.training.norm_groups,
        latent_channels=section.channels,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        model.quant_conv.bias[section.channels :] = _LOG_VARIANCE_START
    return model


def _fit(section: config.Tokenizer, images: Tensor, device: torch.device) -> Autoencoder:
    training = section.training
    assert training is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = small_autoencoder(section).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, betas=_BETAS, weight_decay=0.0)
    progress = Progress("tokenizer", training.steps)
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(training, step)
        batch = normalised(_batch(images, training, step)).to(device)
        loss = _loss(model, batch, training, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise Fault(f"tokenizer: the loss is {loss.item()} at step {step}; lower tokenizer.training.learning_rate")
        progress.advance(note=f"loss {loss.item():.4f}")
    return model


def _learning_rate(training: config.TokenizerTraining, step: int) -> float:
    """A short warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    return training.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / training.steps))


def _batch(images: Tensor, training: config.TokenizerTraining, step: int) -> Tensor:
    """uint8 (B, 3, S, S): images drawn with replacement, mirrored half of the time; a function of (seed, step)."""
    rows = draws.integers(draws.key(training.seed, "tokenizer", "rows", step), len(images), (training.batch,))
    mirrored = draws.integers(draws.key(training.seed, "tokenizer", "mirror", step), 2, (training.batch, 1, 1, 1))
    chosen = images[rows]
    return torch.where(mirrored.bool(), chosen.flip(-1), chosen)


def _loss(model: Autoencoder, batch: Tensor, training: config.TokenizerTraining, step: int) -> Tensor:
    posterior = model.encode(batch).latent_dist
    noise = draws.normal(draws.key(training.seed, "tokenizer", "noise", step), posterior.mean.shape)
    restored = model.decode(posterior.mean + posterior.std * noise.to(batch.device)).sample
    error = _restoration_error(restored, batch)
    return error + training.kl_weight * posterior.kl().mean()


def _restoration_error(restored: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE, and once more the L1 along green-magenta: G - (R + B) / 2."""
    difference = restored - images
    colour = difference[:, 1] - (difference[:, 0] + difference[:, 2]) / 2
    return difference.abs().mean() + difference.square().mean() + _COLOUR_WEIGHT * colour.abs().mean()


@torch.no_grad()
def _posterior_std(model: Autoencoder, images: Tensor, training: config.TokenizerTraining) -> float:
    """Standard deviation of unscaled posterior samples: that of the means plus the posterior's own variance."""
    total = squares = 0.0
    count = 0
    for batch in images.split(training.batch):
        posterior = model.encode(normalised(batch).to(model.device)).latent_dist
        mean = posterior.mean.double()
        total += mean.sum().item()
        squares += (mean.square() + posterior.var.double()).sum().item()
        count += mean.numel()
    return math.sqrt(squares / count - (total / count) ** 2)


@torch.no_grad()
def _psnr(model: Autoencoder, images: Tensor, batch_size: int) -> float:
    """Peak signal to noise ratio in dB of the posterior mean's decoding: the mean over images of each image's PSNR."""
    total = 0.0
    for batch in images.split(batch_size):
        target = normalised(batch).to(model.device)
        restored = model.decode(model.encode(target).latent_dist.mean).sample.clamp(-1, 1)
        error = (restored - target).double().square().mean(dim=(1, 2, 3))
        total += (10 * torch.log10(4 / error)).sum().item()
    return total / len(images)
