"""Convert the settings and weights of `DdpmUNet` to and from those of diffusers' `UNet2DModel`.

Both are the network of Ho et al. 2020. The attention of UNet2DModel has linear layers where ours has 1x1 convolutions,
and three of them where ours has one. Written for diffusers 0.30 and later, which need not be installed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.config import ClassLabels, DdpmUNet, TrainConfig
from ddpm_cli.errors import UserError, one_of

FIXED_SETTINGS: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-6,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
"""Settings of UNet2DModel that our network has no choice for."""
DEFAULTS: dict[str, Any] = FIXED_SETTINGS | {
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_train_timesteps": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_dim": None,
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
"""Default values of UNet2DModel, used for settings that a file does not contain."""
BLOCK_TYPES = {"none": ("DownBlock2D", "UpBlock2D"), "full": ("AttnDownBlock2D", "AttnUpBlock2D")}
LEGACY_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of attention layers in files of older releases, such as google/ddpm-cifar10-32."""


def check_expressible(config: TrainConfig) -> None:
    """Raise `UserError` unless a DDPMPipeline can represent the network of `config`."""
    model = config.model

    def unsupported(key: str, value: object, why: str) -> UserError:
        return UserError(
            f"{key}={value}: format=diffusers has no counterpart: {why}; use format=safetensors or format=onnx"
        )

    if not isinstance(model, DdpmUNet):
        raise unsupported(
            "model", model.name, "its UNet2DModel is the network of model=ddpm_cifar10 and improved_cifar10"
        )
    if isinstance(config.conditioning, ClassLabels):
        raise unsupported("conditioning", "class", "its DDPMPipeline has no class labels")
    if model.self_condition:
        raise unsupported("model.self_condition", "true", "its DDPMPipeline has no self-conditioning")
    if model.time_scale != 1:
        raise unsupported("model.time_scale", model.time_scale, "its UNet2DModel does not scale t")
    if model.heads > 1 and len(_attended(model)) > 1:
        raise unsupported(
            "model.heads",
            model.heads,
            "its UNet2DModel has a fixed number of channels per head, but levels with attention differ",
        )


def to_settings(config: TrainConfig) -> dict[str, Any]:
    """Return config.json of the UNet2DModel equal to the network of `config`. Call `check_expressible` first."""
    model = config.model
    assert isinstance(model, DdpmUNet)
    channels, height, width = config.dataset.shape
    kinds = [BLOCK_TYPES[kind] for kind in model.attention]
    return FIXED_SETTINGS | {
        "attention_head_dim": None if model.heads == 1 else _attended(model).pop() // model.heads,
        "attn_norm_num_groups": model.groups,  # of the middle block, which has no norm by default with scale_shift
        "block_out_channels": [model.width * multiplier for multiplier in model.multipliers],
        "down_block_types": [down for down, _ in kinds],
        "dropout": model.dropout,
        "in_channels": channels,
        "layers_per_block": model.blocks,
        "norm_num_groups": model.groups,
        "out_channels": channels * (2 if config.variance == "learned_range" else 1),
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift else "default",
        "sample_size": height if height == width else [height, width],
        "up_block_types": [up for _, up in reversed(kinds)],
    }


def from_settings(settings: Mapping[str, Any]) -> tuple[DdpmUNet, list[int], int, int]:
    """Convert config.json of a UNet2DModel to our network, [height, width], input channels and output channels.

    Raises `UserError` for a setting that our network does not support.
    """
    public = {key: value for key, value in settings.items() if key == "_class_name" or not key.startswith("_")}
    if unknown := sorted(public.keys() - DEFAULTS.keys()):
        raise UserError(f"{unknown[0]}: not a supported setting of a UNet2DModel")
    full = DEFAULTS | public
    for key, ours in FIXED_SETTINGS.items():
        if full[key] != ours:
            raise UserError(f"{key}={full[key]}: must be {ours}, as in model=ddpm_unet")
    dims = [int(dim) for dim in full["block_out_channels"]]
    width = dims[0]
    if any(dim % width for dim in dims):
        raise UserError(f"block_out_channels={dims}: must be multiples of the first")
    if full["time_embedding_dim"] not in (None, 4 * width):
        raise UserError(f"time_embedding_dim={full['time_embedding_dim']}: must be {4 * width}")
    kinds = {down: kind for kind, (down, _) in BLOCK_TYPES.items()}
    for name in full["down_block_types"]:
        if name not in kinds:
            raise UserError(f"down_block_types={name}: must be {one_of(kinds)}")
    attention = [kinds[name] for name in full["down_block_types"]]
    mirrored = [BLOCK_TYPES[kind][1] for kind in reversed(attention)]
    if list(full["up_block_types"]) != mirrored:
        raise UserError(f"up_block_types={full['up_block_types']}: must mirror down_block_types: {mirrored}")
    shifts = {"default": False, "scale_shift": True}
    if full["resnet_time_scale_shift"] not in shifts:
        raise UserError(f"resnet_time_scale_shift={full['resnet_time_scale_shift']}: must be {one_of(shifts)}")
    groups, shift = full["norm_num_groups"], shifts[full["resnet_time_scale_shift"]]
    if full["attn_norm_num_groups"] not in ((groups,) if shift else (None, groups)):
        raise UserError(f"attn_norm_num_groups={full['attn_norm_num_groups']}: must be norm_num_groups={groups}")
    model = DdpmUNet(
        width=width,
        multipliers=[dim // width for dim in dims],
        blocks=int(full["layers_per_block"]),
        attention=attention,
        dropout=float(full["dropout"]),
        groups=int(groups),
        heads=1,
        scale_shift=shift,
        time_scale=1.0,
        self_condition=False,
    )
    model = replace(model, heads=_heads(full["attention_head_dim"], model))
    size = full["sample_size"]
    sides = [int(side) for side in (size if isinstance(size, list) else [size, size])]
    return model, sides, int(full["in_channels"]), int(full["out_channels"])


def _heads(head_dim: int | None, model: DdpmUNet) -> int:
    if head_dim is None:
        return 1
    counts = {dim // max(1, head_dim) for dim in _attended(model)}
    if len(counts) > 1 or any(dim % head_dim for dim in _attended(model)):
        raise UserError(f"attention_head_dim={head_dim}: must give all levels with attention the same number of heads")
    return counts.pop()


def to_weights(model: DdpmUNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of our network by UNet2DModel's names."""
    modules = dict(_modules(model))
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        flat = tensor.flatten(1) if "attention.to_" in name and leaf == "weight" else tensor
        parts = modules[module].split(" ")
        for part, piece in zip(parts, flat.chunk(len(parts)), strict=True):
            found[f"{part}.{leaf}"] = piece
    return found


def from_weights(model: DdpmUNet, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a UNet2DModel by our names, as float32.

    like: the weights of our network, of which only names and shapes are used; they may be on the meta device. Raises
    `UserError` if a weight is missing or unexpected. Shapes are not checked here but by `check_matches`.
    """
    modules = dict(_modules(model))
    left = {_current(name): tensor for name, tensor in tensors.items()}
    found: dict[str, Tensor] = {}
    for name, wanted in like.items():
        module, _, leaf = name.rpartition(".")
        parts = [f"{part}.{leaf}" for part in modules[module].split(" ")]
        if missing := [part for part in parts if part not in left]:
            raise UserError(f"lacks the weights {missing[0]}, which its settings require")
        tensor = torch.cat([left.pop(part) for part in parts]).float()
        found[name] = tensor[:, :, None, None] if wanted.ndim == 4 and tensor.ndim == 2 else tensor
    if left:
        raise UserError(f"has the weights {min(left)}, which its settings do not include")
    return found


def _attended(model: DdpmUNet) -> set[int]:
    """Return the channels of the levels with attention and of the middle block, which always has attention."""
    dims = [model.width * multiplier for multiplier in model.multipliers]
    return {dims[-1], *(dim for dim, kind in zip(dims, model.attention, strict=True) if kind == "full")}


def _current(name: str) -> str:
    for old, new in LEGACY_NAMES.items():
        if ".attentions." in name and old in name:
            return name.replace(old, new)
    return name


def _modules(model: DdpmUNet) -> Iterator[tuple[str, str]]:
    """Yield pairs of module names, ours and UNet2DModel's. Our to_qkv has three, separated by spaces."""
    yield from [
        ("embedding.mlp.0", "time_embedding.linear_1"),
        ("embedding.mlp.2", "time_embedding.linear_2"),
        ("stem", "conv_in"),
        ("norm", "conv_norm_out"),
        ("head", "conv_out"),
    ]
    for i in range(len(model.multipliers)):
        yield f"downsamples.{i}.conv", f"down_blocks.{i}.downsamplers.0.conv"
        yield f"upsamples.{i}.conv", f"up_blocks.{i}.upsamplers.0.conv"
        for j in range(model.blocks):
            yield from _layer(f"downs.{i}.{j}", f"down_blocks.{i}", j)
        for j in range(model.blocks + 1):
            yield from _layer(f"ups.{i}.{j}", f"up_blocks.{i}", j)
    for j in range(2):
        yield from _layer(f"middle.{j}", "mid_block", j)


def _layer(ours: str, theirs: str, j: int) -> Iterator[tuple[str, str]]:
    resnet, attention = f"{theirs}.resnets.{j}", f"{theirs}.attentions.{j}"
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ours}.block.{name}", f"{resnet}.{name}"
    yield f"{ours}.block.emb", f"{resnet}.time_emb_proj"
    yield f"{ours}.block.residual", f"{resnet}.conv_shortcut"
    yield f"{ours}.attention.norm", f"{attention}.group_norm"
    yield f"{ours}.attention.to_qkv", f"{attention}.to_q {attention}.to_k {attention}.to_v"
    yield f"{ours}.attention.to_out", f"{attention}.to_out.0"
