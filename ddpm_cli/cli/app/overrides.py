"""Check the typed overrides against the schema of a command, before anything is composed or written."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, make_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ddpm_cli.cli.app.help import SETTING_GROUPS, configs_of, groups_of, options_of
from ddpm_cli.config import GROUPS, Option, option_name
from ddpm_cli.errors import UserError, one_of

CHANGES = "sampler_changes."
"""Prefix of the keys that change the sampler of a run; they are typed `sampler.`, without sampler=…."""
CHDIR = "hydra.job.chdir"
MEANT: Mapping[str, tuple[str, ...]] = {
    "batch": ("train.batch_size", "batch_size"),
    "cfg": ("guidance_scale",),
    "cfg_scale": ("guidance_scale",),
    "channels": ("model.width",),
    "checkpoint": ("ckpt", "resume"),
    "checkpoint_path": ("ckpt", "resume"),
    "class_conditional": ("conditioning=class",),
    "dim": ("model.width",),
    "ema": ("train.ema_decay",),
    "gpus": ("devices",),
    "label": ("class",),
    "labels": ("class",),
    "learning_rate": ("train.lr",),
    "num_gpus": ("devices",),
    "num_samples": ("n", "train.samples"),
    "path": ("dataset.root", "root"),
    "pretrained": ("resume", "ckpt"),
    "samples": ("n",),
    "scale": ("guidance_scale",),
    "T": ("schedule.timesteps",),
}
"""Keys that people mean by names that other programs use."""
NO_KEY = {"num_workers": "there is none, because the data are in memory and no processes load them; leave it out"}
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
LISTS_OF = {int: "whole numbers", float: "numbers", str: "texts"}


class Key(NamedTuple):
    """A key of a config: its type, and the option `group=name` that has it; empty if every config has it."""

    hint: Any
    owner: str


def check_overrides(command: str, schema: type, overrides: list[str]) -> None:
    """Raise `UserError` for a key that does not exist, and for a value of the wrong type or of no option."""
    keys, groups = known_keys(schema), groups_of(command)
    nullable = {group for group in groups if group in SETTING_GROUPS or _is_optional(get_type_hints(schema)[group])}
    parsed = OverridesParser.create().parse_overrides(overrides)
    for override in parsed:
        if not override.key_or_group:
            raise UserError(f"{override.input_line}: has no key; write key=value")
        if override.key_or_group.startswith("hydra"):
            if override.key_or_group == CHDIR:
                check_no_chdir(True in _values(override))
            continue
        if override.is_delete() and not isinstance(override.value(), str | NoneType):
            raise UserError(f"{override.input_line}: a name is removed without a value; write it up to the =")
        if override.package is not None:  # for example, schedule@schedules.cosine=linear
            if options_of(override.key_or_group) and not override.is_delete():
                _check_group(override, nullable=False)
            continue
        if override.is_delete():
            raise UserError(f"{override.input_line}: keys cannot be removed; leave it out")
        if override.key_or_group in groups:
            _check_group(override, override.key_or_group in nullable)
        else:
            _check_key(override, keys)
    _check_needed_groups(schema, parsed, nullable - SETTING_GROUPS)


def check_single(overrides: list[str], remedy: str = "add -m, which runs each of them") -> None:
    """Raise `UserError` with a `remedy` for a key with several values, which only a sweep can have."""
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: has several values; {remedy}")


def check_no_chdir(changes: object) -> None:
    """Raise `UserError` if Hydra changes the working folder before a job, which relative paths are relative to."""
    if changes is True:
        raise UserError(
            f"{CHDIR}=true: must be false, because relative paths start where the command was typed; all files are "
            "written to the run folder anyway"
        )


def is_whole_number(schema: type, key: str) -> bool:
    """Return whether the values of a key are whole numbers."""
    return any(int in (known.hint, *get_args(known.hint)) for known in known_keys(schema).get(key, []))


def to_typed(cfg: DictConfig) -> Any:
    """Return the composed config as its dataclasses. Raise `UserError` for a key added by +key=value."""
    config: Any = OmegaConf.to_object(cfg)
    if added := sorted(_leaf_keys(OmegaConf.to_container(cfg)) - _leaf_keys(asdict(config))):
        raise UserError(f"{added[0]}: no such key; leave it out")
    return config


def explain_composition_error(command: str, schema: type, overrides: list[str], error: HydraException) -> Exception:
    """Return a `UserError` for overrides that passed `check_overrides` but do not fit together, else `error`.

    Either a typed key belongs to an option that was not chosen, or an experiment sets a key that an option chosen with
    it does not have.
    """
    groups = groups_of(command)
    parsed = OverridesParser.create().parse_overrides(overrides)
    chosen = [one.input_line or "" for one in parsed if one.key_or_group in groups]
    try:
        with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
            cfg = compose(command, chosen)
    except HydraException as conflict:
        return _conflict(groups, parsed, conflict.__cause__ or conflict.__context__) or error
    for override in parsed:
        owners = [key.owner for key in known_keys(schema).get(override.key_or_group, [])]
        if all(owners) and owners and not _has_key(cfg, override.key_or_group):
            return UserError(
                f"{override.key_or_group}: only {one_of(owners)} has this key; choose it too, or leave the key out"
            )
    return error


def _conflict(groups: Collection[str], parsed: Iterable[Override], cause: BaseException | None) -> UserError | None:
    if not isinstance(cause, ConfigKeyError) or not cause.full_key:
        return None
    group = str(cause.full_key).partition(".")[0]
    for override in parsed:
        if override.key_or_group in SETTING_GROUPS and group not in groups:
            return UserError(
                f"{override.input_line}: sets {cause.full_key}, and there is no such key; correct the file"
            )
        if override.key_or_group in SETTING_GROUPS:
            return UserError(
                f"{override.input_line}: sets {cause.full_key}, which the {group} chosen with it does not have; choose "
                f"another {group}"
            )
    missing = str(cause.full_key).rpartition(".")[2]
    return UserError(f"{group}: must be an option with {missing}, which this command sets; choose another one")


def _has_key(cfg: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node: Any = OmegaConf.select(cfg, ".".join(parents)) if parents else cfg
    return isinstance(node, DictConfig) and last in node._content  # type: ignore[operator]


@cache
def known_keys(schema: type) -> dict[str, list[Key]]:
    """Return all keys of a schema and of the options of its groups."""
    keys: dict[str, list[Key]] = {}
    for name, key in _keys_of(schema, ""):
        keys.setdefault(name, []).append(key)
    return keys


def _keys_of(schema: type, prefix: str) -> Iterator[tuple[str, Key]]:
    hints = get_type_hints(schema)
    for field in fields(schema):
        name, hint = prefix + field.name, hints[field.name]
        yield name, Key(hint, "")
        for kind in get_args(hint) or (hint,):
            if get_origin(hint) is dict and kind in GROUPS:
                for option in GROUPS[kind]:
                    yield f"{name}.{option_name(option)}", Key(option, "")
                    yield from _keys_of(option, f"{name}.{option_name(option)}.")
            elif kind in GROUPS:
                yield from _keys_of_group(kind, name)
            elif is_dataclass(kind) and isinstance(kind, type) and not issubclass(kind, Option):
                yield from _keys_of(kind, f"{name}.")


def _keys_of_group(base: type[Option], group: str) -> Iterator[tuple[str, Key]]:
    for option in GROUPS[base]:
        for name, key in _keys_of(option, f"{group}."):
            for config in configs_of(group, option_name(option)):
                yield name, Key(key.hint, f"{group}={config}")


def _check_group(override: Override, nullable: bool) -> None:
    group = override.key_or_group
    for value in _values(override):
        if value is None and nullable:
            raise UserError(f"{override.input_line}: leave it out, it is null by default")
        if value not in options_of(group):
            allowed = f"{override.get_key_element()}={_shown(value)}: must be {one_of(options_of(group))}"
            raise UserError(f"{allowed}{_option_hint(group, _shown(value))}")


def _option_hint(group: str, value: str) -> str:
    near = difflib.get_close_matches(value, options_of(group), n=1)
    return f"; did you mean {group}={near[0]}?" if near else ""


def _check_key(override: Override, keys: dict[str, list[Key]]) -> None:
    name = override.key_or_group
    if "sampler_changes" in keys:
        name = name.replace(CHANGES, "sampler.")
    if name not in keys or (name == "checkpoint" and not isinstance(override.value(), dict)):
        raise UserError(f"{name}: no such key; {_key_hint(name, keys)}")
    for value in _values(override):
        if _has_interpolation(value):
            continue
        hints = [key.hint for key in keys[name]]
        if not any(_fits(hint, value) for hint in hints):
            raise UserError(f"{name}={_shown(value)}: must {_expectation(hints[0], value)}")


def _key_hint(name: str, keys: Mapping[str, Any]) -> str:
    last = name.rpartition(".")[2]
    if last in NO_KEY:
        return NO_KEY[last]
    known = {*keys, *(key.partition(".")[0] for key in keys)}
    known |= {"class"} if "classes" in known else set()
    near = [key for key in MEANT.get(last, ()) if key.partition("=")[0] in known]
    near = near or [key for key in keys if key.endswith(f".{name}")] or difflib.get_close_matches(name, keys, n=1)
    return f"did you mean {one_of(near)}?" if near else "--cfg job lists the keys"


def _check_needed_groups(schema: type, parsed: list[Override], optional: set[str]) -> None:
    """Raise `UserError` for a key of an option of a group that is null because none was chosen."""
    typed = {override.key_or_group for override in parsed}
    for override in parsed:
        group = override.key_or_group.partition(".")[0]
        if group in optional and group not in typed:
            owner = next(key.owner for key in known_keys(schema)[override.key_or_group])
            raise UserError(f"{override.input_line}: choose a {group} too, as in {owner} {override.input_line}")


def _values(override: Override) -> list[Any]:
    """Return the value of an override, or those of a sweep that lists them; none of a sweep over a range."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return list(override.sweep_iterator())
    return [] if isinstance(value, Sweep) else [value]


def _fits(hint: Any, value: Any) -> bool:
    """Return whether OmegaConf converts `value` to the type `hint`."""
    if isinstance(value, dict):  # several keys at once, which Hydra checks
        return True
    holder = OmegaConf.structured(make_dataclass("Holder", [("value", hint)]))
    try:
        OmegaConf.update(holder, "value", value)
    except OmegaConfBaseException:
        return False
    return True


def _expectation(hint: Any, value: Any) -> str:
    if value is None:
        return "not be null"
    kind = next((arg for arg in get_args(hint) if arg is not NoneType), hint) if _is_optional(hint) else hint
    if get_origin(kind) is list:
        (element,) = get_args(kind)
        return (
            f"be a list of {LISTS_OF[element]}, as in key=[1,2]"
            if isinstance(value, list)
            else "be a list, as in key=[1,2]"
        )
    return f"be {EXPECTED.get(kind, 'left out; set the keys below it')}"


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)


def _has_interpolation(value: Any) -> bool:
    return "${" in str(value)


def _shown(value: Any) -> str:
    """Return a value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _leaf_keys(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix}
    return {prefix}.union(*(_leaf_keys(value, f"{prefix}.{key}".lstrip(".")) for key, value in tree.items()))
