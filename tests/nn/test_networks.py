"""Networks: one contract for all, on fields of any dims, and refusals that name another network."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch.nn.functional import gelu

from surrogate_flow.fields.names import RecipeError, class_at
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Direct, Window
from surrogate_flow.nn import (
    FNO,
    Channels,
    DeepONet,
    FullyConnected,
    MessagePassingSolver,
    OnGrid,
    UNet,
)
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing import check_network

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"


@dataclass(frozen=True)
class History(Window):
    """Some steps, and the ones that follow them."""

    seen: int = 2
    predicted: int = 2

    @property
    def inputs(self):
        return self.seen

    @property
    def outputs(self):
        return self.predicted

    @property
    def stride(self):
        return 1


def make_spec(*shape, cells=None):
    """A spec of two variables and two parameters, on a grid of so many points."""
    return FieldSpec(
        parameters=(Parameter("a", 0, 1), Parameter("b", 0, 1)),
        variables=(Variable("u"), Variable("v")),
        dims=tuple("xyzw"[: len(shape)]),
        shape=shape,
        times=tuple(range(1, 21)),
        cells=cells,
    )


NO_GRID, LINE, PLANE, SPACE = (make_spec(*s) for s in ((), (11,), (10, 7), (5, 4, 6)))
MESH = make_spec(4, cells=((0, 1, 2), (1, 2, 3)))
WINDOWS = [Direct(), History()]

SMALL = {
    "fully connected": partial(FullyConnected, widths=(32,)),
    "deeponet": partial(DeepONet, branch=(32,), trunk=(32, 16)),
    "fno": partial(FNO, modes=6, width=12, layers=2),
    "fno padded": partial(FNO, modes=6, width=12, layers=2, padding=0.2),
    "unet": partial(UNet, widths=(8, 12)),
    "unet circular": partial(UNet, widths=(8, 12), padding="circular"),
    "unet replicate": partial(UNet, widths=(8, 12), padding="replicate"),
}
ON_GRIDS = {name: make for name, make in SMALL.items() if name[:2] in ("fn", "un")}


def inputs_of(spec, window, batch=2):
    """Normalised inputs of a batch."""
    return (
        torch.rand(batch, len(spec.parameters)) * 2 - 1,
        torch.rand(batch) * 2 - 1,
        torch.randn(batch, window.inputs, *spec.step_shape),
    )


@pytest.mark.parametrize("window", WINDOWS, ids=["direct", "history"])
@pytest.mark.parametrize("spec", [LINE, PLANE, SPACE], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_networks_obey_the_laws(make, spec, window):
    """Every network, on fields of one to three dims, with and without a history."""
    check_network(make, spec, window)


@pytest.mark.parametrize("window", WINDOWS, ids=["direct", "history"])
@pytest.mark.parametrize(
    "make",
    [
        *(SMALL[name] for name in ("fully connected", "deeponet", "fno", "unet")),
        partial(MessagePassingSolver, width=16, layers=2, neighbours=1),
    ],
    ids=["fully connected", "deeponet", "fno", "unet", "message passing"],
)
def test_networks_take_input_fields(make, window):
    """Without any parameter, and as nodes, channels or numbers of a sample."""
    inputs = (Variable("p"), Variable("q"))
    spec = replace(make_spec(6, 5), parameters=(), inputs=inputs)
    assert (
        "a sample depends on its parameters, its step and its history"
        in check_network(make, spec, window)
    )


@pytest.mark.parametrize("window", WINDOWS, ids=["direct", "history"])
@pytest.mark.parametrize("spec", [NO_GRID, MESH], ids=["no dims", "mesh"])
def test_the_fully_connected_serves_all_else(spec, window):
    """Fields without dims, and on a mesh."""
    check_network(
        partial(FullyConnected, widths=(32,), activation="torch.nn.Tanh"), spec, window
    )


@pytest.mark.parametrize("window", WINDOWS, ids=["direct", "history"])
def test_any_module_on_a_grid_obeys_the_laws(window):
    """A module of others, named by its import path, with its arguments."""
    arguments = {
        "hidden_channels": 8,
        "lifting_channels": 16,
        "projection_channels": 16,
        "n_layers": 3,
        "uno_out_channels": [8, 8, 8],
        "uno_n_modes": [[4, 4]] * 3,
        "uno_scalings": [[1, 1], [0.5, 0.5], [2, 2]],
        "channel_mlp_skip": "linear",
        "positional_embedding": None,
    }
    uno = partial(OnGrid, module="neuralop.models.UNO", arguments=arguments)
    check_network(uno, make_spec(8, 6), window)


@pytest.mark.parametrize("network", [FNO, UNet])
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (NO_GRID, "expected fields on a grid, got u, v, which have no dims"),
        (MESH, "got an unstructured mesh of 4 nodes and 2 cells"),
    ],
    ids=["no dims", "mesh"],
)
def test_fields_on_no_grid_are_refused(network, spec, message):
    """The error names the network, what it got, and a network that fits."""
    with pytest.raises(ValueError, match=f"{network.__name__}: .*{message}") as caught:
        network(spec, Direct())
    assert "FullyConnected" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(FNO, modes=(4, 4, 4)), r"one for each of the 2 dims.*\(4, 4, 4\)"),
        (partial(FNO, modes=0), "modes as one number >= 1.*got 0"),
        (partial(FNO, width=0), "width >= 1 and layers >= 1, got 0 and 4"),
        (partial(FNO, padding=1.5), r"in \[0, 1\), got 1.5"),
        (partial(FNO, positions=False), "positions=False with Direct"),
        (partial(UNet, widths=()), r"expected positive widths, got \[\]"),
        (partial(UNet, padding="zero"), "padding among .*got 'zero'"),
        (partial(OnGrid, module="torch.nn.Conv"), "Did you mean 'Conv.d'"),
        (
            partial(OnGrid, module="torch.nn.functional.relu"),
            "functional.relu': expected a subclass",
        ),
        (partial(OnGrid, module="math.pi"), "expected a subclass of torch.nn.Module"),
        (
            partial(OnGrid, module="neuralop.models.UNO", arguments={"n_layer": 3}),
            "got \\['n_layer'\\].*Did you mean 'n_layers'",
        ),
        (
            partial(OnGrid, module="torch.nn.Conv2d"),
            "missing a required argument: 'kernel_size'",
        ),
        (
            partial(OnGrid, module="torch.nn.Conv2d", arguments={"in_channels": 3}),
            "multiple values for keyword argument 'in_channels'",
        ),
        (
            partial(OnGrid, module="torch.nn.ReLU"),
            "unexpected keyword argument 'in_channels'",
        ),
        (partial(FullyConnected, activation="torch.nn.GELUs"), "Did you mean 'GELU'"),
        (
            partial(FullyConnected, activation="math.pi"),
            "expected a subclass of torch.nn.Module",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    """Before anything runs, with what was expected and what was given."""
    with pytest.raises(ValueError, match=message):
        make(PLANE, Direct())


def test_a_unet_has_no_four_dims():
    """Torch has convolutions in three dims at most; Fourier layers go on."""
    spec = make_spec(3, 4, 2, 3)
    with pytest.raises(ValueError, match=r"one, two or three dims.*FNO"):
        UNet(spec, Direct())
    network = FNO(spec, Direct(), width=4, layers=1)
    assert network(*inputs_of(spec, Direct())).shape == (2, 1, *spec.step_shape)


def test_a_module_that_changes_the_grid_is_refused():
    """The error says the shape that was expected, and the usual remedy."""
    network = OnGrid(
        PLANE, Direct(), module="torch.nn.Conv2d", arguments={"kernel_size": 3}
    )
    with pytest.raises(ValueError, match=r"\(2, 2, 10, 7\).*got \(2, 2, 8, 5\)"):
        network(*inputs_of(PLANE, Direct()))


@pytest.mark.parametrize("shape", [(12,), (9,), (8, 6), (7, 6), (7, 9), (5, 4, 7)])
def test_an_fno_commutes_with_translation(shape):
    """Without positions, moved fields give moved predictions, on even and odd grids."""
    spec, window = make_spec(*shape), History()
    torch.manual_seed(0)
    network = FNO(spec, window, modes=4, width=8, layers=2, positions=False)
    parameters, step, history = inputs_of(spec, window)
    out = network(parameters, step, history)
    for axis in range(-len(shape), 0):
        moved = network(parameters, step, history.roll(1, axis))
        torch.testing.assert_close(moved, out.roll(1, axis), rtol=1e-4, atol=1e-4)


def test_an_fno_without_channel_mlps_is_its_equation():
    """v <- σ(W v + F⁻¹(R F(v))), no σ behind the last; neuraloperator's σ is GELU twice."""
    spec = make_spec(12)
    network = FNO(spec, Direct(), modes=4, width=8, layers=3, channel_mlp=False)
    blocks, given = network.module.fno_blocks, inputs_of(spec, Direct())
    v = network.module.lifting(network.channels(*given))
    for layer, (conv, skip) in enumerate(
        zip(blocks.convs, blocks.fno_skips, strict=True)
    ):
        v = conv(v) + skip(v)
        v = v if layer == 2 else gelu(gelu(v))
    expected = network.module.projection(v).reshape(2, *network.shape)
    torch.testing.assert_close(network(*given), expected)
    assert not any("channel_mlp" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("shape", [(16,), (8, 12), (8, 4, 8)])
def test_a_circular_unet_commutes_with_translation(shape):
    """By the size of a cell of its coarsest level."""
    spec, window = make_spec(*shape), History()
    torch.manual_seed(0)
    network = UNet(spec, window, widths=(4, 6, 8), padding="circular", positions=False)
    parameters, step, history = inputs_of(spec, window)
    out = network(parameters, step, history)
    for axis in range(-len(shape), 0):
        moved = network(parameters, step, history.roll(4, axis))
        torch.testing.assert_close(moved, out.roll(4, axis), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        network(parameters, step, history.roll(1, -1)), out.roll(1, -1)
    )


@pytest.mark.parametrize("modes", [(4, 4), (5, 3), (8, 6)])
def test_fourier_layers_are_those_of_neuralop(modes):
    """On even grids, where both are right, the same weights give the same fields."""
    from neuralop.layers.spectral_convolution import SpectralConv

    from surrogate_flow.nn.spectral import PrunedSpectralConv

    theirs = SpectralConv(3, 2, modes, implementation="factorized")
    ours = PrunedSpectralConv(3, 2, modes, sizes=(8, 6), implementation="factorized")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):  # sums of waves need all digits
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.double()(x.double()).float(), theirs(x))


@pytest.mark.parametrize(
    ("shape", "modes"),
    [
        ((9,), (9,)),
        ((8,), (8,)),
        ((7, 9), (4, 5)),
        ((5, 4, 6), (3, 1, 6)),
        ((3, 40), (2, 40)),
    ],
)
@pytest.mark.parametrize("exporting", [False, True])
def test_fourier_layers_are_those_of_an_fft(shape, modes, exporting, monkeypatch):
    """Fields and gradients, on even and odd grids, up to all modes; exported ones too."""
    from surrogate_flow.nn.spectral import PrunedSpectralConv

    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    layer = PrunedSpectralConv(3, 2, modes, sizes=shape)
    x = torch.randn(2, 3, *shape, requires_grad=True)
    dims = tuple(range(-len(shape), 0))
    spectrum = torch.fft.rfftn(x.double(), dim=dims)
    out = spectrum.new_zeros(2, 2, *spectrum.shape[2:])
    weight = layer.weight.to_tensor()
    for index in np.ndindex(*weight.shape[2:]):
        # Of a shifted spectrum, as many modes below zero as above, or one more.
        wave = [k - m // 2 for k, m in zip(index[:-1], modes[:-1], strict=True)]
        at = (slice(None), slice(None), *wave, index[-1])
        matrix = weight[(slice(None), slice(None), *index)].to(spectrum.dtype)
        out[at] = spectrum[at] @ matrix
    expected = torch.fft.irfftn(out, s=shape, dim=dims).float() + layer.bias
    found = layer(x)
    torch.testing.assert_close(found, expected)
    weights = (x, layer.weight.tensor)
    gradients = [
        torch.autograd.grad(y.square().sum(), weights) for y in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert layer.state_dict().keys() == {"weight.tensor", "bias"}
    assert layer.to("meta")(x.to("meta")).shape == expected.shape


@pytest.mark.parametrize("bias", [True, False])
def test_products_at_each_point_are_a_convolution_of_one(bias):
    """Values and gradients; in an FNO all are, under the names of neuralop's weights."""
    from surrogate_flow.nn.spectral import Pointwise, make_pointwise

    peer = torch.nn.Conv1d(3, 5, 1, bias=bias)
    ours = torch.nn.Sequential(torch.nn.Conv1d(3, 5, 1, bias=bias))
    ours[0].load_state_dict(peer.state_dict())
    make_pointwise(ours)
    assert type(ours[0]) is Pointwise
    x = torch.randn(2, 3, 7, requires_grad=True)
    found = []
    for layer in (peer, ours):
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    points = [
        m for m in FNO(make_spec(8, 6), Direct()).modules() if hasattr(m, "stride")
    ]
    assert {type(m) for m in points} == {Pointwise}


def test_many_modes_take_the_time_of_an_fft():
    """Products of matrices are those of the channels of each mode alone."""
    from torch.utils.flop_counter import FlopCounterMode

    from surrogate_flow.nn.spectral import PrunedSpectralConv

    layer = PrunedSpectralConv(3, 2, (8, 63), sizes=(32, 64))
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(4, 3, 32, 64))
    assert counter.get_total_flops() == 2 * 4 * 3 * 2 * 8 * 32


@pytest.mark.parametrize("shape", [(1,), (2,), (10, 7), (3, 1), (7, 5, 3), (33, 2)])
@pytest.mark.parametrize("make", [FNO, UNet])
def test_grids_of_any_size_fit(make, shape):
    """The defaults of a recipe, made for large grids, serve small and odd ones."""
    spec = make_spec(*shape)
    out = make(spec, Direct())(*inputs_of(spec, Direct()))
    assert out.shape == (2, 1, 2, *shape)
    assert out.isfinite().all()


@pytest.mark.parametrize("make", ON_GRIDS.values(), ids=ON_GRIDS)
def test_networks_run_in_mixed_precision(make):
    """As with --trainer.precision bf16-mixed."""
    with torch.autocast("cpu", torch.bfloat16):
        network = make(PLANE, Direct())
        out = network(*inputs_of(PLANE, Direct()))
        out.float().square().sum().backward()
    assert out.isfinite().all()


def test_positions_are_those_of_the_spec():
    """From -1 to 1 along each dim, however the points are spaced, and nowhere else."""
    spec = FieldSpec(
        parameters=(Parameter("a", 0, 1),),
        variables=(Variable("u"),),
        dims=("x", "y"),
        shape=(3, 2),
        times=(1.0,),
        coordinates=(Coordinate("x", "x", (10.0, 11.0, 14.0)),),
    )
    channels = Channels(spec, Direct(), network="mine")
    stacked = channels(
        torch.tensor([[7.0]]), torch.tensor([8.0]), torch.zeros(1, 0, 1, 3, 2)
    )
    assert stacked.shape == (1, channels.count, 3, 2)
    a, step, x, y = stacked[0]
    assert a.unique() == 7
    assert step.unique() == 8
    assert x.tolist() == [[-1, -1], [-0.5, -0.5], [1, 1]]
    assert y.tolist() == [[-1, 1]] * 3
    assert not channels.state_dict()


def test_history_comes_first_and_oldest_first():
    """Channels: the variables of each step of the history, in order."""
    history = torch.arange(4.0).reshape(1, 2, 2, 1).expand(1, 2, 2, 11)
    channels = Channels(LINE, History(), network="mine", positions=False)
    stacked = channels(torch.tensor([[4.0, 5.0]]), torch.tensor([6.0]), history)
    assert stacked[0, :, 0].tolist() == list(range(7))


LIGHT = """
import json, sys, surrogate_flow.nn
heavy = [m for m in ("neuralop", "wandb") if m in sys.modules]
import warnings, threading
from surrogate_flow.nn import FNO
from surrogate_flow.solvers import Heat2D
from surrogate_flow.fields import Direct
before = list(warnings.filters), threading.active_count()
FNO(Heat2D(cells=(4, 4)).spec, Direct())
after = list(warnings.filters), threading.active_count()
print(json.dumps([heavy, before == after]))
"""


def test_neuralop_is_imported_late_and_leaves_no_trace(tmp_path):
    """Not with the package, and with no file, thread or change of warnings when it is."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert json.loads(done.stdout) == [[], True]
    assert not list(tmp_path.iterdir())


def test_a_missing_neuralop_names_the_extra(monkeypatch):
    """The error says what to install, and which network needs nothing more."""
    monkeypatch.delitem(sys.modules, "surrogate_flow.nn.spectral", raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == "neuralop"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "neuralop", None)
    with pytest.raises(ImportError, match=r"pip install 'neuraloperator>=2.0'"):
        FNO(LINE, Direct())


def blocks(language):
    """The code blocks of the page on networks."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_on_networks_is_right(tmp_path):
    """Its Python runs and obeys the laws; its recipes are well spelt, and build."""
    names = {}
    for code in blocks("python"):
        exec(code, names)
    found = [yaml.safe_load(text) for text in blocks("yaml")]
    recipes = [recipe for recipe in found if "network" in recipe]
    assert names["Smoothed"]
    assert recipes
    spec = Heat2D(cells=(12, 9)).spec
    network = names["Smoothed"](spec, Direct())
    assert network(*inputs_of(spec, Direct())).shape == (2, 1, *spec.step_shape)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Surrogate, skip={"spec"}, fail_untyped=False)
    for recipe in recipes:
        if recipe["network"]["class_path"].startswith("surrogate_flow"):
            parser.parse_object(recipe)
            make = class_at(recipe["network"]["class_path"])
            check_network(
                partial(make, **recipe["network"]["init_args"]), spec, Direct()
            )


def test_a_checkpoint_names_a_module_and_nothing_else():
    """A function is never called, whatever a checkpoint says."""
    with pytest.raises(ValueError, match="expected a subclass of"):
        OnGrid(PLANE, Direct(), module="os.system", arguments={"command": "false"})
    with pytest.raises(RecipeError, match="cannot import"):
        OnGrid(PLANE, Direct(), module="no.such.Module")
