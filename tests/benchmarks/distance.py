"""Distance between samples of a checkpoint and the test split in classifier features, as in ddpm-evaluate."""

from dataclasses import dataclass
from functools import cache

from ddpm_cli.checkpoints.loading import load_trained
from ddpm_cli.data.sources import load_examples
from ddpm_cli.evaluation.comparison import SampleEvaluator
from ddpm_cli.evaluation.samples import GeneratedSamples
from ddpm_cli.sampling.sample_generator import generator_of
from tests.benchmarks.systems.ours import CPU, composed

SEED = 0
BATCH_SIZE = 125


@dataclass(frozen=True)
class Distance:
    """fd_classifier with its 95% interval, and the network evaluations per image."""

    value: float
    low: float
    high: float
    calls: float


def distance(ckpt: str, sampler: str | None, steps: int | None, n: int) -> Distance:
    """Return the distance of n samples of the averaged weights, in bf16 if the CPU supports it.

    `sampler` is None for the sampler of the run, and `steps` is None for all timesteps.
    """
    trained = load_trained(ckpt, "ema", "cpu", "auto")
    other = composed(f"sampler={sampler}", f"sampler.steps={steps or 'null'}").sampler if sampler else None
    drawn = GeneratedSamples(generator_of(trained, other, None, None), n, SEED, BATCH_SIZE)
    found = evaluator().compare(drawn, SEED)
    low, high = found.intervals["fd_classifier"]
    return Distance(found.metrics["fd_classifier"], low, high, drawn.nfe)


@cache
def evaluator() -> SampleEvaluator:
    """Return the evaluator for the test split of Fashion-MNIST."""
    dataset = composed("dataset=fashion_mnist").dataset
    splits = {name: load_examples(dataset, name == "train") for name in ("train", "test")}
    return SampleEvaluator(splits, "test", ["fid"], "classifier", CPU)
