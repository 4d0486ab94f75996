"""Files that may be a stranger's: plain ones of a bounded size, or none."""

import logging
import stat
from pathlib import Path

log = logging.getLogger(__name__)


def content_of(path: Path, most: int) -> bytes | None:
    """What is in `path`, or None: for no plain file, or more than `most` bytes, which is said; or none at all."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            log.warning("%s: left out, for it is no plain file", path)
        elif status.st_size > most:
            log.warning("%s: left out, for its %d bytes are more than %d", path, status.st_size, most)
        else:
            return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        log.warning("%s: left out, for it cannot be read (%s)", path, error.strerror)
    return None


def text_of(path: Path, most: int) -> str:
    """The text of `path`, as `content_of` has it; nothing where that is None."""
    return (content_of(path, most) or b"").decode(errors="replace")
