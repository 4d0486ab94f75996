"""The body of all commands: compose the config with Hydra, check it, run, and report errors in one line."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ddpm_cli.cli.error_messages import FORESEEN, on_one_line, one_line
from ddpm_cli.cli.help import help_text
from ddpm_cli.cli.overrides import check_groups, checked
from ddpm_cli.cli.sweep import Plan, begin, finish, planned, quoted, run_job
from ddpm_cli.config import GROUPS, CheckpointConfig, TrainConfig, option_name
from ddpm_cli.distributed.launch import ONE_MACHINE, WorkerGroup, is_launch_rank_zero, is_one_of_several
from ddpm_cli.errors import Failure, Stopped

CONFIGS = "pkg://ddpm_cli.configs"


def launch(
    name: str,
    usage: str,
    schema: type,
    check: Callable[[Any], None],
    run: Callable[[Any, Path], float | None],
    spelling: Mapping[str, str] = MappingProxyType({}),
    after_sweep: Callable[[Path], None] | None = None,
) -> None:
    """Run `ddpm-<name>`.

    Hydra composes configs/<name>.yaml into a `schema`; `check` may raise `UserError`, for every job of a sweep before
    the first one starts; then `run` is called with the config and the folder to write to.

    A `UserError` is printed as one line on stderr and the exit status is 2; for a `Failure` it is 1, and for a signal
    128 plus its number. HYDRA_FULL_ERROR=1 shows the traceback.

    Args:
        usage: the first lines of --help.
        spelling: fields of `schema` by the keys that are typed for them, where these differ.
        after_sweep: called with the folder of a finished sweep.
    """
    register_schemas(name, schema)
    sys.argv[1:] = [_spelled(argument, spelling) for argument in sorted(sys.argv[1:], key=_is_no_flag)]
    traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing several lines

    def refuse(message: str, status: int = 2) -> NoReturn:
        if is_launch_rank_zero():
            print(f"ddpm-{name}: {on_one_line(message)}", file=sys.stderr)
        sys.exit(status)

    def fail(error: Exception) -> NoReturn:
        if traceback:
            raise error
        refuse(one_line(error, schema), 1 if isinstance(error, Failure) else 2)

    started = False
    plan: Plan | None = None

    def task(cfg: DictConfig) -> float | None:
        nonlocal started
        started = True

        def work() -> float | None:
            config = checked(cfg)
            check(config)
            return run(config, _folder(config))

        try:
            return work() if plan is None else run_job(work, schema, plan)
        except Stopped as stop:
            refuse(one_line(stop, schema), stop.status)
        except FORESEEN as error:
            fail(error)  # here, because Hydra would print a line of its own

    try:
        parser = get_args_parser()
        parser.error = refuse  # type: ignore[method-assign]
        args = parser.parse_args()
        if args.help:
            print(help_text(name, usage))
            return
        check_groups(schema, args.overrides)
        if args.multirun and (args.cfg or args.info):
            refuse("-m: cannot be combined with --cfg or --info, which show the config of one job; leave it out")
        if args.multirun:
            if is_one_of_several():
                refuse("-m: not under torchrun or srun, whose processes share one job; type devices=… instead")
            plan = planned(name, schema, args.overrides, check)
            begin(plan)
            sys.argv.append(f"hydra.sweep.dir={quoted(plan.folder)}")
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=name)(task)()
        if plan is not None:
            finish(plan, after_sweep)
    except FORESEEN as error:
        fail(error)
    except OSError as error:
        if started or traceback:
            raise
        refuse(f"{error.filename}: {error.strerror}; choose another folder")  # raised by Hydra for hydra.run.dir=…
    except KeyboardInterrupt:
        refuse("interrupted", 130)


def worker_group(config: TrainConfig | CheckpointConfig) -> WorkerGroup:
    """Return the processes that a config asks for. Raise `UserError` if there are too few devices."""
    from ddpm_cli.distributed.devices import processes_of

    distributed = config.distributed if isinstance(config, TrainConfig) else ONE_MACHINE
    return WorkerGroup(processes_of(config.devices, config.device), config.device, distributed)


def _is_no_flag(argument: str) -> bool:
    """Sort key that moves -m to the front, since argparse accepts no positional arguments on both sides of it."""
    return argument not in ("-m", "--multirun")


def _spelled(argument: str, spelling: Mapping[str, str]) -> str:
    """Return an override with its key replaced by the field that it is spelled for."""
    key, equals, value = argument.partition("=")
    return spelling.get(key, key) + equals + value


def register_schemas(name: str, schema: type) -> None:
    """Register the schemas of configs/<name>.yaml and of all options with Hydra."""
    store = ConfigStore.instance()
    store.store(name=f"{name}_schema", node=schema)
    for base, options in GROUPS.items():
        for option in options:
            store.store(group=f"schema/{base.group}", name=option_name(option), node=option)


def _folder(config: Any) -> Path:
    """Return the folder to write to: `out`, or the one that Hydra created for a job of a sweep or for hydra.run.dir."""
    made = Path(HydraConfig.get().runtime.output_dir)
    return Path(config.out) if made == Path.cwd() else made
