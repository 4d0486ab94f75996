"""Convert the settings and weights of `DdpmUNet` to and from those of diffusers' `UNet2DModel`.

Both are the network of Ho et al. 2020 (arXiv:2006.11239), or of Nichol & Dhariwal 2021 (arXiv:2102.09672). In its
attention, UNet2DModel has three linear layers for queries, keys and values, where `DdpmUNet` has a single 1x1
convolution. Supports diffusers 0.30 and later, which does not need to be installed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.config import ClassLabels, DdpmUNetOptions, TrainConfig
from ddpm_cli.errors import UserError, one_of
from ddpm_cli.export.settings import complete, require

FIXED_SETTINGS: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
"""Settings of UNet2DModel for which `DdpmUNet` supports a single value."""
VARIANT_SETTINGS: dict[str, dict[str, Any]] = {
    "ddpm": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
    "improved": {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5},
}
"""Settings of UNet2DModel that `model.variant` sets."""
DEFAULTS: dict[str, Any] = {
    **FIXED_SETTINGS,
    **VARIANT_SETTINGS["improved"],
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "dropout": 0.0,
    "in_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "num_train_timesteps": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_dim": None,
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
"""Default settings of UNet2DModel, used for keys that a file does not contain."""
BLOCK_TYPES = {"none": ("DownBlock2D", "UpBlock2D"), "full": ("AttnDownBlock2D", "AttnUpBlock2D")}
"""Down and up block of UNet2DModel for each kind of attention."""
LEGACY_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Current names of attention layers by their names in older releases, such as that of google/ddpm-cifar10-32."""


def check_expressible(config: TrainConfig) -> None:
    """Raise `UserError` if a DDPMPipeline cannot represent the network of `config`."""
    model = config.model

    def unsupported(key: str, value: object, why: str) -> UserError:
        return UserError(
            f"{key}={value}: format=diffusers has no counterpart: {why}; use format=safetensors or format=onnx"
        )

    if not isinstance(model, DdpmUNetOptions):
        raise unsupported(
            "model", model.name, "its UNet2DModel is the network of model=ddpm_cifar10 and improved_cifar10"
        )
    if isinstance(config.conditioning, ClassLabels):
        raise unsupported("conditioning", "class", "its DDPMPipeline has no class labels")
    if model.self_condition:
        raise unsupported("model.self_condition", "true", "its DDPMPipeline has no self-conditioning")
    if model.time_scale != 1:
        raise unsupported("model.time_scale", model.time_scale, "its UNet2DModel does not scale t")
    if model.heads > 1 and len(_attention_channels(model)) > 1:
        raise unsupported(
            "model.heads",
            model.heads,
            "its UNet2DModel has a fixed number of channels per head, but levels with attention differ",
        )


def to_unet_config(config: TrainConfig) -> dict[str, Any]:
    """Return the content of config.json for the UNet2DModel equivalent to the network of `config`.

    Call `check_expressible` first.
    """
    model = config.model
    assert isinstance(model, DdpmUNetOptions)
    channels, height, width = config.dataset.shape
    kinds = [BLOCK_TYPES[kind] for kind in model.attention]
    return {
        **FIXED_SETTINGS,
        **VARIANT_SETTINGS[model.variant],
        "attention_head_dim": None if model.heads == 1 else _attention_channels(model).pop() // model.heads,
        "attn_norm_num_groups": model.groups,  # by default, the middle block has no norm with scale_shift
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


def from_unet_config(settings: Mapping[str, Any]) -> tuple[DdpmUNetOptions, list[int], int, int]:
    """Convert the content of config.json to (options of the network, [height, width], input and output channels).

    Raises `UserError` if a setting is unknown or not supported.
    """
    full = _complete(settings)
    channels = [int(count) for count in full["block_out_channels"]]
    width = channels[0]
    if any(count % width for count in channels):
        raise UserError(f"block_out_channels={channels}: must be multiples of the first")
    if full["time_embedding_dim"] not in (None, 4 * width):
        raise UserError(f"time_embedding_dim={full['time_embedding_dim']}: must be {4 * width}")
    attention = _attention_kinds(full)
    scale_shift = _scale_shift(full)
    model = DdpmUNetOptions(
        width=width,
        multipliers=[count // width for count in channels],
        blocks=int(full["layers_per_block"]),
        attention=attention,
        dropout=float(full["dropout"]),
        groups=int(full["norm_num_groups"]),
        heads=1,
        scale_shift=scale_shift,
        variant=_variant(full),
        time_scale=1.0,
        self_condition=False,
    )
    model = replace(model, heads=_head_count(full["attention_head_dim"], model))
    size = full["sample_size"]
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    whole = len(sides) == 2 and all(type(side) is int for side in sides)
    require(whole, full, "sample_size", "the height and width of the images")
    return model, sides, int(full["in_channels"]), int(full["out_channels"])


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` completed by defaults. Raise `UserError` if a key is unknown or has an unsupported value."""
    full = complete(settings, DEFAULTS, nullable=["attention_head_dim"])
    for key, ours in FIXED_SETTINGS.items():
        require(full[key] == ours, full, key, f"{ours}, as in model=ddpm_cifar10")
    return full


def _variant(full: Mapping[str, Any]) -> str:
    """Return the value of model.variant. Raise `UserError` if the settings are not all those of one variant."""
    name, ours = max(
        VARIANT_SETTINGS.items(), key=lambda variant: sum(full[key] == value for key, value in variant[1].items())
    )
    for key, value in ours.items():
        require(full[key] == value, full, key, f"{value}, as in model.variant={name}")
    return name


def _attention_kinds(full: Mapping[str, Any]) -> list[str]:
    """Return the kind of attention of each level. Raise `UserError` if the block types are not supported."""
    kinds = {down: kind for kind, (down, _) in BLOCK_TYPES.items()}
    for name in full["down_block_types"]:
        if name not in kinds:
            raise UserError(f"down_block_types={name}: must be {one_of(kinds)}")
    attention = [kinds[name] for name in full["down_block_types"]]
    mirrored = [BLOCK_TYPES[kind][1] for kind in reversed(attention)]
    if list(full["up_block_types"]) != mirrored:
        raise UserError(f"up_block_types={full['up_block_types']}: must mirror down_block_types: {mirrored}")
    return attention


def _scale_shift(full: Mapping[str, Any]) -> bool:
    """Return whether the time embedding scales and shifts. Raise `UserError` if the settings are not supported."""
    shifts = {"default": False, "scale_shift": True}
    if full["resnet_time_scale_shift"] not in shifts:
        raise UserError(f"resnet_time_scale_shift={full['resnet_time_scale_shift']}: must be {one_of(shifts)}")
    groups, shift = full["norm_num_groups"], shifts[full["resnet_time_scale_shift"]]
    if full["attn_norm_num_groups"] not in ((groups,) if shift else (None, groups)):
        raise UserError(f"attn_norm_num_groups={full['attn_norm_num_groups']}: must be norm_num_groups={groups}")
    return shift


def _head_count(head_dim: int | None, model: DdpmUNetOptions) -> int:
    """Return the number of heads that have `head_dim` channels each. Raise `UserError` if it differs between levels."""
    if head_dim is None:
        return 1
    counts = {dim // max(1, head_dim) for dim in _attention_channels(model)}
    if len(counts) > 1 or any(dim % head_dim for dim in _attention_channels(model)):
        raise UserError(f"attention_head_dim={head_dim}: must give all levels with attention the same number of heads")
    return counts.pop()


def to_weights(model: DdpmUNetOptions, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of a `DdpmUNet` to the names and shapes of UNet2DModel."""
    modules = dict(_module_names(model))
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        flat = tensor.flatten(1) if "attention.to_" in name and leaf == "weight" else tensor
        parts = modules[module].split(" ")
        for part, piece in zip(parts, flat.chunk(len(parts)), strict=True):
            found[f"{part}.{leaf}"] = piece
    return found


def from_weights(
    model: DdpmUNetOptions, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert the weights of a UNet2DModel to the names and shapes of `DdpmUNet`, as float32.

    like: the weights of the `DdpmUNet`. Only their names and numbers of dimensions are used, so they may be on the meta
    device. Raises `UserError` if a weight is missing or unexpected. Shapes are checked by `check_matches`.
    """
    modules = dict(_module_names(model))
    left = {_current_name(name): tensor for name, tensor in tensors.items()}
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


def _attention_channels(model: DdpmUNetOptions) -> set[int]:
    """Return the numbers of channels of all blocks with attention, which include the middle block."""
    dims = [model.width * multiplier for multiplier in model.multipliers]
    return {dims[-1], *(dim for dim, kind in zip(dims, model.attention, strict=True) if kind == "full")}


def _current_name(name: str) -> str:
    """Return the name of a weight in current releases of diffusers."""
    for old, new in LEGACY_NAMES.items():
        if ".attentions." in name and old in name:
            return name.replace(old, new)
    return name


def _module_names(model: DdpmUNetOptions) -> Iterator[tuple[str, str]]:
    """Yield the names of each module in `DdpmUNet` and UNet2DModel. The three for to_qkv are separated by spaces."""
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
            yield from _layer_names(f"downs.{i}.{j}", f"down_blocks.{i}", j)
        for j in range(model.blocks + 1):
            yield from _layer_names(f"ups.{i}.{j}", f"up_blocks.{i}", j)
    for j in range(2):
        yield from _layer_names(f"middle.{j}", "mid_block", j)


def _layer_names(ours: str, theirs: str, j: int) -> Iterator[tuple[str, str]]:
    """Yield the names of the modules of a residual block and its attention, as `_module_names` does."""
    resnet, attention = f"{theirs}.resnets.{j}", f"{theirs}.attentions.{j}"
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ours}.block.{name}", f"{resnet}.{name}"
    yield f"{ours}.block.emb", f"{resnet}.time_emb_proj"
    yield f"{ours}.block.residual", f"{resnet}.conv_shortcut"
    yield f"{ours}.attention.norm", f"{attention}.group_norm"
    yield f"{ours}.attention.to_qkv", f"{attention}.to_q {attention}.to_k {attention}.to_v"
    yield f"{ours}.attention.to_out", f"{attention}.to_out.0"
