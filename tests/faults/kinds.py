"""The trial of a seed."""

from faults.full import Full
from faults.gone import Gone
from faults.plan import plan
from faults.trial import Trial

ENDING = {"full": Full, "gone": Gone}


def trial(seed, client, folder):
    """Return the trial of a seed, to be `run`."""
    study = plan(seed)
    return ENDING.get(study.kinds[0], Trial)(study, client, folder)
