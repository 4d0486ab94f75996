"""Read untrusted files: regular files of bounded size only."""

import logging
import stat
from pathlib import Path

log = logging.getLogger(__name__)


def content_of(path: Path, most: int) -> bytes | None:
    """Return the content of `path`, or None if it is missing, no regular file or larger than `most` bytes (logged)."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            log.warning("%s: skipped because it is not a regular file", path)
        elif status.st_size > most:
            log.warning("%s: skipped because its %d bytes are more than %d", path, status.st_size, most)
        else:
            return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        log.warning("%s: skipped because it cannot be read (%s)", path, error.strerror)
    return None


def text_of(path: Path, most: int) -> str:
    """Return the text of `path`, or an empty text if `content_of` returns None."""
    return (content_of(path, most) or b"").decode(errors="replace")
