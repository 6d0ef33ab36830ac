"""What must hold after a study, whatever was injected into it."""

import csv

# What an attempt may fail with, by what was injected into its simulation ...
CAUSES = {
    "raises": {"ArithmeticError"},
    "nan": {"SpecMismatch"},
    "hangs": {"TimeoutError"},
    "gil": {"TimeoutError"},
    "stop": {"StreamRefused", "StreamTimeout", "TimeoutError"},
    # Told to make way for another attempt, which the test began and did not finish.
    "twice": {"EnsembleError"},
}
# ... or, if a cut loses messages, into its study.
LOST = {"StreamRefused", "StreamTimeout", "EnsembleError"}
SURE = ("raises", "nan", "hangs", "gil")


class Audit:
    """The ledger of a study against what was promised.

    Parameters
    ----------
    plan : Plan
    ledger : Ledger
    whole : set of (int, int)
        Simulation and step, of all that have finished.
    """

    def __init__(self, plan, ledger, whole):
        self.plan, self.ledger, self.whole = plan, ledger, whole

    def lost(self, *, drained):
        """Steps of finished simulations that never came, or that were not trained.

        Parameters
        ----------
        drained : bool
            Whether the study ended after its last batch.
        """
        delivered, trained = self.ledger.delivered.keys(), self.ledger.trained.keys()
        return (self.whole - delivered) | (delivered - trained if drained else set())

    def doubled(self):
        """Steps delivered more than once, or trained more than once where once is right."""
        books = [self.ledger.delivered]
        books += [] if self.plan.policy == "Reservoir" else [self.ledger.trained]
        return {key for book in books for key, times in book.items() if times > 1}

    def of_steps(self, *, drained=True):
        """Return what is wrong with steps, in words."""
        words = []
        if wrong := self.ledger.wrong:
            words.append(f"fields under wrong labels: {wrong[:3]}")
        if lost := self.lost(drained=drained):
            words.append(f"lost {len(lost)} steps: {sorted(lost)[:5]}")
        if doubled := self.doubled():
            words.append(f"doubled {len(doubled)} steps: {sorted(doubled)[:5]}")
        if alien := self.ledger.trained.keys() - self.ledger.delivered.keys():
            words.append(f"trained what never came: {sorted(alien)[:5]}")
        return words

    def of_failures(self, path, tokens, aside):
        """Return what is wrong with failures.csv, in words.

        Parameters
        ----------
        path, tokens : Path
            Of the table, and of the folder where troubles leave their tokens.
        aside : list of int
            Simulations that were set aside.
        """
        words, rows, plan = [], table(path), self.plan
        injected = {
            (t.simulation, cause)
            for t in plan.troubles
            for cause in CAUSES.get(t.kind, ())
        }
        injected |= {(n, cause) for n, _ in plan.twice for cause in CAUSES["twice"]}
        got = [(int(row["simulation"]), row["error"]) for row in rows]
        for pair, row in zip(got, rows, strict=True):
            if pair not in injected and not (plan.cuts and pair[1] in LOST):
                words.append(f"unexplained failure: {row}")
        listed = sorted(
            int(r["simulation"]) for r in rows if r["outcome"] == "failed permanently"
        )
        if listed != sorted(aside):
            words.append(f"listed as failed {listed}, were {aside}")
        for t in plan.troubles:
            struck = len(list(tokens.glob(f"{t.kind}-{t.simulation}-*")))
            rows = sum(got.count((t.simulation, c)) for c in CAUSES.get(t.kind, ()))
            # What a dying worker took with it, or another attempt, was not heard of.
            quiet = {"kill", "term", "hangs", "gil", "cut", "twice"} & set(plan.kinds)
            right = rows == struck or (rows < struck and quiet - {t.kind})
            if t.kind in SURE and not right:
                words.append(f"{t} struck {struck} times, {rows} are listed")
        return words


def table(path):
    """The rows of failures.csv."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
