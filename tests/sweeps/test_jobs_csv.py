"""jobs.csv: rows of many processes, truncated rows, and a full disk."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_cli.files import NoRoom
from ddpm_cli.sweeps.jobs_csv import SweepJob, append_job, create_jobs, jobs_of

PROCESSES, ROWS = 64, 8
APPENDING = f"""
import os, sys
from pathlib import Path
from ddpm_cli.sweeps.jobs_csv import SweepJob, append_job
folder, ready = Path(sys.argv[1]), os.pipe()
for process in range({PROCESSES}):
    if os.fork() == 0:
        os.close(ready[1])
        os.read(ready[0], 1)  # returns when the parent closes its end
        for i in range({ROWS}):
            job = {ROWS} * process + i
            append_job(folder, SweepJob(job, "done", job / 7, 0.5, "x=" + "ab" * 37 * job, 'a "quoted", text'))
        os._exit(0)
os.close(ready[1])
sys.exit(any(os.wait()[1] for _ in range({PROCESSES})))
"""


def test_rows_of_many_processes_are_complete(tmp_path: Path) -> None:
    """64 processes append rows of up to 38 kB at the same time."""
    create_jobs(tmp_path)
    subprocess.run([sys.executable, "-c", APPENDING, str(tmp_path)], check=True, timeout=60)
    jobs = jobs_of(tmp_path)
    assert list(jobs) == [*range(PROCESSES * ROWS)]
    for number, job in jobs.items():
        assert job == SweepJob(number, "done", number / 7, 0.5, "x=" + "ab" * 37 * number, 'a "quoted", text')
    assert (tmp_path / "jobs.csv").read_bytes().count(b"\n") == 1 + PROCESSES * ROWS


def test_last_row_of_a_job_counts(tmp_path: Path) -> None:
    for status, value in (("failed", None), ("done", 0.25)):
        append_job(tmp_path, SweepJob(4, status, value, 1.0, "a=1 'b=[1,2]'", "" if value else "why,\nindeed"))
    assert jobs_of(tmp_path) == {4: SweepJob(4, "done", 0.25, 1.0, "a=1 'b=[1,2]'", "")}
    assert (tmp_path / "jobs.csv").read_text().splitlines()[0] == """4,failed,,1.0,"a=1 'b=[1,2]'","why, indeed\""""


@pytest.mark.parametrize("truncated", ["5,do", '5,done,0.5,1.0,"a=1 b=', "5,done,0.,x,a=1,"])
def test_truncated_row_does_not_affect_the_next_row(tmp_path: Path, truncated: str) -> None:
    create_jobs(tmp_path)
    with (tmp_path / "jobs.csv").open("a") as stream:
        stream.write(truncated)
    job = SweepJob(6, "done", 0.25, 1.0, "a=1", "")
    append_job(tmp_path, job)
    assert jobs_of(tmp_path) == {6: job}


def test_no_room_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").symlink_to("/dev/full")
    with pytest.raises(NoRoom, match=r"jobs\.csv: no room on the disk"):
        append_job(tmp_path, SweepJob(0, "done", 0.25, 1.0, "a=1", ""))
