"""Any override of any key with any scalar: a valid config, or one line that names the key."""

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
from tests.fuzz.in_process import Answer, ask, quick

CONFIGS = files("ddpm_cli.configs")
SHARDS = 20
QUICK_SHARDS = 2
"""Of which `make test` runs so many."""
LIMIT = 1.0
"""Seconds that an answer may take."""

BESIDE = {
    "dataset=swiss_roll": ["model=mlp", "sampler.thresholding=none"],
    "dataset=image_folder": ["dataset.root=pictures"],
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
"""What some options and keys of ddpm-train and ddpm-sample need beside them to be sound."""

SOUND = {"sample": ["ckpt=run.pt"], "evaluate": ["ckpt=run.pt"], "forward": ["image=cat.png"]}
"""What the commands need at least."""


@dataclass(frozen=True)
class Key:
    """A key of a command, and what has to be typed beside it so that it exists."""

    command: str
    name: str
    beside: tuple[str, ...] = ()


def keys_of(command: str) -> Iterator[Key]:
    """All keys of configs/<command>.yaml and of all options of its groups, and the groups."""
    root = read(f"{command}.yaml")
    beside = tuple(SOUND.get(command, []))
    for name in leaves({key: value for key, value in root.items() if key not in ("defaults", "hydra")}):
        needed = BESIDE.get(name, []) if command == "sample" else []
        yield Key(command, "class" if name == "classes" else name, (*beside, *needed))
    for default in root["defaults"]:
        entry = next(iter(default)) if isinstance(default, dict) else default
        if entry.startswith(("override", "optional")) or entry in ("_self_", f"{command}_schema"):
            continue
        group, _, place = entry.partition("@")
        yield Key(command, entry, beside)
        for file in (CONFIGS / group).iterdir():
            if file.name.endswith(".yaml") and group not in ("experiment", "sweep"):
                choice = f"{group}={file.name.removesuffix('.yaml')}"
                if place == "schedules.constant" and choice != "schedule=constant":
                    continue  # refused whatever else is typed, for forward.yaml sets its beta
                needed = BESIDE.get(choice, []) if command == "train" else []
                plain = command == "forward" and group == "dataset"
                for name in (
                    "name",
                    *leaves({k: v for k, v in read(f"{group}/{file.name}").items() if k != "defaults"}),
                ):
                    chosen = choice.replace("=", f"@{place}=") if place else choice
                    yield Key(command, f"{place or group}.{name}", (*(() if plain else beside), chosen, *needed))


def read(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONFIGS / file).read_text()))


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of a tree, those of its inner nodes too."""
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
def misspelt(draw: st.DrawFn, name: str) -> str:
    """A key like `name`, or quite another."""
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
def questions(draw: st.DrawFn) -> tuple[Key, list[str]]:
    """A key, which may be misspelt, and a command line that gives it a value."""
    command = draw(st.sampled_from(["train", "train", "train", "sample", "evaluate", "forward"]))
    key = draw(st.sampled_from(KEYS[command]))
    form = draw(st.sampled_from(["{}={}"] * 6 + ["+{}={}", "++{}={}", "~{}", "~{}={}", "wrong"]))
    if form == "wrong":
        beside = tuple(SOUND.get(command, [])) if key.name in BESIDE else key.beside  # else that one is missing too
        key = Key(command, draw(misspelt(key.name)), beside)
        form = draw(st.sampled_from(["{}={}", "+{}={}", "{}"]))
    typed = form.format(key.name, draw(values))
    beside = [override for override in key.beside if override.split("=")[0] != key.name.lstrip("+~")]
    return key, [*beside, typed]


def complaint(key: Key, typed: str, answer: Answer) -> str | None:
    """What is wrong with the answer to the override `typed` of a key, if anything is."""
    if answer.touched:
        return f"touched {answer.touched}"
    if answer.out:
        return f"printed {answer.out!r}"
    if answer.code == 0:
        if not isinstance(answer.config, SCHEMAS[key.command]) or answer.err:
            return "no config, or a message"
        return None if landed(answer.config, typed) else "not in the config"
    message = answer.err.removesuffix("\n").removeprefix(f"ddpm-{key.command}: ")
    if answer.code != 2 or message.splitlines() != [message] or "Traceback" in message or answer.config is not None:
        return "not one line and exit status 2"
    return None if names(message, key.name) else "does not name the key"


def landed(config: Any, typed: str) -> bool:
    """Whether the config has what was typed, where that is a plain number or truth value."""
    plain = re.fullmatch(r"([a-z_.]+)=(-?\d{1,15}|true|false)", typed)
    if plain is None:
        return True
    for part in plain[1].replace("class", "classes").split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    value = yaml.safe_load(plain[2])
    return config == value or str(config).lower() == plain[2] or (config is True and type(value) is int)


def names(message: str, key: str) -> bool:
    """Whether a message has the key, or the group that it is of, as a word."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in " ".join(key.split()))
    parts = plain.partition("@")[2] or plain
    if key.startswith("schedules."):  # an option of ddpm-forward does not know which of the schedules it is
        message = message.replace("schedules.<name>.", f"{parts.rpartition('.')[0]}.")
    above = [parts[: dot.start()] for dot in re.finditer(r"\.", parts)]
    patterns = [rf"{re.escape(name)}(?!\w)" for name in (plain, plain.lstrip("+~"), parts, plain.partition("@")[0])]
    patterns += [rf"{re.escape(name)}[=:]" for name in above]
    return any(re.search(rf"(?<![\w.]){pattern}", message) for pattern in patterns)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, but for a file that passes for a checkpoint until it is read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.pt").write_bytes(b"")
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _warm() -> Iterator[None]:
    """Each command asked once, which imports what takes seconds."""
    with quick():
        for command in SCHEMAS:
            ask(command)
        yield


@pytest.mark.parametrize(
    "shard", [pytest.param(i, marks=[] if i < QUICK_SHARDS else pytest.mark.slow) for i in range(SHARDS)]
)
def test_overrides(shard: int, full: bool, folder: Path, tally: Callable[[str], Callable[[], None]]) -> None:
    """Each shard has a seed of its own, so that they can run side by side and any of them again."""
    answered = tally("overrides composed or refused")

    @with_seed(shard)
    @settings(
        max_examples=20_000 // SHARDS if full else 500 // SHARDS, deadline=None, database=None, phases=[Phase.generate]
    )
    @given(questions())
    def every_one(question: tuple[Key, list[str]]) -> None:
        key, overrides = question
        answer = ask(key.command, *overrides)
        if answer.seconds > LIMIT:  # again, for the machine may have been busy
            answer = ask(key.command, *overrides)
        assert complaint(key, overrides[-1], answer) is None, (overrides, answer)
        assert answer.seconds <= LIMIT, (overrides, answer.seconds)
        assert os.listdir() == ["run.pt"]  # noqa: PTH208
        answered()

    every_one()
