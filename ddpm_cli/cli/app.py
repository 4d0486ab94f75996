"""What the commands share: Hydra, the schemas, errors in one line, the folder that is written to."""

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
from ddpm_cli.distributed.launch import ONE_MACHINE, WorkerGroup, is_one_of_several, talks
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
    """The body of `ddpm-<name>`: Hydra composes configs/<name>.yaml, and `run` gets it as a `schema` with
    the folder to write to, unless `check` refuses it: any job of a sweep before one starts. `usage` opens
    the text of --help. `spelling`: the fields of `schema` for keys that are typed otherwise. `after_sweep` makes what
    there is to be made of the folder of a sweep that is over.

    An error that the user can mend is one line on stderr and exit status 2, another one that is foreseen exit
    status 1; HYDRA_FULL_ERROR=1 shows where they came from. A signal that stopped the command is 128 + its number.
    """
    register_schemas(name, schema)
    sys.argv[1:] = [_spelled(argument, spelling) for argument in sorted(sys.argv[1:], key=_is_no_flag)]
    traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise, rather than print several lines and exit with 1

    def refuse(message: str, status: int = 2) -> NoReturn:
        if talks():
            print(f"ddpm-{name}: {on_one_line(message)}", file=sys.stderr)
        sys.exit(status)

    def told(error: Exception) -> NoReturn:
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
            told(error)  # here, because Hydra would add a line of its own

    try:
        parser = get_args_parser()
        parser.error = refuse  # type: ignore[method-assign]
        args = parser.parse_args()
        if args.help:
            print(help_text(name, usage))
            return
        check_groups(schema, args.overrides)
        if args.multirun and (args.cfg or args.info):
            refuse("-m: not beside --cfg or --info, which show what one job is told; leave it out")
        if args.multirun:
            if is_one_of_several():
                refuse("-m: not under torchrun or srun, whose processes do one job together; type devices=… instead")
            plan = planned(name, schema, args.overrides, check)
            begin(plan)
            sys.argv.append(f"hydra.sweep.dir={quoted(plan.folder)}")
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=name)(task)()
        if plan is not None:
            finish(plan, after_sweep)
    except FORESEEN as error:
        told(error)
    except OSError as error:
        if started or traceback:
            raise
        refuse(f"{error.filename}: {error.strerror}; choose another folder")  # Hydra's, hydra.run.dir=…
    except KeyboardInterrupt:
        refuse("interrupted", 130)


def worker_group(config: TrainConfig | CheckpointConfig) -> WorkerGroup:
    """The processes that a config asks for. Raises `UserError` where there are not the devices for them."""
    from ddpm_cli.distributed.devices import processes_of

    distributed = config.distributed if isinstance(config, TrainConfig) else ONE_MACHINE
    return WorkerGroup(processes_of(config.devices, config.device), config.device, distributed)


def _is_no_flag(argument: str) -> bool:
    """-m comes first, for argparse takes no overrides after it that were begun before."""
    return argument not in ("-m", "--multirun")


def _spelled(argument: str, spelling: Mapping[str, str]) -> str:
    """An override with its key as the field that is meant."""
    key, equals, value = argument.partition("=")
    return spelling.get(key, key) + equals + value


def register_schemas(name: str, schema: type) -> None:
    """Tell Hydra the types of configs/<name>.yaml and of every option."""
    store = ConfigStore.instance()
    store.store(name=f"{name}_schema", node=schema)
    for base, options in GROUPS.items():
        for option in options:
            store.store(group=f"schema/{base.group}", name=option_name(option), node=option)


def _folder(config: Any) -> Path:
    """Where to write: `out`, or the folder that Hydra made for a job of a sweep or was told of."""
    made = Path(HydraConfig.get().runtime.output_dir)
    return Path(config.out) if made == Path.cwd() else made
