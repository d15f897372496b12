"""The authors' checkpoints: their UNet and their encoder, by name and shape onto ours, and back.

Their UNet has the layout of guided diffusion (Dhariwal and Nichol 2021), their encoder that of latent
diffusion (Rombach et al. 2022). Every tensor of theirs has exactly one place here:

    theirs                      ours
    qkv                         to_q, to_k, to_v: the rows lie head by head, in each q, then k, then v
    1x1 convolutions of attention   linear layers
    mt_out: logit of "clean"    mask_head: logit of "noised", so its sign is turned
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from madad_lite.authors.safe_load import StandIn, check_tensors, load_file, short, state_dict_of
from madad_lite.autoencoder import downsampling
from madad_lite.denoiser import SIZES, Denoiser, DenoiserSize
from madad_lite.diffusion import make_scheduler
from madad_lite.errors import UnsafeFile
from madad_lite.files import new_folder
from madad_lite.pipeline import MadAdPipeline
from madad_lite.scans.grid import Grid
from madad_lite.training.settings import RECIPES

SCALING = 0.18215  # of latent diffusion's encoders with f = 8; the authors use it too
MAX_WIDTH, MAX_LAYERS = 4096, 10  # far above the authors', below what takes minutes to build
Tensors = dict[str, torch.Tensor]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _unet_places(size: DenoiserSize) -> Iterator[tuple[str, str]]:
    """(their prefix, our prefix) of every layer; attention's qkv has three of ours, written q|k|v."""

    def resnet(theirs: str, ours: str, shortcut: bool):
        for a, b in _RESNET.items():
            if shortcut or b != "conv_shortcut":
                yield f"{theirs}.{a}", f"{ours}.{b}"

    def attention(theirs: str, ours: str):
        yield f"{theirs}.norm", f"{ours}.group_norm"
        yield f"{theirs}.qkv", "|".join(f"{ours}.to_{x}" for x in "qkv")
        yield f"{theirs}.proj_out", f"{ours}.to_out.0"

    levels, layers, widths = len(size.channel_multipliers), size.layers_per_block, size.channel_multipliers
    yield from (
        ("time_embed.0", "unet.time_embedding.linear_1"),
        ("time_embed.2", "unet.time_embedding.linear_2"),
    )
    yield "input_blocks.0.0", "unet.conv_in"
    at = 1
    for i in range(levels):
        for j in range(layers):
            grows = j == 0 and i > 0 and widths[i] != widths[i - 1]
            yield from resnet(f"input_blocks.{at}.0", f"unet.down_blocks.{i}.resnets.{j}", grows)
            if size.attention_levels[i]:
                yield from attention(f"input_blocks.{at}.1", f"unet.down_blocks.{i}.attentions.{j}")
            at += 1
        if i < levels - 1:
            yield f"input_blocks.{at}.0.op", f"unet.down_blocks.{i}.downsamplers.0.conv"
            at += 1
    yield from resnet("middle_block.0", "unet.mid_block.resnets.0", False)
    yield from attention("middle_block.1", "unet.mid_block.attentions.0")
    yield from resnet("middle_block.2", "unet.mid_block.resnets.1", False)
    for i in range(levels):
        attends = size.attention_levels[levels - 1 - i]
        for j in range(layers + 1):
            theirs = f"output_blocks.{i * (layers + 1) + j}"
            yield from resnet(
                f"{theirs}.0", f"unet.up_blocks.{i}.resnets.{j}", True
            )  # the skip widens every input
            if attends:
                yield from attention(f"{theirs}.1", f"unet.up_blocks.{i}.attentions.{j}")
        if i < levels - 1:
            yield f"{theirs}.{1 + attends}.conv", f"unet.up_blocks.{i}.upsamplers.0.conv"
    yield from (
        ("out.0", "latent_head.0"),
        ("out.2", "latent_head.2"),
        ("mt_out.0", "mask_head.0"),
        ("mt_out.1", "mask_head.1"),
    )


def denoiser_to_official(denoiser: Denoiser) -> Tensors:
    """Our denoiser's weights under the authors' names, in their order of layers."""
    c = denoiser.config
    size = DenoiserSize(
        c.base_channels,
        c.num_heads,
        tuple(c.channel_multipliers),
        tuple(c.attention_levels),
        c.layers_per_block,
    )
    ours, theirs = dict(denoiser.state_dict()), {}
    for their_prefix, our_prefix in _unet_places(size):
        for kind in ("weight", "bias"):
            values = [ours.pop(f"{p}.{kind}") for p in our_prefix.split("|")]
            value = values[0]
            if len(values) == 3:  # (heads, q k v, width of a head, ...)
                value = torch.stack([v.unflatten(0, (c.num_heads, -1)) for v in values], 1).flatten(0, 2)
            if kind == "weight" and their_prefix.endswith(("qkv", "proj_out")):
                value = value[..., None]
            theirs[f"{their_prefix}.{kind}"] = -value if their_prefix == "mt_out.1" else value
    assert not ours, f"no place for {', '.join(ours)}"
    return theirs


def _checked(found: Tensors, expected: dict[str, torch.Size], what: str) -> None:
    """Raise ValueError, naming the first of each, for missing, unexpected, mis-shaped or non-finite
    tensors.
    """
    problems = []
    for title, names in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
        ("of another shape", {k for k in expected.keys() & found.keys() if found[k].shape != expected[k]}),
        ("not finite", {k for k in expected.keys() & found.keys() if not torch.isfinite(found[k]).all()}),
    ):
        if names:
            first = min(names)
            shape = (
                f" {tuple(found[first].shape)} for {tuple(expected[first])}"
                if title == "of another shape"
                else ""
            )
            problems.append(
                f"{len(names)} tensors {title} ({short(first)}{shape}{', ..' if len(names) > 1 else ''})"
            )
    if problems:
        raise ValueError(f"is not {what}: {'; '.join(problems)}")


def denoiser_from_official(weights: Tensors, num_heads: int | None = None) -> Denoiser:
    """The authors' UNet as a Denoiser. num_heads: by default that of the authors' size of this width (4, 4,
    6, 8, 12).

    Raises ValueError, naming them, for tensors that are missing, too many, of another shape or not finite.
    """
    first = weights.get("input_blocks.0.0.weight")
    if first is None or first.ndim != 4:
        raise ValueError("is not a UNet of the authors: input_blocks.0.0.weight is missing or no convolution")
    width, channels = first.shape[:2]
    if num_heads is None:
        num_heads = next(
            (s.num_heads for n, s in SIZES.items() if n != "nano" and s.base_channels == width), None
        )
        if num_heads is None:
            raise ValueError(
                f"width {width} is none of the authors' sizes; say how many attention heads it has (num_heads)"
            )
    possible = 0 < width <= MAX_WIDTH and 0 < channels <= MAX_WIDTH and num_heads > 0
    if not possible or width % 32 or width % num_heads:
        raise ValueError(
            f"is not a UNet of the authors: width {width} with {num_heads} heads, {channels} channels in"
        )
    size = DenoiserSize(width, num_heads)
    with torch.device("meta"):
        empty = Denoiser(latent_channels=channels, **vars(size))
    _checked(
        weights, {k: v.shape for k, v in denoiser_to_official(empty).items()}, f"a UNet of width {width}"
    )
    ours: Tensors = {}
    for their_prefix, our_prefix in _unet_places(size):
        for kind in ("weight", "bias"):
            value = weights[f"{their_prefix}.{kind}"].detach().clone()
            if kind == "weight" and their_prefix.endswith(("qkv", "proj_out")):
                value = value[..., 0]
            if their_prefix == "mt_out.1":
                value = -value  # theirs is the logit of "clean"
            parts = our_prefix.split("|")
            if len(parts) == 3:
                parts_of = value.unflatten(0, (num_heads, 3, -1)).unbind(
                    1
                )  # q, k, v: (heads, width of a head, ...)
                ours |= {f"{p}.{kind}": v.flatten(0, 1) for p, v in zip(parts, parts_of)}
            else:
                ours[f"{our_prefix}.{kind}"] = value
    empty.load_state_dict(ours, assign=True)
    return empty.eval()


INSIDE = "first_stage_model."  # the autoencoder's prefix in a whole latent-diffusion model
_ENCODER_NAMES = [  # theirs -> ours, one after the other
    (r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
]


def _encoder_name(theirs: str, levels: int) -> str:
    """decoder.up.3.block.0.conv1.weight -> decoder.up_blocks.0.resnets.0.conv1.weight: they count the levels
    from the finest.
    """
    ours = theirs
    for pattern, replacement in _ENCODER_NAMES:
        ours = re.sub(pattern, replacement, ours)
    ours = re.sub(r"\.up\.(\d+)\.block\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.resnets.", ours)
    return re.sub(
        r"\.up\.(\d+)\.upsample\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", ours
    )


def _autoencoder_alone(weights: Tensors) -> Tensors:
    """What belongs to the autoencoder, of a file that may hold a whole model, or what its training needed."""
    inside = {k: v for k, v in weights.items() if k.startswith(INSIDE)}
    alone = {k.removeprefix(INSIDE): v for k, v in inside.items()} or weights
    return {k: v for k, v in alone.items() if not k.startswith(("loss.", "model_ema.")) and k != "logvar"}


def autoencoder_from_official(weights: Tensors) -> AutoencoderKL:
    """A latent-diffusion autoencoder (also inside a whole model, as first_stage_model.*) as a diffusers
    AutoencoderKL.

    What only its training needed (loss.*, discriminator, logvar, EMA) is left out. Raises ValueError as
    denoiser_from_official.
    """
    weights = _autoencoder_alone(weights)
    widths = []
    while (
        conv := weights.get(f"encoder.down.{len(widths)}.block.0.conv1.weight")
    ) is not None and conv.ndim == 4:
        widths.append(len(conv))
    first, quant = weights.get("encoder.conv_in.weight"), weights.get("quant_conv.weight")
    if not widths or first is None or first.ndim != 4 or quant is None or quant.ndim != 4:
        raise ValueError(
            "is not a latent-diffusion autoencoder: encoder.conv_in, encoder.down or quant_conv is missing"
        )
    levels = len(widths)
    layers = len({k for k in weights if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", k)})
    if first.shape[1] not in (1, 3) or any(w % 32 or not 0 < w <= MAX_WIDTH for w in widths[:MAX_LAYERS]):
        raise ValueError(
            f"is not an autoencoder of images: {first.shape[1]} channels in, widths {widths[:MAX_LAYERS]}"
        )
    if max(levels, layers) > MAX_LAYERS or not 2 <= len(quant) <= MAX_WIDTH:
        raise ValueError(
            f"is not an autoencoder of images: {levels} levels of {layers} layers, {len(quant)} latent channels"
        )
    settings = dict(
        in_channels=first.shape[1],
        out_channels=first.shape[1],
        latent_channels=quant.shape[0] // 2,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=32,
        scaling_factor=SCALING,
    )
    with torch.device("meta"):
        empty = AutoencoderKL(**settings)
    shapes = {k: v.shape for k, v in empty.state_dict().items()}
    names = {_encoder_name(k, levels): k for k in weights}
    ours = {name: weights[k].detach().clone() for name, k in names.items()}
    for name, value in ours.items():
        if ".attentions." in name and value.ndim == 4:
            ours[name] = value[..., 0, 0]  # a 1x1 convolution is a linear layer
    back = {name: names.get(name, name) for name in shapes | ours}  # report them by the file's own names
    expected, found = ({back[k]: v for k, v in d.items()} for d in (shapes, ours))
    _checked(found, expected, f"an autoencoder of widths {widths}")
    empty.load_state_dict(ours, assign=True)
    return empty.eval()


def read_official(path: str | Path, num_heads: int | None = None) -> Denoiser | AutoencoderKL:
    """A file of the authors as one of our models. Nothing in it is run.

    It may be {"model": state dict, "args": Namespace} (their UNet), a whole pickled AutoencoderKL (their
    encoder), or a state dict of either, also under "state_dict" or "model". Raises ValueError, in one line
    that names the file.
    """
    content = load_file(path)
    if isinstance(content, dict):
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), (dict, StandIn)):
                content = content[key]
                break
    try:
        weights = state_dict_of(content) if isinstance(content, StandIn) else content
        if not isinstance(weights, dict) or not all(isinstance(k, str) for k in weights):
            raise ValueError("holds no weights by name")
        if others := [k for k, v in weights.items() if not isinstance(v, torch.Tensor)]:
            raise ValueError(f"is not a state dict: {short(others[0])} is no tensor")
        weights = {k.removeprefix("module."): v for k, v in weights.items()}  # of DistributedDataParallel
        is_autoencoder = any(p + "encoder.conv_in.weight" in weights for p in ("", INSIDE))
        if is_autoencoder:
            weights = _autoencoder_alone(weights)
        check_tensors(weights)
        # half and double precision are ways of storing, not of computing
        weights = {k: v.detach().float() for k, v in weights.items()}
        return (
            autoencoder_from_official(weights)
            if is_autoencoder
            else denoiser_from_official(weights, num_heads)
        )
    except UnsafeFile as error:
        raise UnsafeFile(f"{path}: refused, {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def import_official(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    contrast: str = "t1",
    spacing: float = 1.0,
    slice_size: int = 256,
    z_spacing: float | None = 4.0,
    num_heads: int | None = None,
) -> Path:
    """Write the authors' files in our layout; returns the folder.

    One file: that model alone, as for `load_parts`. Encoder and UNet: a whole pipeline, with the score and
    reverse process of the authors' code, for slices of `slice_size` pixels of `spacing` mm, one every
    `z_spacing` mm (None: every `spacing` mm; it only decides how long a scan takes). Nothing is written when
    anything is wrong.
    """
    files, out = [Path(f) for f in ([files] if isinstance(files, (str, Path)) else files)], Path(out)
    if out.exists():
        raise FileExistsError(f"{out}: exists already; choose another folder")
    models = [read_official(f, num_heads) for f in files]
    kinds = [type(m).__name__ for m in models]
    if len(set(kinds)) < len(kinds) or len(kinds) > 2:
        raise ValueError(
            f"{', '.join(map(str, files))}: {' and '.join(kinds)}; give one UNet, one encoder, or one of each"
        )
    parts = {"denoiser" if isinstance(m, Denoiser) else "autoencoder": m for m in models}
    if len(models) == 2:
        channels = {m.config.latent_channels for m in models}
        if len(channels) > 1:
            raise ValueError(
                f"{', '.join(map(str, files))}: their latents have {channels} channels; not a pair"
            )
    with new_folder(out) as part:
        if len(models) == 1:
            models[0].save_pretrained(part)
        else:
            settings = asdict(RECIPES["authors"].detection)
            settings["sigma"] *= slice_size / 256  # 5 pixels of 256
            grid = Grid(spacing=spacing, size=slice_size, z_spacing=z_spacing).to_dict()
            MadAdPipeline(
                **parts, scheduler=make_scheduler(), contrast=contrast, grid=grid, **settings
            ).save_pretrained(part)
        (part / "README.md").write_text(_card(files, models))
    return out


def _card(files: list[Path], models: list) -> str:
    lines = ["# Imported weights", "", "Made by `madad import-official` from:", ""]
    for path, model in zip(files, models):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        count = sum(p.numel() for p in model.parameters()) / 1e6
        if isinstance(model, Denoiser):
            c = model.config
            what = (
                f"UNet of MAD-AD (arXiv 2502.16943), width {c.base_channels}, {c.num_heads} attention heads"
            )
        else:
            what = (
                f"latent-diffusion autoencoder, f = {downsampling(model)}, latents scaled by "
                f"{model.config.scaling_factor}"
            )
        lines.append(f"- `{path.name}` (SHA-256 `{digest}`): {what}, {count:.1f} M parameters")
    lines += [
        "",
        "What they were trained on, and their licence, is for their source to say. Not for medical decisions.",
        "",
    ]
    return "\n".join(lines)
