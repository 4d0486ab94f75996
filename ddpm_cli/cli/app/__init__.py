"""The Hydra application that all commands share: parse, check, compose, run, and report errors in one line."""

from ddpm_cli.cli.app.command import Command, register_schemas, run_command

__all__ = ["Command", "register_schemas", "run_command"]
