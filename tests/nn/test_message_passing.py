"""The message-passing solver: symmetries that it must have, and that it learns."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from torch.nn import functional as F

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Direct, Window
from surrogate_flow.nn import MessagePassingSolver
from surrogate_flow.nn.graph import graph_of
from surrogate_flow.nn.message_passing import Exchange
from surrogate_flow.solvers import Heat2D, HeatPlate
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.surrogate import Surrogate


@dataclass(frozen=True)
class Bundle(Window):
    """Some steps to the next ones."""

    inputs: int = 2
    outputs: int = 3
    stride: int = 1


def line(cells: int = 20, channels: int = 1, named: bool = True) -> FieldSpec:
    """A field on a line."""
    x = tuple(0.1 * k for k in range(cells))
    return FieldSpec(
        parameters=(Parameter("a", -1.0, 1.0), Parameter("b", -1.0, 1.0)),
        variables=tuple(Variable(f"u{k}") for k in range(channels)),
        dims=("x",),
        shape=(cells,),
        times=tuple(range(1, 11)),
        coordinates=(Coordinate("x", "x", x),) if named else (),
    )


PLATE = HeatPlate((16, 3), steps=5).spec
SPECS = {
    "line": line(),
    "two fields": line(channels=2),
    "no coordinates": line(named=False),
    "rectangle": Heat2D(cells=(7, 5), steps=5).spec,
    "mesh": PLATE,
    "points": replace(PLATE, cells=None),
    "box": replace(
        line(), dims=("x", "y", "z"), shape=(3, 4, 5), coordinates=(), cells=None
    ),
}
small = partial(MessagePassingSolver, width=16, layers=2)


def inputs(spec: FieldSpec, window: Window, batch: int = 3) -> tuple:
    """Return random normalised inputs."""
    torch.manual_seed(1)
    return (
        torch.randn(batch, len(spec.parameters)),
        torch.randn(batch),
        torch.randn(batch, window.inputs, *spec.step_shape),
    )


@pytest.mark.parametrize("window", [Direct(), Bundle(), Bundle(1, 1)], ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_shapes_and_gradients(spec: FieldSpec, window: Window) -> None:
    """The promised shape, and a gradient for every parameter."""
    network = small(spec, window)
    out = network(*inputs(spec, window))
    assert out.shape == (3, window.outputs, *spec.step_shape)
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("window", [Direct(), Bundle()], ids=str)
def test_a_sample_does_not_see_the_others_of_its_batch(window: Window) -> None:
    """Each sample alone gives what it gives in a batch."""
    network, given = small(PLATE, window), inputs(PLATE, window)
    out = network(*given)
    for k in range(3):
        alone = network(*(x[k : k + 1] for x in given))
        torch.testing.assert_close(alone, out[k : k + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [Direct(), Bundle()], ids=str)
def test_another_order_of_the_nodes_is_the_same_mesh(window: Window) -> None:
    """Numbering the nodes and cells of a mesh anew permutes the prediction alike."""
    order = np.random.default_rng(0).permutation(PLATE.shape[0])
    new = np.argsort(order)
    renumbered = replace(
        PLATE,
        coordinates=tuple(
            replace(c, values=tuple(np.array(c.values)[order]))
            for c in PLATE.coordinates
        ),
        cells=tuple(tuple(new[list(cell)]) for cell in reversed(PLATE.cells)),
    )
    network, other = small(PLATE, window), small(renumbered, window)
    other.load_state_dict(network.state_dict())
    parameters, step, history = inputs(PLATE, window)
    expected = network(parameters, step, history)[..., order]
    got = other(parameters, step, history[..., order])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=-1).min() > 1e-3


@pytest.mark.parametrize("spec", [line(), SPECS["rectangle"]], ids=["1d", "2d"])
def test_periodic_networks_commute_with_translations(spec: FieldSpec) -> None:
    """What enters turned around the ring leaves turned around the ring."""
    spec = replace(spec, shape=tuple(n + 4 for n in spec.shape), coordinates=())
    network = small(spec, Bundle(), periodic=True, positions=False)
    parameters, step, history = inputs(spec, Bundle())
    out = network(parameters, step, history)
    for dim in range(len(spec.dims)):
        rolled = network(parameters, step, history.roll(3, -1 - dim))
        torch.testing.assert_close(rolled, out.roll(3, -1 - dim), rtol=1e-4, atol=1e-5)
    # What is no ring, or is told where it is, knows its places.
    for options in ({"periodic": False, "positions": False}, {"periodic": True}):
        network = small(spec, Bundle(), **options)
        rolled = network(parameters, step, history.roll(3, -1))
        different = rolled - network(parameters, step, history).roll(3, -1)
        assert different.abs().max() > 1e-3


def test_depends_on_everything_that_it_is_given() -> None:
    """Parameters, step and each step of the history change every node."""
    network, given = small(line(8), Bundle(), layers=4), inputs(line(8), Bundle(), 1)
    out = network(*given)
    changes = [
        (0, (0, 0)),
        (0, (0, 1)),
        (1, (0,)),
        (2, (0, 0, 0, 3)),
        (2, (0, 1, 0, 3)),
    ]
    for which, place in changes:
        changed = [x.clone() for x in given]
        changed[which][place] += 1
        assert (network(*changed) - out).abs().amin() > 0, (which, place)


@pytest.mark.parametrize("window", [Direct(), Bundle()], ids=str)
def test_a_layer_is_what_the_paper_writes(window: Window) -> None:
    """Edge by edge, with every input written out, the same features come out."""
    network = small(PLATE, window)
    layer, offsets = network.layers[0], network.offsets
    seen, context = torch.randn(64, 2, window.inputs), torch.randn(2, 7)
    f = torch.randn(64, 2, 16)
    heard = [[] for _ in range(64)]
    for (j, i), offset in zip(network.edges.T.tolist(), offsets, strict=True):
        about = [f[i], f[j], seen[i] - seen[j], offset.expand(2, -1), context]
        inner = F.silu(layer.message_in(torch.cat(about, dim=1)))
        heard[i].append(F.silu(layer.message_out(inner)))
    mean = torch.stack([torch.stack(messages).mean(0) for messages in heard])
    about = torch.cat([f, mean, context.expand(64, -1, -1)], dim=-1)
    new = f + F.silu(layer.update_out(F.silu(layer.update_in(about))))
    expected = F.instance_norm(new.permute(1, 2, 0)).permute(2, 0, 1)
    got = layer(f, seen, context, offsets, network.edges)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_node_without_neighbours_receives_zeros() -> None:
    """A mesh may have nodes in no cell: the mean of no message is zero."""
    layer, features = Exchange(8, 0, 1, 1), torch.randn(3, 2, 8)
    context = torch.zeros(2, 1)
    given = torch.cat([features, torch.zeros(3, 2, 8), context.expand(3, 2, 1)], dim=-1)
    new = features + F.silu(layer.update_out(F.silu(layer.update_in(given))))
    expected = F.instance_norm(new.permute(1, 2, 0)).permute(2, 0, 1)
    none = torch.zeros(2, 0, dtype=torch.int64)
    got = layer(features, torch.zeros(3, 2, 0), context, torch.zeros(0, 1), none)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_of_zeros_predicts_persistence() -> None:
    """Bundled steps are differences to the last known one, in proportion to time."""
    spec = line(channels=2)
    network, given = small(spec, Bundle()), inputs(spec, Bundle())
    last = network.decoder[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    expected = given[2][:, -1:].expand(-1, 3, -1, -1)
    torch.testing.assert_close(network(*given), expected)
    last.bias.data = torch.tensor([1.0, 10.0])
    ahead = torch.tensor([[1 / 3, 10 / 3], [2 / 3, 20 / 3], [1, 10]])[..., None]
    torch.testing.assert_close(network(*given), expected + ahead)


@pytest.mark.parametrize("outputs", [1, 2, 7, 20, 25, 50, 100, 128])
def test_any_number_of_steps_is_bundled(outputs: int) -> None:
    """The decoder fits, and its kernels see every feature."""
    network = MessagePassingSolver(line(8), Bundle(1, outputs), layers=1)
    decoder, features = network.decoder, torch.randn(2, 1, 128, requires_grad=True)
    out = decoder(features)
    assert out.shape == (2, 1, outputs)
    out.sum().backward()
    assert features.grad.abs().amin() > 0


def degrees(spec: FieldSpec, **options: object) -> list[int]:
    """How many nodes are heard by each node."""
    return np.bincount(graph_of(spec, **options).edges[1]).tolist()


def test_who_is_heard_on_a_grid() -> None:
    """Three on each side; fewer at the ends, or around the corner; 12 in the plane."""
    assert degrees(line(9)) == [3, 4, 5, 6, 6, 6, 5, 4, 3]
    assert degrees(line(9), periodic=True) == [6] * 9
    assert degrees(line(9), neighbours=1) == [1, 2, 2, 2, 2, 2, 2, 2, 1]
    flat = Heat2D(cells=(7, 9)).spec
    assert set(degrees(flat, periodic=True)) == {12}
    assert set(degrees(flat, neighbours=1, periodic=True)) == {4}
    assert set(degrees(SPECS["points"], neighbours=1)) >= {4, 5}


def test_who_is_heard_on_a_mesh() -> None:
    """The edges are those of the triangles, each in both directions, once."""
    edges = graph_of(PLATE).edges
    expected = {(a, b) for c in PLATE.cells for a in c for b in c if a != b}
    assert {tuple(e) for e in edges.T.tolist()} == expected
    assert edges.shape[1] == len(expected)


def test_offsets_are_wrapped_and_of_order_one() -> None:
    """Around the corner is as near as next door, and nothing is far."""
    graph = graph_of(line(9), neighbours=1, periodic=True)
    assert np.abs(graph.offsets) == pytest.approx(1)
    (sender, receiver), offsets = graph.edges, graph.offsets[:, 0]
    assert offsets[(sender == 8) & (receiver == 0)] == pytest.approx(1)
    assert offsets[(sender == 0) & (receiver == 8)] == pytest.approx(-1)
    plate = graph_of(PLATE)
    assert np.abs(plate.places).max() == pytest.approx(1)
    points = np.stack([c.values for c in PLATE.coordinates], axis=-1)
    offsets = points[plate.edges[1]] - points[plate.edges[0]]
    unit = np.sqrt(np.mean(np.sum(offsets**2, axis=1)))
    np.testing.assert_allclose(plate.offsets, offsets / unit, atol=1e-12)


@pytest.mark.parametrize("window", [Direct(), Bundle()], ids=str)
def test_overfits_one_batch(window: Window) -> None:
    """Four samples of a plate are learnt by heart: the loss falls by a factor of 100."""
    solver = HeatPlate((8, 3), steps=5)
    spec = solver.spec
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(4):
        values = rng.uniform(spec.low, spec.high)
        names = [p.name for p in spec.parameters]
        steps = list(solver.solve(dict(zip(names, values, strict=True))))
        runs.append((values, [s.temperature.values for s in steps]))
    fields = torch.tensor(np.array([f for _, f in runs]), dtype=torch.float32)
    surrogate = Surrogate(spec, partial(small, width=32), window=window)
    surrogate.normalisation.freeze(
        np.array([fields.mean().item()]), np.array([fields.std().item()])
    )
    batch = Batch(
        torch.tensor(np.array([v for v, _ in runs]), dtype=torch.float32),
        torch.full((4,), float(window.inputs)),
        fields[:, : window.inputs],
        fields[:, window.inputs : window.span],
        torch.arange(4),
    )
    surrogate.log = lambda *args, **kwargs: None
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=0.005)
    losses = []
    for step in range(150):
        loss = surrogate.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-20:]) < losses[0] / 100


def test_checkpoint_round_trip(tmp_path: object) -> None:
    """A checkpoint opens as data, holds no edges, and predicts the same."""
    surrogate = Surrogate(PLATE, small)
    trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer.strategy.connect(surrogate)
    surrogate.normalisation.freeze(np.array([300.0]), np.array([80.0]))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    state = torch.load(tmp_path / "some.ckpt", weights_only=True)["state_dict"]
    assert not any("edges" in key for key in state)
    temperatures = {p.name: 300.0 for p in PLATE.parameters}
    loaded = Surrogate.load(tmp_path / "some.ckpt")
    expected, got = surrogate.predict(temperatures), loaded.predict(temperatures)
    np.testing.assert_array_equal(got.temperature, expected.temperature)
    assert got.temperature.dims == ("time", "node")


POINT = replace(line(), dims=(), shape=(), coordinates=())
LARGE = replace(line(), dims=("x", "y"), shape=(1000, 1000), coordinates=())


@pytest.mark.parametrize(
    ("spec", "window", "options", "message"),
    [
        (POINT, Direct(), {}, r"grid or a mesh, between .* got the dims \(\)"),
        (replace(line(1)), Direct(), {}, r"sizes \(1,\)"),
        (line(), Direct(), {"positions": False}, "positions=True for a direct window"),
        (line(), Direct(), {"neighbours": 0}, "neighbours: .* got 0"),
        (line(), Direct(), {"layers": 0}, "layers=0"),
        (line(), Bundle(1, 9), {"width": 8}, "at least the 9 steps.*width=8"),
        (line(6), Direct(), {"periodic": True}, r"more than 6 cells .* got \(6,\)"),
        (PLATE, Direct(), {"periodic": True}, "periodic: expected a grid, got a mesh"),
        (replace(PLATE, coordinates=()), Direct(), {}, "coordinates along 'node'"),
        (LARGE, Direct(), {}, r"got 1,000,000: .* 126 GiB"),
    ],
)
def test_what_makes_no_network_is_refused(spec, window, options, message) -> None:
    """Each mistake is named, with the way out."""
    with pytest.raises(ValueError, match=message):
        MessagePassingSolver(spec, window, **options)


def test_says_that_it_gets_no_history(caplog):
    """A direct window is possible, and not the published method."""
    MessagePassingSolver(line(), Bundle(1, 1), width=8, layers=1)
    assert not caplog.records
    MessagePassingSolver(line(), Direct(), width=8, layers=1)
    assert "--model.window Autoregressive" in caplog.text
