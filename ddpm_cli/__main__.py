"""Entry points of the commands. They handle Ctrl-C before they import anything that takes time."""

import errno
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

COMMANDS = {
    "train": "train a model, or resume a run",
    "sample": "draw samples with a checkpoint",
    "evaluate": "measure a checkpoint or samples",
    "report": "compare runs in one HTML page",
    "forward": "show the noising of an image",
    "export": "convert a checkpoint to the formats of other libraries",
    "import": "convert a network of the diffusers library to a checkpoint",
}


def main() -> None:
    """`python -m ddpm_cli` lists the commands; `python -m ddpm_cli train …` runs one."""
    name = sys.argv[1].removeprefix("ddpm-") if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"ddpm-{name}"]
        run(name)
    print(*(f"ddpm-{command:10}{what}" for command, what in COMMANDS.items()), "", sep="\n")
    print("ddpm-<command> --help describes a command.")
    sys.exit(2 if name else 0)


def run(name: str) -> NoReturn:
    """Run `ddpm-<name>` with the arguments in `sys.argv` and exit."""
    _open_missing_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if a shell ignores it in the background
        signal.signal(signal.SIGINT, lambda number, frame: _interrupted(name))
    try:
        import_module(f"ddpm_cli.cli.{name.replace('import', 'import_')}").main()
        sys.stdout.flush()
    except BrokenPipeError:  # for example, in ddpm-train --help | head -1
        _discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _discard_output()
        print(f"ddpm-{name}: standard output cannot be written ({error.strerror})", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the command is over; Ctrl-C now would only change its exit status
    sys.exit()


def _discard_output() -> None:
    """Let Python flush the rest of standard output to nowhere at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_missing_streams() -> None:
    """Replace standard streams that the caller has closed, as in `ddpm-train 2>&-`, which Python sets to None."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115  # used until the process ends


def _interrupted(name: str) -> NoReturn:
    """End at once. An exception could be swallowed or could crash the imports of extension modules."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "ddpm_cli.files" in sys.modules:
        sys.modules["ddpm_cli.files"].remove_unfinished()
    with suppress(OSError):  # stderr may be closed
        os.write(2, f"ddpm-{name}: interrupted\n".encode())
    os._exit(130)


train = partial(run, "train")
sample = partial(run, "sample")
evaluate = partial(run, "evaluate")
report = partial(run, "report")
forward = partial(run, "forward")
export = partial(run, "export")
import_ = partial(run, "import")
"""The entry points of the console scripts."""


if __name__ == "__main__":
    main()
