"""diffusers' UNet2DModel, trained as in its example of unconditional training.

The example uses accelerate, AdamW, an average and clipped gradients; its values are kept. The network has the layout of
DDPM's CIFAR-10 network and 3.9M parameters.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from tests.benchmarks.data import endless, image_loader

STEPS = 100_000
"""Length of the learning rate schedule."""


class DiffusersExample:
    """The training loop of the example, one step per call."""

    def __init__(self, data: Path, batch_size: int, precision: str) -> None:
        self.accelerator = Accelerator(cpu=True, mixed_precision="no" if precision == "fp32" else precision)
        network = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        )
        self.ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=STEPS)
        loader = image_loader(data, batch_size, workers=0)
        self.network, self.optimizer, loader, self.rates = self.accelerator.prepare(network, optimizer, loader, rates)
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.batches = endless(loader)

    def step(self) -> None:
        clean, _ = next(self.batches)
        noise = torch.randn_like(clean)
        t = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(clean),)).long()
        noisy = self.noise_scheduler.add_noise(clean, noise, t)
        with self.accelerator.accumulate(self.network):
            output = self.network(noisy, t).sample
            loss = F.mse_loss(output.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        loss.detach().item()

    def save(self, folder: Path) -> None:
        """Save the state with accelerate, as the example does, and the average."""
        self.accelerator.save_state(str(folder / "checkpoint"))
        torch.save(self.ema.state_dict(), folder / "ema.pt")
