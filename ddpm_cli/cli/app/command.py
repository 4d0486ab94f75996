"""Run a command: parse what was typed, compose the config with Hydra, and report errors in one line."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from ddpm_cli.cli.app.completion import candidates
from ddpm_cli.cli.app.error_messages import EXPECTED_ERRORS, message_of, on_one_line
from ddpm_cli.cli.app.help import help_text, version_text
from ddpm_cli.cli.app.overrides import (
    check_no_chdir,
    check_overrides,
    check_single,
    explain_composition_error,
    to_typed,
)
from ddpm_cli.cli.app.own_configs import add_configs, check_configs, includes_itself, search_path
from ddpm_cli.cli.app.shorthands import HELP, config_dir, expand, without_plugins
from ddpm_cli.cli.app.sweep import SweepPlan, create_sweep, finish_sweep, plan_sweep, run_sweep_job
from ddpm_cli.config import EXTRA_CONFIGS, GROUPS, option_name
from ddpm_cli.config.plugins import WITHOUT_YAML, default_config, failed_plugin, load_plugins
from ddpm_cli.distributed.launch import is_launch_rank_zero, is_one_of_several
from ddpm_cli.distributed.waiting import OtherPrograms, limit_busy_waiting
from ddpm_cli.errors import Failure, Stopped, UserError
from ddpm_cli.tracking.terminal import status

CONFIGS = "pkg://ddpm_cli.configs"
OTHERS = OtherPrograms()  # from here to the import of torch


@dataclass(frozen=True)
class Command:
    """A command `ddpm-<name>`.

    Attributes:
        usage: the first lines of --help.
        schema: the dataclass of configs/<name>.yaml.
        check: raises `UserError` for a config that cannot run. It is called once for a run, and for all jobs of a
            sweep before the first one starts.
        run: called with the config and the folder to write to.
        after_sweep: called with the folder of a finished sweep.
    """

    name: str
    usage: str
    schema: type
    check: Callable[[Any], None]
    run: Callable[[Any, Path], float | None]
    after_sweep: Callable[[Path], None] | None = None


def run_command(command: Command) -> None:
    """Run a command with the arguments in `sys.argv`.

    An error is printed as one line on stderr. The exit status is 2 for a `UserError`, 1 for a `Failure`, and 128 plus
    its number for a signal. HYDRA_FULL_ERROR=1 shows the traceback.
    """
    if "--version" in sys.argv[1:]:
        print(version_text())
        return
    with _hydra_raises_errors() as traceback, _errors_on_one_line(command, traceback):
        sys.argv[1:] = without_plugins(sys.argv[1:])
        load_options(command, config_dir(sys.argv[1:]))
        if not HELP & {*sys.argv}:
            check_configs([*EXTRA_CONFIGS, *search_path(sys.argv[1:])], sys.argv[1:])
        arguments = _parse(command)
        if arguments.shell_completion and arguments.overrides and arguments.overrides[0].startswith("query="):
            line = os.environ.get("COMP_LINE", "")
            print(*candidates(command.name, command.schema, line), sep="\n")
        elif arguments.help:
            print(help_text(command.name, command.usage, arguments.overrides))
        elif arguments.multirun:
            _run_sweep(command, arguments.overrides, traceback)
        else:
            if not arguments.shell_completion:  # whose overrides are options of the completion
                check_overrides(command.name, command.schema, arguments.overrides)
                check_single(arguments.overrides)
            _compose_and_run(command, arguments.overrides, None, traceback)


def load_options(command: Command, config_dir: str | None = None) -> None:
    """Load the plugins, and let Hydra find all options. Raise `UserError`.

    Args:
        config_dir: another folder with YAML files.
    """
    load_plugins()
    register_schemas(command.name, command.schema)
    if config_dir:
        add_configs(config_dir)
    if EXTRA_CONFIGS:
        Plugins.instance().register(ExtraConfigs)


class ExtraConfigs(SearchPathPlugin):
    """Let Hydra find the YAML files of options that are defined outside the package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in EXTRA_CONFIGS:
            search_path.append("ddpm_cli", f"file://{folder.absolute()}")


def register_schemas(name: str, schema: type) -> None:
    """Register the schemas of configs/<name>.yaml and of all options with Hydra."""
    store = ConfigStore.instance()
    store.store(name=f"{name}_schema", node=schema)
    for base, options in GROUPS.items():
        for option in options:
            store.store(group=f"schema/{base.group}", name=option_name(option), node=option)
    for option in WITHOUT_YAML:
        store.store(group=option.group, name=option_name(option), node=default_config(option))


def _parse(command: Command) -> Namespace:
    """Parse `sys.argv`, from which Hydra reads it again. Raise `UserError`."""

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    sys.argv[1:] = expand(command.name, command.schema, sys.argv[1:])
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    arguments = parser.parse_args()
    if arguments.multirun and (arguments.cfg or arguments.info):
        raise UserError("-m: cannot be combined with --cfg or --info, which show the config of one job; leave it out")
    return arguments


def _run_sweep(command: Command, overrides: list[str], traceback: bool) -> None:
    if is_one_of_several():
        raise UserError("-m: not under torchrun or srun, whose processes share one job; type devices=… instead")
    plan = plan_sweep(command.name, command.schema, overrides, command.check)
    end = 1 + len(overrides)  # flags follow
    sys.argv[end:end] = create_sweep(plan)
    _compose_and_run(command, overrides, plan, traceback)
    finish_sweep(plan, command.after_sweep)


def _compose_and_run(command: Command, overrides: list[str], plan: SweepPlan | None, traceback: bool) -> None:
    """Let Hydra compose the config, and run the command with it; for a sweep, once for each job."""
    started = False

    def job(cfg: DictConfig) -> float | None:
        nonlocal started
        started = True
        with _errors_on_one_line(command, traceback):  # here, because Hydra would print a line of its own
            if plan is None:
                return _run_job(command, cfg, check=True)
            # The jobs of a plan that lists them have been checked.
            work = partial(_run_job, command, cfg, check=plan.jobs is None)
            return run_sweep_job(work, command.schema, plan, cfg.get("devices", 1))

    try:
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=command.name)(job)()
    except hydra.errors.ConfigCompositionException as error:
        raise explain_composition_error(command.name, command.schema, overrides, error) from error
    except RecursionError as error:
        if started:
            raise
        raise includes_itself() from error
    except ValueError as error:  # for example, hydra.searchpath=[s3://x]
        if started or traceback:
            raise
        raise UserError(f"{error}; correct the options of Hydra") from error
    except OSError as error:
        if started or traceback:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; choose another folder") from error  # hydra.run.dir=…


def _run_job(command: Command, cfg: DictConfig, check: bool) -> float | None:
    load_plugins()  # in a process of a launcher
    check_no_chdir(HydraConfig.get().job.chdir)  # which a config file may set
    config = to_typed(cfg)
    limit_busy_waiting(OTHERS)
    with status("loading PyTorch"):
        import_module("torch")  # takes seconds
    if check:
        command.check(config)
    return command.run(config, _output_folder(config))


def _output_folder(config: Any) -> Path:
    """Return the folder to write to: `out`, or the one that Hydra created for a job of a sweep or for hydra.run.dir."""
    created = Path(HydraConfig.get().runtime.output_dir)
    return Path(config.out) if created == Path.cwd() else created


@contextmanager
def _hydra_raises_errors() -> Iterator[bool]:
    """Let Hydra raise exceptions instead of printing several lines; yield whether the user asked for tracebacks."""
    asked = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield asked == "1"
    finally:
        if asked is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked


@contextmanager
def _errors_on_one_line(command: Command, traceback: bool) -> Iterator[None]:
    """Turn expected errors into a line on stderr and an exit status."""

    def end(message: str, status: int, suggestions: tuple[str, ...] = ()) -> NoReturn:
        if is_launch_rank_zero():
            print(f"ddpm-{command.name}: {on_one_line(message)}", *suggestions, sep="\n", file=sys.stderr)
        sys.exit(status)

    try:
        yield
    except Stopped as stop:
        end(str(stop), stop.status)
    except EXPECTED_ERRORS as error:
        if traceback:
            raise
        suggestions = error.suggestions if isinstance(error, UserError) else ()
        end(message_of(error, command.schema), 1 if isinstance(error, Failure) else 2, suggestions)
    except KeyboardInterrupt:
        end("interrupted", 130)
    except Exception as error:
        plugin = failed_plugin(error)
        if traceback or plugin is None:
            raise
        end(f"{plugin}: {type(error).__name__}: {error}; HYDRA_FULL_ERROR=1 shows the traceback", 1)
