"""Check the settings of a part of a diffusers pipeline: their names and types."""

from collections.abc import Collection, Mapping
from typing import Any

from ddpm_cli.errors import UserError

KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list like its default",
}
LONGEST = 50
"""Letters of a value that are shown in messages."""


def complete(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], nullable: Collection[str] = ()
) -> dict[str, Any]:
    """Return the content of a JSON file, completed by the `defaults` of its class.

    Keys that start with an underscore, such as `_diffusers_version`, are no settings. Raise `UserError` if the class
    is another one, if a key is unknown, or if a value has another type than its default, or is null where the
    key is not `nullable`. A default of None allows all.
    """
    name = "_class_name"
    require(settings.get(name, defaults[name]) == defaults[name], settings, name, defaults[name])
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    if unknown := sorted(public.keys() - defaults.keys()):
        raise UserError(f"{unknown[0]}: not a supported setting of a {defaults[name]}")
    for key, value in public.items():
        fits = _fits(value, defaults[key]) or (value is None and key in nullable)
        require(fits, public, key, KINDS.get(type(defaults[key]), ""))
    return {**defaults, **public}


def require(ok: bool, full: Mapping[str, Any], key: str, allowed: object) -> None:
    """Raise `UserError` that names the value of `key` and what is `allowed`, unless `ok`."""
    if not ok:
        raise UserError(f"{key}={str(full[key])[:LONGEST]}: must be {allowed}")


def _fits(value: Any, default: Any) -> bool:
    """Return whether a value of a JSON file has the type of a default. Whole numbers may be written as 8.0."""
    match default:
        case None:
            return True
        case bool() | str():
            return type(value) is type(default)
        case list():
            return isinstance(value, list | tuple) and all(_fits(element, default[0]) for element in value)
        case int():
            return type(value) in (int, float) and value == value // 1
    return type(value) in (int, float)
