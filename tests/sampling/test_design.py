"""Which simulations a study runs: numbers, parameters, ranks, resume, and losses."""

import itertools
import json
import threading
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import Parameter
from surrogate_flow.sampling import (
    Design,
    Halton,
    LatinHypercube,
    Observations,
    Sampler,
    Sobol,
    Table,
    Uniform,
)
from surrogate_flow.sampling.design import shared_points

WHOLE = Parameter("n", 1, 4, whole=True)
BOX = [Parameter("initial", 100.0, 500.0, "K"), Parameter("inflow", -2.0, -1.0)]


def taken(design, count=None):
    """The next simulations, as plain values."""
    return [
        (s.number, s.part, list(s.parameters.values()))
        for s in itertools.islice(design, count)
    ]


def losses(*simulations):
    """What a surrogate says of some simulations, whose number is their loss."""
    number = np.array(simulations)
    return Observations(
        number, 0 * number, np.zeros((len(number), 2)), number.astype(float)
    )


class Shifting(Uniform):
    """Uniform, behind as many other blocks as the sum of all losses says."""

    shift = 0

    def block(self, index, dimensions):
        return super().block(index + self.shift, dimensions)

    def tell(self, seen):
        self.shift += int(seen.loss.sum())

    def state_dict(self):
        return {"shift": self.shift}

    def load_state_dict(self, state):
        self.shift = state["shift"]


def test_a_state_that_no_checkpoint_reads_is_refused_at_once():
    """Not by the run that goes on from it."""

    class Keeping(Shifting):
        def state_dict(self):
            return {"random": np.random.default_rng(1)}

    with pytest.raises(UserError, match=r"Keeping.state_dict\(\): .*Generator"):
        Design(BOX, Keeping(), held_out=1)


def test_held_out_points_are_those_of_version_0_1():
    """They depend on nothing but the part, so that studies can be compared."""
    for part, seed in (("validation", 1_234_567_891), ("test", 1_234_567_892)):
        for sampler in (Sobol(seed=2), Uniform(seed=8)):
            design = Design(BOX, sampler, held_out=3, simulations=0, part=part)
            points = Uniform(seed).ask(0, 3, BOX).tolist()
            assert taken(design) == [(n, part, points[n]) for n in range(3)]


@pytest.mark.parametrize("simulations", [5, 1500, None])
def test_the_sampler_follows_the_held_out_set(simulations):
    """Numbers go up by one; a design without end goes on behind its first block."""
    design = Design(BOX, Sobol(seed=2), held_out=3, simulations=simulations)
    points = Sobol(seed=2).ask(0, 2100, BOX).tolist()
    names = [p.name for p in BOX]
    assert design.first == dict(zip(names, points[0], strict=True))
    count = 2100 if simulations is None else simulations
    assert taken(design, 2103)[3:] == [
        (3 + n, "training", points[n]) for n in range(count)
    ]
    assert (design.next() is None) == (simulations is not None)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_all_simulations(world):
    """Each has every world-th number, with the parameters that it has on one rank."""
    alone = taken(Design(BOX, Sobol(), held_out=4, simulations=20))
    for rank in range(world):
        design = Design(
            BOX, Sobol(), held_out=4, simulations=20, rank=rank, world=world
        )
        assert taken(design) == alone[rank::world]


def test_simulations_that_have_ended_are_left_out():
    """Whoever says so, and whenever, as long as they were not taken before."""
    alone = taken(Design(BOX, Sobol(), held_out=4, simulations=20))
    design = Design(BOX, Sobol(), held_out=4, simulations=20)
    design.skip({0, 5})
    first = taken(design, 2)
    design.skip(range(10, 20))
    numbers = [0, 5, *range(10, 20)]
    assert first + taken(design) == [s for s in alone if s[0] not in numbers]


def test_losses_change_what_was_not_taken_and_nothing_else():
    """Also in another process, which runs again what had not ended."""
    design = Design(BOX, Shifting(), held_out=1, simulations=8)
    before = taken(design, 4)
    design.tell(losses(1, 2))
    state = json.loads(json.dumps(design.state_dict()))
    after = taken(design)
    shifted = Shifting()
    shifted.shift = 3
    assert [p for _, _, p in after] == shifted.ask(3, 5, BOX).tolist()
    assert [p for _, _, p in before[1:]] == Shifting().ask(0, 3, BOX).tolist()

    again = Design(BOX, Shifting(), held_out=1, simulations=8)
    again.load_state_dict(state)
    again.skip({0, 2})
    assert taken(again) == [before[1], before[3], *after]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda points: points.ravel(), r": expected .*\(8, "),
        (lambda points: points.astype(str), "array of numbers.*dtype <U"),
        (
            lambda points: points * np.nan,
            "initial: expected .*from 100 to 500, got nan",
        ),
        (lambda points: points + [999, 0], r"initial: .*bounds\[0\].low"),
        (lambda points: points - [0, 99], r"inflow: .*bounds\[1\].low"),
    ],
)
def test_points_that_are_none_of_the_box_are_refused(change, words):
    """By the name of the sampler, and with what it was asked for; held out or not."""

    class Own(Sampler):
        def ask(self, first, count, bounds):
            return change(Uniform().ask(first, count, bounds))

    with pytest.raises(UserError, match=rf"Own.ask\(0, 8, bounds\).*{words}"):
        Design(BOX, Own(), held_out=0, simulations=8).next()
    with pytest.raises(UserError, match=r"Own.ask\(0, 1, bounds\): "):
        Design(BOX, Uniform(), held_out=1, fixed=Own(), simulations=8).next()


def test_points_may_be_past_a_bound_by_rounding():
    """They are then at it."""

    class Ends(Sampler):
        def ask(self, first, count, bounds):
            return [[p.high * (1 + 1e-14) for p in bounds]] * count

    design = Design(BOX, Ends(), held_out=0, simulations=8)
    assert list(design.next().parameters.values()) == [500.0, -1.0 * (1 + 1e-14)]


def test_a_sampler_that_adapts_is_asked_for_what_is_needed():
    """Each point once, however often it is told of losses; one that does not, ahead."""
    asked = []

    class Counting(Sampler):
        def ask(self, first, count, bounds):
            asked.append((first, count))
            return Uniform().ask(first, count, bounds)

    class Adapting(Counting):
        def tell(self, seen):
            pass

    design = Design(BOX, Adapting(), held_out=1, simulations=None)
    for number in range(3):
        design.next()
        design.tell(losses(number))
    assert asked == [(0, 1), (1, 1)]
    asked.clear()
    taken(Design(BOX, Counting(), held_out=1, simulations=1500))
    assert asked == [(0, 1024), (1024, 476)]


def test_one_thread_takes_while_another_reports():
    """No number is lost or taken twice, and parameters never leave the box."""
    design = Design(BOX, Shifting(), held_out=1, simulations=1500)
    got = []
    taker = threading.Thread(target=lambda: got.extend(taken(design)))
    taker.start()
    while taker.is_alive():
        design.tell(losses(1))
    taker.join()
    assert [number for number, _, _ in got] == list(range(1501))
    for _, _, point in got:
        assert all(
            p.low <= value <= p.high for p, value in zip(BOX, point, strict=True)
        )


def test_what_cannot_be_is_refused():
    """No parameters; a sampler that adapts on several ranks."""
    with pytest.raises(
        UserError, match="Uniform: expected parameters to draw, got none"
    ):
        Design([], Uniform(), held_out=1)
    with pytest.raises(UserError, match=r"Shifting adapts .* got 2\. Set --trainer"):
        Design(BOX, Shifting(), held_out=2, rank=1, world=2)
    assert not Uniform().adapts


def test_a_sampler_may_depend_on_nothing():
    """The smallest sampler of one's own is one method."""

    class Centre(Sampler):
        def ask(self, first, count, bounds):
            return np.tile([(p.low + p.high) / 2 for p in bounds], (count, 1))

    design = Design(BOX, Centre(), held_out=0, simulations=2)
    assert taken(design) == [(n, "training", [300.0, -1.5]) for n in range(2)]


class Plain(Sampler):
    """Uniform as users write it, which also learns."""

    def ask(self, first, count, bounds):
        drawn = np.random.default_rng([first, self.seed]).random((count, len(bounds)))
        low, high = np.array([(p.low, p.high) for p in bounds]).T
        return low + drawn * (high - low)

    def tell(self, seen):
        pass


@pytest.mark.parametrize(
    "sampler",
    [Uniform(), Sobol(), Halton(), LatinHypercube(), Plain()],
    ids=lambda sampler: type(sampler).__name__,
)
def test_whole_parameters_have_whole_values_each_as_often(sampler):
    """The ends no less than the others; held out and in training, now and gone on."""
    count, box = 4096, [*BOX, WHOLE]
    design = Design(box, sampler, held_out=count, simulations=count)
    runs = np.array([list(s.parameters.values()) for s in design])
    for part in (runs[:count], runs[count:]):
        values, times = np.unique(part[:, 2], return_counts=True)
        assert values.tolist() == [1, 2, 3, 4]
        # 99.9 % of independent draws; the quasi-random are closer.
        assert ((times - count / 4) ** 2 / (count / 4)).sum() < 16.3
        assert not np.isin(part[:, :2] % 1, 0).any()
    if not sampler.adapts:
        assert (sampler.ask(0, count, box) == runs[count:]).all()
    again = Design(box, sampler, held_out=count, simulations=count)
    again.load_state_dict(design.state_dict())
    again.skip(range(count))
    assert list(again.next().parameters.values()) == runs[count].tolist()


def test_a_design_of_a_billion_held_out_simulations_takes_no_memory():
    """Points are drawn when they are taken, so that too many can be refused later."""
    design = Design([Parameter("rate", 0.0, 1.0)], Uniform(), held_out=10**9)
    tracemalloc.start()
    try:
        first = [design.next().parameters["rate"] for _ in range(3)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(set(first)) == 3
    assert peak < 1 << 20


def test_who_reports_losses_does_not_wait_for_a_sampler_that_is_asked():
    """The training goes on; the sampler is told before it is asked again."""
    asked, go, told = threading.Event(), threading.Event(), []

    class Slow(Sampler):
        def ask(self, first, count, bounds):
            if first:
                asked.set()
                assert go.wait(30)
            return Uniform(self.seed).ask(first, count, bounds)

        def tell(self, seen):
            told.append(seen)

    design = Design([Parameter("rate", 0.0, 1.0)], Slow(), held_out=0)
    design.next()
    thread = threading.Thread(target=design.next)
    thread.start()
    try:
        assert asked.wait(30)
        design.tell("losses")  # would wait for ever
        assert not told
    finally:
        go.set()
        thread.join()
    design.next()
    assert told == ["losses"]


ROWS = {
    "inflow": [-1.9, -1.8, -1.7, -1.6, -1.5],
    "run": ["a", "b", "c", "d", "e"],
    "initial": [150.0, 250.0, 350.0, 450.0, 500.0],
}


@pytest.fixture(params=["given", "comma", "semicolon", "tab", "Excel's"])
def table(request, tmp_path):
    """Makes a table of `ROWS`, from a file or as it stands."""
    if request.param == "given":
        return lambda **options: Table(ROWS, **options)
    by = {"semicolon": ";", "tab": "\t"}.get(request.param, ", ")
    lines = [
        by.join(ROWS),
        *(by.join(map(str, r)) for r in zip(*ROWS.values(), strict=True)),
    ]
    mark = "\ufeff" if request.param == "Excel's" else ""
    (tmp_path / "runs.csv").write_text(mark + "\n".join(lines), encoding="utf-8")
    return lambda **options: Table(tmp_path / "runs.csv", **options)


def test_a_table_has_each_row_once(table):
    """Columns by their names, rows as they stand or in an order of the seed."""
    rows = [list(row) for row in zip(ROWS["initial"], ROWS["inflow"], strict=True)]
    assert table(shuffle=False).ask(1, 3, BOX).tolist() == rows[1:4]
    shuffled = table(seed=3).ask(0, 5, BOX).tolist()
    assert sorted(shuffled) == sorted(rows) != shuffled
    assert table(seed=3).ask(2, 2, BOX).tolist() == shuffled[2:4]
    fixed, held_out, simulations = shared_points(
        one := table(), None, held_out=None, usual=30, simulations=1000
    )
    assert (fixed, held_out, simulations) == (one, 1, 4)
    design = Design(BOX, one, held_out=held_out, fixed=fixed, simulations=simulations)
    runs = taken(design)
    assert [part for _, part, _ in runs] == ["validation"] + 4 * ["training"]
    assert sorted(values for *_, values in runs) == sorted(rows)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([[0.5]], "Table: points: expected a CSV file, or columns by .* got list"),
        (pd.DataFrame(ROWS), r"got DataFrame. .* Table\(frame.to_dict\('list'\)\)"),
        ({"initial": [200]}, r"'inflow' is one, got the columns initial"),
        (
            {**ROWS, "inflow": [-1.5, None, -1.5, -1, -1]},
            "Table, index 1: inflow: .* got nan",
        ),
        ({**ROWS, "inflow": ["-1,5"] * 5}, "index 0: inflow: .* got -1,5"),
        ({**ROWS, "initial": [100, 500, 501, 1, 1]}, "index 2: .* 100 to 500, got 501"),
        ({**ROWS, "n": [1, 4, 2.5, 1, 1]}, "index 2: n: .* whole .* 1 to 4, got 2.5"),
        ({**ROWS, "n": [1, 4, 0, 1, 1]}, "index 2: n: .* whole .* 1 to 4, got 0"),
    ],
)
def test_rows_that_no_solver_takes_are_named(columns, expected):
    """Column, row and bounds."""
    box = [*BOX, *(WHOLE for _ in range("n" in columns))]
    with pytest.raises(UserError, match=expected):
        Table(columns).ask(0, 1, box)
    with pytest.raises(UserError, match=expected):
        Design(box, Table(columns), held_out=0, simulations=1).next()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("viscosity\n0.5\n0.25\n", [[0.5], [0.25]]),
        ('"viscosity"\n0.5\n\n0.25', [[0.5], [0.25]]),
        ("rate,viscosity\n1,0.5\n2,0.25\n", [[0.5], [0.25]]),
        ("run number\tviscosity\n1\t0.5\n2\t0.25\n", [[0.5], [0.25]]),
        ('"a, b";viscosity\n1;0.5\n2;0.25\n', [[0.5], [0.25]]),
        ("  viscosity   rate\n  0.5  1\n  0.25  2\n", [[0.5], [0.25]]),
        ("rate,viscosity\n1,0.5,\n2,0.25,\n", [[0.5], [0.25]]),
        ("rate (1/s),viscosity [m2/s]\n1,0.5\n2,0.25\n", [[0.5], [0.25]]),
        ("rate [1/s] viscosity [m2/s]\n1 0.5\n2 0.25\n", [[0.5], [0.25]]),
        ("viscosity [mm2/s]\n0.5\n0.25\n", "viscosity: .* m2/s, got mm2/s"),
        ("viscosity\n0,5\n0,25\n", "runs.csv, line 2: viscosity: .* got 0,5"),
        ("rate,viscosity\n1,0,5\n2,0,25\n", "rows are longer than its header"),
    ],
)
def test_a_table_is_separated_as_its_header_is(tmp_path, text, expected):
    """No letter separates; one column needs no separator; rows are as long as it."""
    (tmp_path / "runs.csv").write_text(text)
    box = [Parameter("viscosity", 0.0, 1.0, "m2/s")]
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            Table(tmp_path / "runs.csv").ask(0, 2, box)
    else:
        table = Table(tmp_path / "runs.csv", shuffle=False)
        assert table.ask(0, 2, box).tolist() == expected


def test_a_table_that_is_none_is_refused(tmp_path):
    """No file, no rows, columns of two lengths, more rows asked for than there are."""
    (tmp_path / "empty.csv").write_text("initial,inflow\n")
    with pytest.raises(UserError, match="expected one row or more"):
        Table(tmp_path / "empty.csv")
    with pytest.raises(UserError, match=r"No file .*none.csv"):
        Table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="columns of one length"):
        Table({"initial": [1, 2], "inflow": [1]})
    with pytest.raises(UserError, match="expected 6 rows, got 5"):
        Table(ROWS).ask(5, 1, BOX)


def test_held_out_points_are_given_or_the_first_of_the_sampler(caplog):
    """Those to train on are others; one that repeats its points is said to."""
    sampler = Sobol(seed=2)
    points = sampler.ask(0, 5, BOX).tolist()
    share = {"held_out": 2, "usual": 10, "simulations": 3}
    fixed, *_ = shared_points(sampler, "same", **share)
    runs = taken(Design(BOX, sampler, held_out=2, fixed=fixed, simulations=3))
    assert [values for *_, values in runs] == points
    other = Table({"initial": [200, 300], "inflow": [-1.5, -1.5]}, shuffle=False)
    fixed, *_ = shared_points(sampler, other, **share)
    runs = taken(Design(BOX, sampler, held_out=2, fixed=fixed, simulations=3))
    assert [values for *_, values in runs] == [[200, -1.5], [300, -1.5], *points[:3]]
    assert not caplog.records
    taken(Design(BOX, sampler, held_out=1, fixed=Sobol(seed=2), simulations=3))
    assert caplog.messages == [
        "Simulation 1 has the parameters of a held-out one: errors will be too small. "
        "Lower --data.simulations, or hold out other points."
    ]
    # Fields that differ tell simulations of the same parameters apart.
    taken(
        Design(BOX, sampler, held_out=1, fixed=Sobol(seed=2), simulations=3, given=True)
    )
    assert len(caplog.messages) == 1


def test_shares_that_make_no_study_are_refused():
    """Too few points, and held-out ones that would change."""
    share = {"usual": 10, "simulations": 3}
    with pytest.raises(UserError, match=r"more points than the 5 .* got 5"):
        shared_points(Table(ROWS), None, held_out=5, **share)
    with pytest.raises(UserError, match=r"held_out: expected at most the 5 .* got 6"):
        shared_points(Uniform(), Table(ROWS), held_out=6, **share)
    with pytest.raises(UserError, match="Shifting adapts to losses"):
        shared_points(Shifting(), "same", held_out=1, **share)
