"""How long a job may run, as its script says it."""

from __future__ import annotations

import re

__all__ = ["UNTIL", "asked_for", "prologue", "walltime_of"]

UNTIL = "SURROGATE_FLOW_UNTIL"
"""Environment variable of a job: seconds since 1970 when its time is over."""

_SLURM = re.compile(r"^#SBATCH\s+(?:-t\s*|--time[= ])(\S+)", re.MULTILINE)
_PBS = re.compile(r"^#PBS\s+-l\s+(?:\S+,)?walltime=([^\s,]+)", re.MULTILINE)


def asked_for(script: str) -> str:
    """Return the walltime as a job script has it, or nothing.

    Examples
    --------
    >>> asked_for("#SBATCH -t 4h")
    '4h'
    """
    found = _SLURM.findall(script) or _PBS.findall(script)
    return str(found[-1]) if found else ""


def walltime_of(script: str) -> float | None:
    """Return the seconds that a job script asks for, or None if it names no limit.

    Of several directives the last one counts, as for the batch systems.

    Examples
    --------
    >>> walltime_of("#SBATCH -t 1-02:00:00"), walltime_of("#SBATCH --time=30")
    (93600.0, 1800.0)
    >>> walltime_of("#PBS -l walltime=00:30:00"), walltime_of("#PBS -l walltime=90")
    (1800.0, 90.0)
    >>> walltime_of("#SBATCH -t UNLIMITED"), walltime_of("#PBS -l walltime=4h")
    (None, None)
    """
    if found := _SLURM.findall(script):
        return _slurm(found[-1])
    if found := _PBS.findall(script):
        return _pbs(found[-1])
    return None


def _pbs(word: str) -> float | None:
    parts = word.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + float(part)
    return seconds


def _slurm(word: str) -> float | None:
    days, dash, rest = word.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in (*parts, days or "0")):
        return None
    numbers = [float(part) for part in parts]
    if dash:
        # days-hours, days-hours:minutes or days-hours:minutes:seconds
        hours, minutes, seconds = [*numbers, 0.0, 0.0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        # minutes or minutes:seconds
        hours, (minutes, seconds) = 0.0, [*numbers, 0.0][:2]
    return 86400 * float(days or 0) + 3600 * hours + 60 * minutes + seconds


def prologue(walltime: float) -> str:
    """Return the line of a job script that notes when its time is over."""
    return f"export {UNTIL}=$(($(date +%s) + {int(walltime)}))"
