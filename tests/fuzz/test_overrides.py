"""Random overrides of all keys: the result is a valid config, or one line that names the key."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from tests.conftest import SCHEMAS
from tests.fuzz.in_process import Outcome, start

CONFIGS = files("ddpm_cli.configs")
SHARDS = 20
QUICK_SHARDS = 2
"""Number of shards that run without --slow."""
LIMIT = 1.0
"""Time limit for an override, in seconds."""

REQUIRED_BY_OVERRIDE = {
    "dataset=swiss_roll": ["model=mlp", "sampler.thresholding=none"],
    "dataset=image_folder": ["dataset.root=pictures"],
    "dataset=parquet": ["dataset.root=data"],
    "dataset=shards": ["dataset.root=shards"],
    "model=mlp": ["dataset=swiss_roll", "sampler.thresholding=none"],
    "model=ddpm_cifar10": ["dataset=cifar10"],
    "model=improved_cifar10": ["dataset=cifar10"],
    "loss=hybrid": ["variance=learned_range"],
    "a": ["task=interpolate", "b=1"],
    "b": ["task=interpolate", "a=1"],
    "t": ["task=interpolate", "a=1", "b=2"],
    "image": ["task=inpaint", "mask=hole.png"],
    "mask": ["task=inpaint", "image=1"],
    "resamplings": ["task=inpaint", "image=1", "mask=hole.png"],
}
"""Overrides without which some options and keys of ddpm-train and ddpm-sample are invalid."""

REQUIRED_BY_COMMAND = {"sample": ["ckpt=run.pt"], "evaluate": ["ckpt=run.pt"], "forward": ["image=cat.png"]}
"""Overrides without which the commands are invalid."""


@dataclass(frozen=True)
class Key:
    """A key of a command, and the overrides without which it does not exist or is invalid."""

    command: str
    name: str
    required: tuple[str, ...] = ()


def keys_of(command: str) -> Iterator[Key]:
    """Yield the keys of configs/<command>.yaml, its groups, and the keys of all their options."""
    root = read(f"{command}.yaml")
    required = tuple(REQUIRED_BY_COMMAND.get(command, []))
    for name in leaves({key: value for key, value in root.items() if key not in ("defaults", "hydra")}):
        needed = REQUIRED_BY_OVERRIDE.get(name, []) if command == "sample" else []
        yield Key(command, "class" if name == "classes" else name, (*required, *needed))
    for default in root["defaults"]:
        entry = next(iter(default)) if isinstance(default, dict) else default
        if entry.startswith(("override", "optional")) or entry in ("_self_", f"{command}_schema"):
            continue
        group, _, place = entry.partition("@")
        yield Key(command, entry, required)
        for file in (CONFIGS / group).iterdir():
            if file.name.endswith(".yaml") and group not in ("experiment", "sweep"):
                choice = f"{group}={file.name.removesuffix('.yaml')}"
                if place == "schedules.constant" and choice != "schedule=constant":
                    continue  # always refused, because forward.yaml sets its beta
                needed = REQUIRED_BY_OVERRIDE.get(choice, []) if command == "train" else []
                plain = command == "forward" and group == "dataset"
                for name in (
                    "name",
                    *leaves({k: v for k, v in read(f"{group}/{file.name}").items() if k != "defaults"}),
                ):
                    chosen = choice.replace("=", f"@{place}=") if place else choice
                    yield Key(command, f"{place or group}.{name}", (*(() if plain else required), chosen, *needed))


def read(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONFIGS / file).read_text()))


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a tree, including those of inner nodes."""
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")


KEYS = {command: sorted(set(keys_of(command)), key=repr) for command in SCHEMAS}

plausible = st.one_of(
    st.sampled_from(
        ["true", "false", "null", "0.1", "0.5", "0", "1", "2", "4", "8", "32", "1000", "[1,2]", "[0.5,0.9]"]
    ),
    st.floats(0, 1).map(str),
    st.integers(0, 5000).map(str),
)
numbers = st.one_of(
    st.integers(-3, 20),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.sampled_from(["1e308", "-1e308", "1e-308", "1e400", "-0.0", "0x10", "1_000", "007", "1e3", ".5", "5."]),
).map(str)
WORDS = r"""
null Null ~ true FALSE yes off nan NaN inf -inf none class auto ' " '' 'null' "3" [ ] [] [[]] [1 [1,2] { {} {a:1} (
) \ ${ ${} ${x} ${nowhere.to} ${train.lr} ${seed} ${out} ${oc.env:HOME} ${oc.env:NO_SUCH} ${now:%Y} ${dataset}
${hydra:job.name} ${..steps} ${oc.env: $ ??? _target_ % && a,b 1,2 , 1, range(1,3) choice(1,2) interval(0,1) glob(*)
int(3) 1:2 a=b = / . .. ~/x /dev/null /dev/zero /proc/self/mem a/b.png run.pt 1epoch 0.5epochs -1epoch 1e5epochs
epoch cuda:99 cpu linear cosine ddim small digits mlp vlb improved x0 v learned_range #
"""
WITH_SPACES = ["", "1 epoch", "# x", "\n", "a\nb", "\t", "\r\n", "\0", "\x1b[31m", "\u2028"]
LONG = ["x" * 300, "x" * 5000, "9" * 5000, "[" * 200]
words = st.sampled_from([*WORDS.split(), *WITH_SPACES, *LONG, *"é☃🎲٣", "\u202e", "\ud800"])
texts = st.text(st.characters(exclude_categories=[]), max_size=12)
values = st.one_of(
    *[plausible] * 3,
    numbers,
    words,
    texts,
    texts.map(repr),
    numbers.map(lambda x: f"[{x}]"),
    texts.map(lambda x: "${" + x + "}"),
)


@st.composite
def misspelled_keys(draw: st.DrawFn, name: str) -> str:
    """Draw a misspelling of `name`, or an unrelated key."""
    at = draw(st.integers(0, len(name) - 1))
    letter = draw(st.characters(exclude_categories=[], exclude_characters="="))
    near = [
        name[:at] + name[at + 1 :],
        name[:at] + letter + name[at:],
        name.upper(),
        f"{name}.x",
        f".{name}",
        f"{name}.",
    ]
    return draw(st.sampled_from([*near, draw(texts).replace("=", "")]))


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[Key, list[str]]:
    """Draw a key, possibly misspelled, and a command line that sets it."""
    command = draw(st.sampled_from(["train", "train", "train", "sample", "evaluate", "forward"]))
    key = draw(st.sampled_from(KEYS[command]))
    form = draw(st.sampled_from(["{}={}"] * 6 + ["+{}={}", "++{}={}", "~{}", "~{}={}", "wrong"]))
    if form == "wrong":
        # without the misspelled key, the overrides that require it would fail as well
        required = tuple(REQUIRED_BY_COMMAND.get(command, [])) if key.name in REQUIRED_BY_OVERRIDE else key.required
        key = Key(command, draw(misspelled_keys(key.name)), required)
        form = draw(st.sampled_from(["{}={}", "+{}={}", "{}"]))
    typed = form.format(key.name, draw(values))
    required = [override for override in key.required if override.split("=")[0] != key.name.lstrip("+~")]
    return key, [*required, typed]


def problem_with(key: Key, typed: str, outcome: Outcome) -> str | None:
    """Return what is wrong with the outcome of the override `typed`, or None."""
    if outcome.touched:
        return f"touched {outcome.touched}"
    if outcome.out:
        return f"printed {outcome.out!r}"
    if outcome.code == 0:
        if not isinstance(outcome.config, SCHEMAS[key.command]) or outcome.err:
            return "no config, or a message"
        return None if is_applied(outcome.config, typed) else "not in the config"
    message = outcome.err.removesuffix("\n").removeprefix(f"ddpm-{key.command}: ")
    if outcome.code != 2 or message.splitlines() != [message] or "Traceback" in message or outcome.config is not None:
        return "not one line and exit status 2"
    return None if names_key(message, key.name) else "does not name the key"


def is_applied(config: Any, typed: str) -> bool:
    """Return whether the config has the typed value. Only integers and booleans are checked."""
    plain = re.fullmatch(r"([a-z_.]+)=(-?\d{1,15}|true|false)", typed)
    if plain is None:
        return True
    for part in plain[1].replace("class", "classes").split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    value = yaml.safe_load(plain[2])
    return config == value or str(config).lower() == plain[2] or (config is True and type(value) is int)


def names_key(message: str, key: str) -> bool:
    """Return whether a message contains the key, or the group of the key, as a word."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in " ".join(key.split()))
    parts = plain.partition("@")[2] or plain
    if key.startswith("schedules."):  # options do not know their place in `schedules`
        message = message.replace("schedules.<name>.", f"{parts.rpartition('.')[0]}.")
    above = [parts[: dot.start()] for dot in re.finditer(r"\.", parts)]
    patterns = [rf"{re.escape(name)}(?!\w)" for name in (plain, plain.lstrip("+~"), parts, plain.partition("@")[0])]
    patterns += [rf"{re.escape(name)}[=:]" for name in above]
    return any(re.search(rf"(?<![\w.]){pattern}", message) for pattern in patterns)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder that contains only an empty file named like a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.pt").write_bytes(b"")
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _warm_up() -> None:
    """Start each command once, so that the tests do not measure imports."""
    for command in SCHEMAS:
        start(command)


@pytest.mark.parametrize(
    "shard", [pytest.param(i, marks=[] if i < QUICK_SHARDS else pytest.mark.slow) for i in range(SHARDS)]
)
def test_overrides(shard: int, full: bool, folder: Path, tally: Callable[[str], Callable[[], None]]) -> None:
    """Check one shard. Each has its own seed, so that shards can run in parallel and be repeated."""
    checked = tally("overrides composed or refused")

    @with_seed(shard)
    @settings(
        max_examples=20_000 // SHARDS if full else 500 // SHARDS, deadline=None, database=None, phases=[Phase.generate]
    )
    @given(command_lines())
    def check(command_line: tuple[Key, list[str]]) -> None:
        key, overrides = command_line
        outcome = start(key.command, *overrides)
        if outcome.seconds > LIMIT:  # try again, the machine may have been busy
            outcome = start(key.command, *overrides)
        assert problem_with(key, overrides[-1], outcome) is None, (overrides, outcome)
        assert outcome.seconds <= LIMIT, (overrides, outcome.seconds)
        assert os.listdir() == ["run.pt"]  # noqa: PTH208
        checked()

    check()
