"""The authors' weights in PyTorch: flax msgpack folders read with neither jax nor flax, and no pickle.

A published folder holds `ema_params.msgpack` (or `.msgpack.xz`) and `metadata.json`. The format is that of
flax.serialization: nested maps whose leaves are extension type 1, a msgpack of (shape, dtype name, bytes); arrays above
a gigabyte are maps of chunks. golden/generator and golden/mae hold this file to the release's numbers.

Parameters are float32 and so is the computation (`compute_dtype`), whatever the metadata's `use_bf16` says: it records
how the authors ran the network, and `torch.autocast` in bfloat16 runs it so here. One trace of it is kept: without
`attn_fp32` the release makes rotary positions and angles in bfloat16, and such weights have learned those angles.
"""

from __future__ import annotations

import json
import lzma
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgpack
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from drifting_core.faults import Fault
from drifting_core.models.exports import load_export
from drifting_core.models.generator import Generator
from drifting_core.models.mae import LatentEncoder, MaskedAutoencoder
from drifting_core.sources.fetching import fetch
from drifting_core.sources.published import METADATA, NETWORKS, PARAMETERS, download

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHUNKED = "__msgpack_chunked_array__"
_LARGEST = 2**31 - 1  # bytes of one array: flax cuts them at 2^30
_NAMED = 8  # faulty tensors that a message names

Network = Generator | LatentEncoder | MaskedAutoencoder


def load_released(path_or_name: str | Path) -> Network:
    """A published network in eval mode: a Generator, or a MaskedAutoencoder (whose `features` the drift needs).

    `path_or_name` is a folder in the published format, or a name of the authors' repository (see published.py; with
    `@REVISION` for another commit than the pinned one), which is looked for in the Hugging Face cache and downloaded
    where there is internet. A folder with an export of our own works as well (an encoder export gives a LatentEncoder).
    Raises Fault for what is neither, and naming every tensor that is missing, extra or of another shape.
    """
    folder = locate(path_or_name)
    if is_export(folder):
        return load_export(folder / METADATA)[0]
    metadata = read_metadata(folder)
    with torch.device("meta"):
        module = metadata.typed.build()
    tensors = read_tensors(parameters_file(folder))
    module.load_state_dict(_converted(module, tensors, folder), assign=True)
    return module.eval()


def locate(path_or_name: str | Path) -> Path:
    """The folder that a name or path stands for. Raises Fault."""
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    name, _, revision = str(path_or_name).partition("@")
    if name in NETWORKS:
        return fetch(download(name, revision))
    raise Fault(
        f"{path_or_name}: neither a folder nor a published network; give a folder with {METADATA} and {PARAMETERS} "
        f"(or an export of this project), or one of: {', '.join(NETWORKS)}"
    )


def is_export(folder: Path) -> bool:
    """Whether the folder is an export of this project and not one in the published format."""
    try:
        return json.loads((folder / METADATA).read_bytes()).get("kind") == "export"
    except (FileNotFoundError, json.JSONDecodeError, AttributeError):
        return False


# --- metadata -------------------------------------------------------------------------------------------------------


class _Config(BaseModel):
    """`model_config` of a published folder: unknown keys are refused, they would be another architecture."""

    model_config = ConfigDict(extra="forbid")

    num_classes: int = 1000  # the published encoders leave it out
    in_channels: int = 4
    use_bf16: bool = False


class GeneratorConfig(_Config):
    """Of a generator (released models/generator.py)."""

    cond_dim: int
    noise_classes: int
    noise_coords: int
    input_size: int
    out_channels: int
    n_cls_tokens: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    attn_fp32: bool = False
    use_remat: bool = False  # recomputation in the backward pass: no change of numbers
    # The released generators have all four; without them this is another network.
    use_qknorm: Literal[True] = True
    use_swiglu: Literal[True] = True
    use_rope: Literal[True] = True
    use_rmsnorm: Literal[True] = True

    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of Generator."""
        if self.out_channels != self.in_channels:
            raise ValueError(f"out_channels: {self.out_channels}, expected in_channels ({self.in_channels})")
        return {
            "input_size": self.input_size,
            "channels": self.in_channels,
            "patch_size": self.patch_size,
            "hidden_size": self.hidden_size,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "cond_dim": self.cond_dim,
            "num_classes": self.num_classes,
            "in_context_tokens": self.n_cls_tokens,
            "style_tables": self.noise_coords,
            "style_entries": self.noise_classes,
            "mlp_ratio": self.mlp_ratio,
            "attention_fp32": self.attn_fp32,
            "rotary_precision": "bfloat16" if self.use_bf16 and not self.attn_fp32 else "float32",
        }

    def build(self) -> Generator:
        return Generator(**self.architecture())


class EncoderConfig(_Config):
    """Of a latent-MAE (released models/mae_model.py)."""

    base_channels: int
    patch_size: int = 2  # of the mask
    layers: list[int]
    input_patch_size: int = 1
    dropout_prob: float = 0.0  # of training only

    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of LatentEncoder."""
        return {
            "in_channels": self.in_channels,
            "base_width": self.base_channels,
            "blocks": self.layers,
            "input_patch_size": self.input_patch_size,
            "norm_groups": 32,
        }

    def build(self) -> MaskedAutoencoder:
        return MaskedAutoencoder(**self.architecture(), num_classes=self.num_classes, mask_patch_size=self.patch_size)


class Metadata(BaseModel):
    """metadata.json of a published folder."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["flax.msgpack"]
    kind: Literal["gen", "mae"]
    ema_decay: float
    step: int
    config: dict[str, Any] = Field(alias="model_config")

    @property
    def network(self) -> Literal["encoder", "generator"]:
        return "generator" if self.kind == "gen" else "encoder"

    @property
    def typed(self) -> GeneratorConfig | EncoderConfig:
        return (GeneratorConfig if self.kind == "gen" else EncoderConfig).model_validate(self.config)


def read_metadata(folder: Path) -> Metadata:
    """Raises Fault when metadata.json is missing or describes no network that is built here."""
    path = folder / METADATA
    try:
        metadata = Metadata.model_validate_json(path.read_bytes())
        with torch.device("meta"):
            metadata.typed.build()
    except FileNotFoundError:
        raise Fault(
            f"{path}: missing; download it: a published folder holds {METADATA} and {PARAMETERS} (or {PARAMETERS}.xz)"
        ) from None
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, p['loc']))}: {p['msg']}, found {p['input']!r}" for p in error.errors()]
        raise Fault(
            f"{path}: not the metadata of a network that is built here:\n" + "\n".join(lines) + "\ndownload it again"
        ) from None
    except ValueError as error:
        raise Fault(f"{path}: not the metadata of a network that is built here: {error}; download it again") from None
    return metadata


# --- tensors --------------------------------------------------------------------------------------------------------


def parameters_file(folder: Path) -> Path:
    """`ema_params.msgpack` of a published folder, or the same packed by xz. Raises Fault."""
    for name in (PARAMETERS, f"{PARAMETERS}.xz"):
        if (folder / name).is_file():
            return folder / name
    raise Fault(f"{folder / PARAMETERS}: missing (nor is there {PARAMETERS}.xz); download it beside {METADATA}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every array of a flax msgpack file by its slash-separated path, in its own dtype and layout, streamed.

    Raises Fault for anything that is no whole file of named arrays.
    """
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            unpacker = msgpack.Unpacker(file, ext_hook=_array, max_buffer_size=_LARGEST)
            tree = unpacker.unpack()
            if unpacker.read_bytes(1):
                raise ValueError("bytes follow the tree of arrays")
        return dict(_leaves(tree, ""))
    except (OSError, EOFError, lzma.LZMAError, ValueError, msgpack.UnpackException) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise Fault(f"{path}: no whole file of arrays as flax writes it ({what}); download it again") from None


def _array(code: int, data: bytes) -> Tensor:
    """An extension value: type 1 is an array, the others (complex, scalar) are not of a network."""
    if code != 1:
        raise ValueError(f"extension type {code}, expected arrays (1) only")
    shape, name, content = msgpack.unpackb(data)
    if name not in _DTYPES:
        raise ValueError(f"an array of {name}, expected one of {', '.join(_DTYPES)}")
    dtype = _DTYPES[name]
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for an array of {name} {tuple(shape)}")
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict) and _CHUNKED in tree:
        chunks, shape = (_in_order(tree[key]) for key in ("chunks", "shape"))
        yield path, torch.cat(chunks).reshape(shape)
    elif isinstance(tree, dict):
        for name, below in tree.items():
            yield from _leaves(below, f"{path}/{name}" if path else str(name))
    else:
        raise ValueError(f"{path or 'the file'}: a {type(tree).__name__}, expected an array or a map of them")


def _in_order(values: Any) -> list[Any]:
    """flax writes a tuple as a map from '0', '1', ..."""
    return [values[str(number)] for number in range(len(values))] if isinstance(values, dict) else list(values)


# --- names and layouts ----------------------------------------------------------------------------------------------

# Ours -> flax, first match wins. In flax a dense kernel is (in, out) and a convolution's (height, width, in, out).
_GENERATOR_NAMES = (
    (r"class_embedding\.weight", "Embed_0/embedding"),
    (r"alpha_mlp\.0", "TimestepEmbedder_0/TorchLinear_0/Dense_0"),
    (r"alpha_mlp\.2", "TimestepEmbedder_0/TorchLinear_1/Dense_0"),
    (r"alpha_norm", "RMSNorm_0"),
    (r"position_embedding", "LightningDiT_0/pos_embed"),
    (r"context_embedding", "LightningDiT_0/cls_embed"),
    (r"patch_embedding", "LightningDiT_0/TorchLinear_0/Dense_0"),
    (r"context_projection", "LightningDiT_0/TorchLinear_1/Dense_0"),
    (r"blocks\.(\d+)\.attention_norm", r"LightningDiT_0/blocks_\1/RMSNorm_0"),
    (r"blocks\.(\d+)\.mlp_norm", r"LightningDiT_0/blocks_\1/RMSNorm_1"),
    (r"blocks\.(\d+)\.attention\.qkv", r"LightningDiT_0/blocks_\1/Attention_0/TorchLinear_0/Dense_0"),
    (r"blocks\.(\d+)\.attention\.projection", r"LightningDiT_0/blocks_\1/Attention_0/TorchLinear_1/Dense_0"),
    (r"blocks\.(\d+)\.attention\.query_norm", r"LightningDiT_0/blocks_\1/Attention_0/q_norm"),
    (r"blocks\.(\d+)\.attention\.key_norm", r"LightningDiT_0/blocks_\1/Attention_0/k_norm"),
    (r"blocks\.(\d+)\.mlp\.gate", r"LightningDiT_0/blocks_\1/SwiGLUFFN_0/TorchLinear_0/Dense_0"),
    (r"blocks\.(\d+)\.mlp\.value", r"LightningDiT_0/blocks_\1/SwiGLUFFN_0/TorchLinear_1/Dense_0"),
    (r"blocks\.(\d+)\.mlp\.out", r"LightningDiT_0/blocks_\1/SwiGLUFFN_0/TorchLinear_2/Dense_0"),
    (r"blocks\.(\d+)\.modulation\.linear", r"LightningDiT_0/blocks_\1/TorchLinear_0/Dense_0"),
    (r"final_norm", "LightningDiT_0/FinalLayer_0/RMSNorm_0"),
    (r"final_modulation\.linear", "LightningDiT_0/FinalLayer_0/TorchLinear_0/Dense_0"),
    (r"final_projection", "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0"),
)
_ENCODER_NAMES = (
    (r"encoder\.conv1", "encoder/conv1"),
    (r"encoder\.norm1", "encoder/gn1"),
    (r"encoder\.stages\.(\d+)\.(\d+)\.conv(\d)", r"encoder/stages_\1/layers_\2/conv\3"),
    (r"encoder\.stages\.(\d+)\.(\d+)\.norm(\d)", r"encoder/stages_\1/layers_\2/gn\3"),
    (r"encoder\.stages\.(\d+)\.(\d+)\.shortcut\.0", r"encoder/stages_\1/layers_\2/proj_conv"),
    (r"encoder\.stages\.(\d+)\.(\d+)\.shortcut\.1", r"encoder/stages_\1/layers_\2/proj_gn"),
    *((rf"encoder\.stage_norms\.{stage}", f"encoder/layer{stage + 1}_norm") for stage in range(4)),
    (r"decoder\.bridge\.conv", "decoder/bridge/conv"),
    (r"decoder\.bridge\.norm", "decoder/bridge/gn"),
    *((rf"decoder\.up{to}\.norm", f"decoder/up{to + 1}{to}/concat_norm_fn") for to in range(4)),
    *((rf"decoder\.up{to}\.project\.conv", f"decoder/up{to + 1}{to}/proj/conv") for to in range(4)),
    *((rf"decoder\.up{to}\.project\.norm", f"decoder/up{to + 1}{to}/proj/gn") for to in range(4)),
    *((rf"decoder\.up{to}\.refine\.conv", f"decoder/up{to + 1}{to}/refine/conv") for to in range(4)),
    *((rf"decoder\.up{to}\.refine\.norm", f"decoder/up{to + 1}{to}/refine/gn") for to in range(4)),
    (r"decoder\.head", "decoder/head"),
    (r"classifier", "fc"),
)


def flax_names(module: Generator | MaskedAutoencoder) -> dict[str, list[str]]:
    """For each parameter of `module` the flax arrays that make it: one, but for the stacked style tables."""
    rules = _GENERATOR_NAMES if isinstance(module, Generator) else _ENCODER_NAMES
    found = {}
    for name, parameter in module.named_parameters():
        if isinstance(module, Generator) and name == "style_embedding.weight":
            found[name] = [f"noise_embeds_{table}/embedding" for table in range(module.style_tables)]
        else:
            found[name] = [_flax_name(name, parameter, rules)]
    return found


def _flax_name(name: str, parameter: Tensor, rules: tuple[tuple[str, str], ...]) -> str:
    stem, _, leaf = name.rpartition(".")
    if leaf == "weight":
        # A matrix or kernel is called kernel, a GroupNorm's weight scale, an RMSNorm's weight.
        leaf = "kernel" if parameter.dim() > 1 else "scale" if rules is _ENCODER_NAMES else "weight"
    for pattern, replacement in rules:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
        if re.fullmatch(pattern, stem):
            return f"{re.sub(pattern, replacement, stem)}/{leaf}"
    raise AssertionError(f"no flax name for {name}")


def _converted(module: Generator | MaskedAutoencoder, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The state dict of `module`, float32; `tensors` is emptied on the way, so that both never lie in memory whole.

    Raises Fault naming what is missing, extra or of another shape.
    """
    names, shapes = flax_names(module), {name: tuple(p.shape) for name, p in module.named_parameters()}
    _account(_expected(names, shapes), tensors, folder)
    state = {}
    for name, parts in names.items():
        state[name] = torch.cat([_from_flax(tensors.pop(part), part) for part in parts]).float().contiguous()
    return state


def _expected(names: Mapping[str, list[str]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shape of every flax array that the module needs."""
    expected = {}
    for name, parts in names.items():
        for part in parts:
            shape = (shapes[name][0] // len(parts), *shapes[name][1:])
            if part.endswith("/kernel"):
                shape = shape[::-1] if len(shape) == 2 else (*shape[2:], shape[1], shape[0])
            expected[part] = shape
    return expected


def _from_flax(tensor: Tensor, name: str) -> Tensor:
    if not name.endswith("/kernel"):
        return tensor
    return tensor.T if tensor.dim() == 2 else tensor.permute(3, 2, 0, 1)


def _account(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], folder: Path) -> None:
    both = expected.keys() & tensors.keys()
    problems = {
        "missing": sorted(f"{name} {expected[name]}" for name in expected.keys() - both),
        "extra": sorted(f"{name} {tuple(tensors[name].shape)}" for name in tensors.keys() - both),
        "misshaped": sorted(
            f"{name} {tuple(tensors[name].shape)}, expected {expected[name]}"
            for name in both
            if tuple(tensors[name].shape) != expected[name]
        ),
        "not finite": sorted(name for name in both if not torch.isfinite(tensors[name]).all()),
    }
    lines = [
        f"  {len(names)} {kind}: {'; '.join(names[:_NAMED])}{'; …' if len(names) > _NAMED else ''}"
        for kind, names in problems.items()
        if names
    ]
    if lines:
        raise Fault(
            f"{parameters_file(folder)}: not the weights that {METADATA} beside it describes:\n" + "\n".join(lines) + "\n"
            "check num_classes and the sizes there, or download both again"
        )
