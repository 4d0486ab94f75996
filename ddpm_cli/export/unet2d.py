"""`DdpmUNet` as the diffusers library's `UNet2DModel`, and back: its settings and the names of its weights.

Both are the network of Ho et al. 2020; UNet2DModel has attention of linear layers where ours has 1x1 convolutions, and
three of them where ours has one. Written for diffusers 0.30 and later, which is not needed here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.config import ClassLabels, DdpmUNet, TrainConfig
from ddpm_cli.errors import UserError, one_of

OURS: dict[str, Any] = {
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
"""What UNet2DModel calls what our network always does."""
THEIRS: dict[str, Any] = OURS | {
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
"""UNet2DModel's own values of all its settings, which stand where a file says nothing of one."""
ATTENTIONS = {"none": ("DownBlock2D", "UpBlock2D"), "full": ("AttnDownBlock2D", "AttnUpBlock2D")}
LEGACY = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the attention's layers in files of older releases, google/ddpm-cifar10-32 among them."""


def check_expressible(config: TrainConfig) -> None:
    """Raise `UserError` unless a DDPMPipeline can hold and run the network of `config`."""
    model = config.model

    def refuse(key: str, value: object, why: str) -> UserError:
        return UserError(
            f"{key}={value}: format=diffusers has no counterpart: {why}; use format=safetensors or format=onnx"
        )

    if not isinstance(model, DdpmUNet):
        raise refuse("model", model.name, "its UNet2DModel is the network of model=ddpm_cifar10 and improved_cifar10")
    if isinstance(config.conditioning, ClassLabels):
        raise refuse("conditioning", "class", "its DDPMPipeline tells the network no class")
    if model.self_condition:
        raise refuse("model.self_condition", "true", "its DDPMPipeline shows the network no estimate")
    if model.time_scale != 1:
        raise refuse("model.time_scale", model.time_scale, "its UNet2DModel takes t as it is")
    if model.heads > 1 and len(_attended(model)) > 1:
        raise refuse("model.heads", model.heads, "its UNet2DModel counts channels a head, and attended levels differ")


def to_settings(config: TrainConfig) -> dict[str, Any]:
    """config.json of the UNet2DModel that is the network of `config`, which `check_expressible` let pass."""
    model = config.model
    assert isinstance(model, DdpmUNet)
    channels, height, width = config.dataset.shape
    kinds = [ATTENTIONS[kind] for kind in model.attention]
    return OURS | {
        "attention_head_dim": None if model.heads == 1 else _attended(model).pop() // model.heads,
        "attn_norm_num_groups": model.groups,  # of the middle, where scale_shift has it go without a norm else
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
    """What config.json of a UNet2DModel stands for: the network, (height, width), and the channels in and out.

    Raises `UserError` for a setting that our network has no counterpart of.
    """
    named = {key: value for key, value in settings.items() if key == "_class_name" or not key.startswith("_")}
    if unknown := sorted(named.keys() - THEIRS.keys()):
        raise UserError(f"{unknown[0]}: no setting of a UNet2DModel that is known here")
    full = THEIRS | named
    for key, ours in OURS.items():
        if full[key] != ours:
            raise UserError(f"{key}={full[key]}: must be {ours}, which is what model=ddpm_unet does")
    dims = [int(dim) for dim in full["block_out_channels"]]
    width = dims[0]
    if any(dim % width for dim in dims):
        raise UserError(f"block_out_channels={dims}: must be multiples of the first")
    if full["time_embedding_dim"] not in (None, 4 * width):
        raise UserError(f"time_embedding_dim={full['time_embedding_dim']}: must be {4 * width}")
    kinds = {down: kind for kind, (down, _) in ATTENTIONS.items()}
    for name in full["down_block_types"]:
        if name not in kinds:
            raise UserError(f"down_block_types={name}: must be {one_of(kinds)}")
    attention = [kinds[name] for name in full["down_block_types"]]
    mirrored = [ATTENTIONS[kind][1] for kind in reversed(attention)]
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
        raise UserError(f"attention_head_dim={head_dim}: must leave every attended level as many heads")
    return counts.pop()


def to_weights(model: DdpmUNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of our network under UNet2DModel's names."""
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
    """The weights of a UNet2DModel under our names, as float32; `like`: those of our network, maybe on the meta device.

    Raises `UserError` where one is missing, or there is one too many. Their shapes are for `check_matches` to judge.
    """
    modules = dict(_modules(model))
    left = {_current(name): tensor for name, tensor in tensors.items()}
    found: dict[str, Tensor] = {}
    for name, wanted in like.items():
        module, _, leaf = name.rpartition(".")
        parts = [f"{part}.{leaf}" for part in modules[module].split(" ")]
        if missing := [part for part in parts if part not in left]:
            raise UserError(f"lacks the weights {missing[0]}, which its settings ask for")
        tensor = torch.cat([left.pop(part) for part in parts]).float()
        found[name] = tensor[:, :, None, None] if wanted.ndim == 4 and tensor.ndim == 2 else tensor
    if left:
        raise UserError(f"has the weights {min(left)}, which its settings know nothing of")
    return found


def _attended(model: DdpmUNet) -> set[int]:
    """The channels of the levels with attention, and of the middle, which always has it."""
    dims = [model.width * multiplier for multiplier in model.multipliers]
    return {dims[-1], *(dim for dim, kind in zip(dims, model.attention, strict=True) if kind == "full")}


def _current(name: str) -> str:
    for old, new in LEGACY.items():
        if ".attentions." in name and old in name:
            return name.replace(old, new)
    return name


def _modules(model: DdpmUNet) -> Iterator[tuple[str, str]]:
    """Our modules and UNet2DModel's, by name; three of theirs, with spaces between, for our to_qkv."""
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
