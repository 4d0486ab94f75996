"""Compare `DdpmUNet` with UNet2DModel of diffusers: the same weights must give the same output, both ways."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.export import unet2d
from ddpm_cli.sampling.build import network_of
from tests.conftest import composed

DDPM = ["dataset=cifar10", "model=ddpm_cifar10", "model.width=16", "model.groups=8"]
IMPROVED = [
    "dataset=cifar10",
    "model=improved_cifar10",
    "model.width=16",
    "model.groups=8",
    "variance=learned_range",
    "loss=hybrid",
]
UNEVEN = [*DDPM, "dataset.image_size=[16,24]", "model.multipliers=[1,3]", "model.attention=[full,none]"]
CIFAR10_32 = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
"""config.json of google/ddpm-cifar10-32."""


def randomize(network: nn.Module) -> nn.Module:
    """Initialize all weights at random, because some are zero by default, which would hide errors."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("overrides", [DDPM, IMPROVED, UNEVEN], ids=["ddpm", "improved", "uneven"])
@torch.no_grad()
def test_exported_network_gives_the_same_output(overrides: list[str]) -> None:
    config = composed(*overrides)
    ours = randomize(network_of(config, []))
    theirs = UNet2DModel.from_config(unet2d.to_unet_config(config)).eval()
    theirs.load_state_dict(unet2d.to_weights(config.model, ours.state_dict()))
    x, t = torch.randn(2, *config.dataset.shape), torch.tensor([3, 800])
    expected = ours(x, t)
    assert expected.std() > 0.01
    assert torch.allclose(theirs(x, t).sample, expected, atol=1e-5)


@pytest.mark.parametrize("overrides", [DDPM, IMPROVED, UNEVEN], ids=["ddpm", "improved", "uneven"])
@torch.no_grad()
def test_imported_network_gives_the_same_output(overrides: list[str]) -> None:
    config = composed(*overrides)
    theirs = randomize(UNet2DModel.from_config(unet2d.to_unet_config(config)))
    model, sides, channels, out_channels = unet2d.from_unet_config(theirs.config)
    assert model == config.model
    assert (channels, *sides) == config.dataset.shape
    ours = network_of(replace(config, model=model), []).eval()
    ours.load_state_dict(unet2d.from_weights(model, theirs.state_dict(), ours.state_dict()))
    x, t = torch.randn(2, *config.dataset.shape), torch.tensor([0, 999])
    assert torch.allclose(ours(x, t), theirs(x, t).sample, atol=1e-5)
    assert theirs(x, t).sample.shape[1] == out_channels


def test_defaults_are_those_of_unet2d_model() -> None:
    theirs = {key: value for key, value in UNet2DModel().config.items() if not key.startswith("_")}
    ours = {key: value for key, value in unet2d.DEFAULTS.items() if not key.startswith("_")}
    assert ours == {key: list(value) if isinstance(value, tuple) else value for key, value in theirs.items()}


UNET_FIELDS: dict[str, tuple[str, Any]] = {
    "act_fn": ("refused", "gelu"),
    "add_attention": ("refused", False),
    "attention_head_dim": ("kept", 64),
    "attn_norm_num_groups": ("refused", 8),
    "block_out_channels": ("kept", [128, 128, 256, 256]),
    "center_input_sample": ("refused", True),
    "class_embed_type": ("refused", "timestep"),
    "down_block_types": ("refused", ["SkipDownBlock2D"] * 4),  # others are kept with up_block_types
    "downsample_padding": ("refused", 1),
    "downsample_type": ("refused", "resnet"),
    "dropout": ("kept", 0.1),
    "flip_sin_to_cos": ("refused", True),
    "freq_shift": ("refused", 0),
    "in_channels": ("kept", 1),
    "layers_per_block": ("kept", 1),
    "mid_block_scale_factor": ("refused", 2),
    "mid_block_type": ("refused", None),
    "norm_eps": ("refused", 1e-5),
    "norm_num_groups": ("kept", 16),
    "num_class_embeds": ("refused", 10),
    "num_train_timesteps": ("unused", 100),  # without learned embeddings of t
    "out_channels": ("kept", 6),
    "resnet_time_scale_shift": ("refused", "spatial"),  # scale_shift is kept with attn_norm_num_groups
    "sample_size": ("kept", [32, 48]),
    "time_embedding_dim": ("refused", 64),
    "time_embedding_type": ("refused", "learned"),
    "up_block_types": ("refused", ["AttnUpBlock2D"] * 4),  # without down_block_types
    "upsample_type": ("refused", "resnet"),
}
"""What becomes of each setting of UNet2DModel when it alone differs from google/ddpm-cifar10-32."""


@pytest.mark.parametrize("field", sorted(inspect.signature(UNet2DModel.__init__).parameters.keys() - {"self"}))
def test_each_setting_of_the_network_is_kept_or_refused(field: str) -> None:
    assert field in UNET_FIELDS, "a new setting of diffusers: keep it, or refuse it by name"
    fate, value = UNET_FIELDS[field]
    if fate == "refused":
        with pytest.raises(UserError, match=f"^{field}="):
            unet2d.from_unet_config(CIFAR10_32 | {field: value})
    else:
        changed = unet2d.from_unet_config(CIFAR10_32 | {field: value}) != unet2d.from_unet_config(CIFAR10_32)
        assert changed == (fate == "kept")


def test_import_of_google_ddpm_cifar10_32() -> None:
    """Its settings are those of model=ddpm_cifar10, except for dropout, which is not used after training."""
    model, sides, channels, out_channels = unet2d.from_unet_config(CIFAR10_32)
    assert replace(model, dropout=0.1) == composed("dataset=cifar10", "model=ddpm_cifar10").model
    assert (channels, *sides, out_channels) == (3, 32, 32, 3)


def test_legacy_names_of_attention_layers() -> None:
    config = composed(*DDPM)
    ours = network_of(config, []).state_dict()
    new = unet2d.to_weights(config.model, randomize(network_of(config, [])).state_dict())
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        for one, other in names.items():
            name = name.replace(f".{one}.", f".{other}.")
        return name

    renamed = {old(name): tensor for name, tensor in new.items()}
    assert renamed.keys() != new.keys()
    found = unet2d.from_weights(config.model, renamed, ours)
    again = unet2d.from_weights(config.model, new, ours)
    assert all(torch.equal(found[name], again[name]) for name in ours)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model=small"], "model=unet: format=diffusers has no counterpart"),
        (["model=conv"], "model=conv_unet: format=diffusers has no counterpart"),
        ([*DDPM, "conditioning=class"], "conditioning=class: format=diffusers has no counterpart"),
        ([*DDPM, "model.self_condition=true"], "model.self_condition=true: format=diffusers has no counterpart"),
        ([*DDPM, "model.time_scale=2"], "model.time_scale=2.0: format=diffusers has no counterpart"),
        ([*DDPM, "model.heads=2", "model.attention=[full,full,none,none]"], "model.heads=2: format=diffusers has no"),
    ],
)
def test_unsupported_networks_are_rejected(overrides: list[str], named: str) -> None:
    with pytest.raises(UserError) as raised:
        unet2d.check_expressible(composed(*overrides))
    assert str(raised.value).startswith(named)
    assert str(raised.value).endswith("use format=safetensors or format=onnx")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name=UNet2DConditionModel: must be UNet2DModel"),
        ({"cross_attention_dim": 8}, "cross_attention_dim: not a supported setting of a UNet2DModel"),
        ({"freq_shift": 0}, "freq_shift=0: must be 1"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos=True: must be False"),
        ({"downsample_padding": 1}, "downsample_padding=1: must be 0"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05: must be 1e-06"),
        ({"act_fn": "relu"}, "act_fn=relu: must be silu"),
        ({"dropout": "0.1"}, "dropout=0.1: must be a number"),
        ({"layers_per_block": 2.5}, "layers_per_block=2.5: must be a whole number"),
        ({"block_out_channels": [128.5, 257.0]}, "block_out_channels=[128.5, 257.0]: must be a list like its default"),
        ({"add_attention": 1}, "add_attention=1: must be true or false"),
        ({"sample_size": None}, "sample_size=None: must be the height and width of the images"),
        ({"sample_size": [32, 32, 32]}, "sample_size=[32, 32, 32]: must be the height and width of the images"),
        ({"num_class_embeds": 10}, "num_class_embeds=10: must be None"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type=fourier: must be positional"),
        (
            {"attention_head_dim": 96},
            "attention_head_dim=96: must give all levels with attention the same number of heads",
        ),
        ({"block_out_channels": [128, 200, 256, 256]}, "block_out_channels=[128, 200, 256, 256]: must be multiples"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, "down_block_types=SkipDownBlock2D: must be DownBlock2D or"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types=['UpBlock2D', 'UpBlock2D', 'UpBlock2D', 'UpBlock2D']"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift=spatial: must be default or scale_shift"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups=8: must be norm_num_groups=32"),
        ({"time_embedding_dim": 64}, "time_embedding_dim=64: must be 512"),
        ({"norm_num_groups": 48}, "model.groups=48: must be a divisor of model.width=128"),
        ({"layers_per_block": 0}, "model.blocks=0: must be in 1..16"),
    ],
)
def test_unsupported_settings_are_rejected(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as raised:
        unet2d.from_unet_config(CIFAR10_32 | change)
    assert str(raised.value).startswith(named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("conv_in.weight"), "lacks the weights conv_in.weight"),
        (lambda tensors: tensors.update({"class_embedding.weight": torch.zeros(2)}), "has the weights class_embedding"),
    ],
)
def test_mismatched_weights_are_rejected(change: Callable[[dict[str, Any]], object], named: str) -> None:
    config: TrainConfig = composed(*DDPM)
    ours = network_of(config, []).state_dict()
    tensors = unet2d.to_weights(config.model, ours)  # type: ignore[arg-type]
    change(tensors)
    with pytest.raises(UserError, match=named):
        unet2d.from_weights(config.model, tensors, ours)  # type: ignore[arg-type]
