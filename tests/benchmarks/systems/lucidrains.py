"""lucidrains' denoising-diffusion-pytorch: Unet, GaussianDiffusion and Trainer.

All values are the defaults, except the sizes of the network and of the batch.
"""

import contextlib
import io
import warnings
from pathlib import Path

from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

from tests.benchmarks.data import picture_folder


class Lucidrains:
    """The library's Trainer, which makes one more step per call."""

    def __init__(self, data: Path, batch_size: int, precision: str) -> None:
        warnings.filterwarnings("ignore", message="'pin_memory'")
        self.network = Unet(dim=28, dim_mults=(1, 2, 4), channels=1)
        self.results = data / "lucidrains"
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = Trainer(
                GaussianDiffusion(self.network, image_size=28),
                str(picture_folder(data)),
                train_batch_size=batch_size,
                calculate_fid=False,
                amp=precision != "fp32",
                mixed_precision_type=precision if precision != "fp32" else "fp16",
                results_folder=str(self.results),
            )

    def step(self) -> None:
        self.trainer.train_num_steps = self.trainer.step + 1
        # hide the progress bar and "complete"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.trainer.train()

    def save(self, folder: Path) -> None:
        self.trainer.save("benchmark")
        (self.results / "model-benchmark.pt").rename(folder / "model.pt")
