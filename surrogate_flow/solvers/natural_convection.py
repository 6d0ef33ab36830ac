"""Air that rises along hot components and sinks along a cold wall."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.linalg import splu

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["NaturalConvection"]

#: Where the two components are, as shares of the height.
_LOWER, _UPPER = (0.15, 0.4), (0.6, 0.85)
_GRADING = 1.6  # elements at a wall are a fifth as wide as in the middle
#: Viscosity and conductivity of the flows on the way, over those of air.
_RAMP = (30.0, 6.0, 1.5, 1.0)
_RISE = 20.0  # K; a temperature of order one


class NaturalConvection(GridSolver):
    """u·∇u = -∇p/ρ + ν Δu - g (T - Tₐ)/T_f,  ∇·u = 0,  u·∇T = α ΔT: steady, in 2D.

    The air in a sealed, square enclosure for electronics cools two components on its
    left wall, at 15 to 40 % and at 60 to 85 % of the height: -k ∂T/∂x = q. The right
    wall gives heat to the air outside, k ∂T/∂x = -h (T - Tₐ); all other walls are
    insulated, and u = 0 on each. T_f is 15 K above the ambient temperature Tₐ, and
    density, ν, k and α are those of air at T_f and 1 atm. g has the size 9.81 m/s².

    The parameters of a simulation are the heat fluxes ``lower`` and ``upper`` (q, in
    W/m²), the heat ``transfer`` coefficient (h, in W/(m² K)), the ``ambient``
    temperature (Tₐ, in °C) and the ``tilt`` of the enclosure, in degrees, counter-
    clockwise: at 90 the components would be below. The fields are the ``rise`` of the
    temperature above Tₐ and the velocities ``u`` and ``v`` along x and y, all three
    turned with the enclosure. There is a single time, 1.

    Parameters
    ----------
    cells : int
        Elements along each side; default 24. Those at walls are narrower.
    points : int
        Points of the fields along each side, which lie as the elements do; default 33.
    size : float
        Inner side of the enclosure, in m; default 0.1.
    flux : tuple of float
        Bounds of both fluxes, in W/m²; default (20.0, 100.0).
    transfer : tuple of float
        Bounds of h, in W/(m² K); default (5.0, 25.0).
    ambient : tuple of float
        Bounds of Tₐ, in °C; default (-10.0, 40.0).
    tilt : tuple of float
        Bounds of the angle, in degrees; default (-10.0, 10.0).

    Raises
    ------
    ArgumentError
        If an argument is not positive, or bounds are not ascending.
    FloatingPointError
        If Newton's method fails, as it does where elements are much too wide: with the
        default bounds, 12 a side.

    Notes
    -----
    Finite elements: quadratic velocities and temperatures, linear pressures (Taylor and
    Hood) on rectangles, third order in u and T. Newton's method solves all four fields
    together, with sparse LU. It begins on half as many elements with a viscous fluid
    that conducts well, becomes air in four stages, and goes on from there on all
    elements, until a step changes the solution by less than 0.1 %; since a step squares
    what is wrong, 1e-5 of it is left.

    With the default bounds the Rayleigh number of the temperatures that arise, g (T -
    Tₐ) L³ / (T_f ν α), is 0.5 to 4 million. Boundary layers are a twentieth of the size
    thick there: 16 cells err by 1.4 %, 24 by 0.4 % (``benchmarks/payback.py``).

    References
    ----------
    G. de Vahl Davis, "Natural Convection of Air in a Square Cavity: a Bench Mark
    Numerical Solution", International Journal for Numerical Methods in Fluids 3 (1983),
    249-264, whose velocities the tests compare. M. Keyhani, V. Prasad and R. Cox, "An
    Experimental Study of Natural Convection in a Vertical Cavity With Discrete Heat
    Sources", Journal of Heat Transfer 110 (1988), 616-624. Air: U.S. Standard
    Atmosphere, 1976, equations 51 and 53.

    Examples
    --------
    >>> solver = NaturalConvection(cells=14, points=33)
    >>> case = {"lower": 60.0, "upper": 60.0, "transfer": 10.0}
    >>> (air,) = solver.solve(case | {"ambient": 20.0, "tilt": 0.0})
    >>> print(f"{float(air.rise.max()):.0f} K, {100 * float(air.v.max()):.0f} cm/s")
    22 K, 4 cm/s
    """

    def __init__(
        self,
        cells: int = 24,
        points: int = 33,
        size: float = 0.1,
        *,
        flux: tuple[float, float] = (20.0, 100.0),
        transfer: tuple[float, float] = (5.0, 25.0),
        ambient: tuple[float, float] = (-10.0, 40.0),
        tilt: tuple[float, float] = (-10.0, 10.0),
    ) -> None:
        super().__init__(1, 1.0, "")
        self.cells = self._count("cells", cells)
        self.points = self._count("points", points)
        self.size = self._positive("size", size, "m")
        self.flux = self._bounds("flux", flux, "W/m²", least=0.0)
        self.transfer = self._bounds("transfer", transfer, "W/(m² K)", least=0.1)
        self.ambient = self._bounds("ambient", ambient, "°C", least=-100.0)
        self.tilt = self._bounds("tilt", tilt, "degrees")
        if self.cells < 4:
            raise self._wrong("cells", "at least 4", cells)
        if self.points < 2:
            raise self._wrong("points", "at least 2", points)

    @cached_property
    def spec(self) -> FieldSpec:
        """Five numbers in, the temperature and two velocities out."""
        places = tuple(self.size * _graded(self.points - 1))
        return FieldSpec(
            parameters=(
                Parameter("lower", *self.flux, "W m-2"),
                Parameter("upper", *self.flux, "W m-2"),
                Parameter("transfer", *self.transfer, "W m-2 K-1"),
                Parameter("ambient", *self.ambient, "degC"),
                Parameter("tilt", *self.tilt, "degree"),
            ),
            variables=(
                Variable("rise", "K", "temperature above ambient"),
                Variable("u", "m/s", "velocity along x"),
                Variable("v", "m/s", "velocity along y"),
            ),
            dims=("x", "y"),
            shape=(self.points, self.points),
            times=self.times,
            coordinates=tuple(Coordinate(d, d, places, "m") for d in "xy"),
        )

    @cached_property
    def _meshes(self) -> tuple[_Mesh, _Mesh]:
        return _Mesh(self.cells // 2), _Mesh(self.cells)

    def setup(self, cores: int) -> None:
        """Build both meshes, once for all simulations of a worker."""
        self._meshes  # noqa: B018 - it is cached

    def fields(
        self, parameters: Mapping[str, float]
    ) -> Iterator[Float[np.ndarray, "1 3 x y"]]:
        """Yield temperature and velocities; see `GridSolver.fields`."""
        lower, upper, transfer, ambient, tilt = self.spec.vector(parameters)
        film = ambient + 273.15 + 15.0
        conductivity, viscosity, diffusivity = _air(film)
        # In units of the size, of 20 K, and of the speed of air that falls freely.
        speed = math.sqrt(9.81 / film * _RISE * self.size)
        unit, angle = speed * self.size, math.radians(tilt)
        share = self.size / conductivity
        buoyancy = math.sin(angle), math.cos(angle)
        flux = np.array([lower, upper]) * share / _RISE
        coarse, fine = self._meshes
        solution = np.zeros(coarse.size)
        for mesh, ramp in ((coarse, _RAMP), (fine, _RAMP[-1:])):
            if mesh is fine:
                solution = coarse.refined(solution, fine)
            for times in ramp:
                solution = mesh.solve(
                    solution,
                    times * viscosity / unit,
                    times * diffusivity / unit,
                    buoyancy=buoyancy,
                    flux=flux,
                    transfer=(0.0, transfer * share),
                    last=mesh is fine,
                )
        places = np.array(self.spec.coordinates[0].values) / self.size
        u, v, rise = mesh.at(solution, places, places)
        yield np.stack([_RISE * rise, speed * u, speed * v])[np.newaxis]


class _Mesh:
    """Rectangles in the unit square, and the equations on them, without units.

    Unknowns are u, v, T at (2n + 1)² nodes and p at (n + 1)² corners, in this order.
    """

    def __init__(self, cells: int) -> None:
        self.edges = _graded(cells)
        self.nodes = np.empty(2 * cells + 1)
        self.nodes[::2], self.nodes[1::2] = self.edges, _middles(self.edges)
        widths = np.diff(self.edges)
        across, up = (n.ravel() for n in np.mgrid[:cells, :cells])
        self.across, self.up = widths[across, None], widths[up, None]
        # Functions of an element at the points of Gauss's rule of order 7.
        at, weights = _gauss()
        one, slope, linear = _quadratic(at), _slope(at), np.stack([1 - at, at])
        self.shape, self.to_x, self.to_y, corner = (
            np.einsum("ap,bq->abpq", a, b).reshape(len(a) * len(b), -1)
            for a, b in ((one, one), (slope, one), (one, slope), (linear, linear))
        )
        self.weights = np.outer(weights, weights).ravel() * self.across * self.up
        self.laplace = self._products(self.to_x, self.to_x, self.across**-2)
        self.laplace += self._products(self.to_y, self.to_y, self.up**-2)
        self.mass = self._products(self.shape, self.shape, 1.0)
        self.of_u = self._products(corner, self.to_x, 1 / self.across)
        self.of_v = self._products(corner, self.to_y, 1 / self.up)
        # The unknowns of each element.
        self.places = _places(across, up, 2, 2 * cells + 1)
        self.corners = _places(across, up, 1, cells + 1)
        self.count = (2 * cells + 1) ** 2
        self.size = 3 * self.count + (cells + 1) ** 2
        self._sides(at, weights)
        self._pattern()

    def _products(self, a: np.ndarray, b: np.ndarray, by: object) -> np.ndarray:
        """Return ∫ a_i b_j by, on each element."""
        out: np.ndarray = np.matmul((self.weights * by)[:, None, :] * a, b.T)
        return out

    def _sides(self, at: np.ndarray, weights: np.ndarray) -> None:
        """Integrate over the left and the right wall, and over the components."""
        cells, widths = len(self.edges) - 1, np.diff(self.edges)
        one = np.einsum("ap,bp,p->ab", _quadratic(at), _quadratic(at), weights)
        self.walls = np.zeros((2, cells**2, 9, 9))
        self.component = np.zeros((2, self.count))
        for k, width in enumerate(widths):
            self.walls[0, k, :3, :3] = width * one
            self.walls[1, cells**2 - cells + k, 6:, 6:] = width * one
            for heated, (low, high) in zip(
                self.component, (_LOWER, _UPPER), strict=True
            ):
                low, high = max(low, self.edges[k]), min(high, self.edges[k + 1])
                if low < high:
                    place = (low + (high - low) * at - self.edges[k]) / width
                    heated[2 * k : 2 * k + 3] += (high - low) * (
                        _quadratic(place) @ weights
                    )

    def _pattern(self) -> None:
        """Find where the entries of the elements are in the sparse matrix."""
        flow = [self.places + k * self.count for k in range(3)]
        unknowns = [*flow, self.corners + 3 * self.count]
        self.unknowns = np.concatenate(unknowns, axis=1)
        width = self.unknowns.shape[1]
        rows = np.repeat(self.unknowns, width, axis=1)
        columns = np.tile(self.unknowns, (1, width))
        wall = np.zeros((len(self.nodes), len(self.nodes)), dtype=bool)
        wall[[0, -1], :] = wall[:, [0, -1]] = True
        # No velocity at walls, and the pressure of one corner, which is arbitrary.
        free = np.ones(self.size, dtype=bool)
        free[: 2 * self.count] = ~np.tile(wall.ravel(), 2)
        free[3 * self.count] = False
        self.free = np.flatnonzero(free)
        number = np.cumsum(free) - 1
        coupled = np.ones((4, 4), dtype=bool)
        coupled[3, 2:] = coupled[2, 3] = False
        part = np.repeat(np.arange(4), [9, 9, 9, 4])
        self.kept = free[rows] & free[columns] & coupled[np.ix_(part, part)].ravel()
        count = len(self.free)
        key = number[columns[self.kept]] * count + number[rows[self.kept]]
        entries, self.entry = np.unique(key, return_inverse=True)
        starts = np.searchsorted(entries // count, np.arange(count + 1))
        self.sparse = (entries % count).astype(np.int32), starts.astype(np.int32)

    def solve(
        self,
        solution: Float[np.ndarray, " unknown"],
        viscosity: float,
        diffusivity: float,
        *,
        buoyancy: tuple[float, float],
        flux: Float[np.ndarray, " component"],
        transfer: tuple[float, float],
        outside: tuple[float, float] = (0.0, 0.0),
        last: bool = True,
    ) -> Float[np.ndarray, " unknown"]:
        """Return the steady state, by Newton's method from a guess.

        ∂T/∂n is ``transfer`` (outside - T) at the left and at the right wall, and
        ``flux`` more at each component. On the way to another mesh or fluid, not the
        `last`, 10 % are exact enough.
        """
        heat = diffusivity * (flux @ self.component)
        through = np.zeros_like(self.mass)
        for wall, factor, beyond in zip(self.walls, transfer, outside, strict=True):
            through += factor * wall
            given = (diffusivity * factor * beyond * wall.sum(axis=2)).ravel()
            heat += np.bincount(self.places.ravel(), given, self.count)
        for _ in range(_NEWTON):
            exact, tangent = self._tangent(
                solution, viscosity, diffusivity, buoyancy, through
            )
            values = solution[self.unknowns]
            residual = np.einsum("eij,ej->ei", exact, values)
            total = np.bincount(self.unknowns.ravel(), residual.ravel(), self.size)
            total -= np.pad(heat, (2 * self.count, self.size - 3 * self.count))
            data = np.bincount(self.entry, tangent.reshape(len(values), -1)[self.kept])
            shape = (len(self.free), len(self.free))
            system = sparse.csc_array((data, *self.sparse), shape=shape)
            # Some pivoting, as pressures have no diagonal: with all it takes twice.
            step = splu(system, diag_pivot_thresh=0.1).solve(total[self.free])
            solution = solution.copy()
            solution[self.free] -= step
            change = np.linalg.norm(step) / np.linalg.norm(solution)
            if change < (1e-3 if last else 0.1):
                return solution
        raise FloatingPointError(
            f"NaturalConvection: Newton's method has not ended after {_NEWTON} steps "
            f"on {len(self.edges) - 1} elements a side. Take more cells."
        )

    def _tangent(
        self,
        solution: np.ndarray,
        viscosity: float,
        diffusivity: float,
        buoyancy: tuple[float, float],
        through: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrices of all elements, and those of their derivative."""
        u, v, _ = fields = [solution[k * self.count + self.places] for k in range(3)]
        carried = self._products(
            self.shape, self.to_x, u @ self.shape / self.across
        ) + self._products(self.shape, self.to_y, v @ self.shape / self.up)
        exact = np.zeros((len(u), 31, 31))
        for k in range(2):
            own = slice(9 * k, 9 * k + 9)
            exact[:, own, own] = carried + viscosity * self.laplace
            exact[:, own, 18:27] = -buoyancy[k] * self.mass
            divergence = (self.of_u, self.of_v)[k]
            exact[:, 27:, own] = -divergence
            exact[:, own, 27:] = -divergence.transpose(0, 2, 1)
        exact[:, 18:27, 18:27] = carried + diffusivity * (self.laplace + through)
        tangent = exact.copy()
        for k, field in enumerate(fields):
            along = field @ self.to_x / self.across, field @ self.to_y / self.up
            for j, gradient in enumerate(along):
                rows, columns = slice(9 * k, 9 * k + 9), slice(9 * j, 9 * j + 9)
                tangent[:, rows, columns] += self._products(
                    self.shape, self.shape, gradient
                )
        return exact, tangent

    def at(
        self, solution: np.ndarray, x: np.ndarray, y: np.ndarray
    ) -> Float[np.ndarray, "3 x y"]:
        """Return u, v and T at the points of a grid."""
        shape = (3, len(self.nodes), len(self.nodes))
        fields = solution[: 3 * self.count].reshape(shape)
        out: np.ndarray = self._weights(x) @ fields @ self._weights(y).T
        return out

    def _weights(self, places: np.ndarray) -> Float[np.ndarray, "place node"]:
        """Return how much of each node the quadratic function has at each place."""
        cell = np.searchsorted(self.edges, places, "right") - 1
        cell = np.clip(cell, 0, len(self.edges) - 2)
        local = (places - self.edges[cell]) / np.diff(self.edges)[cell]
        weights = np.zeros((len(places), len(self.nodes)))
        for k, values in enumerate(_quadratic(local)):
            weights[np.arange(len(places)), 2 * cell + k] = values
        return weights

    def refined(self, solution: np.ndarray, mesh: _Mesh) -> np.ndarray:
        """Return a solution on another mesh, with pressures of zero.

        A step of Newton's method is linear in them, so their guess does not matter.
        """
        flow = self.at(solution, mesh.nodes, mesh.nodes).ravel()
        return np.concatenate([flow, np.zeros(mesh.size - len(flow))])


_NEWTON = 12  # steps, at most


def _graded(cells: int) -> Float[np.ndarray, " edge"]:
    """Return 0, ..., 1, denser at both ends."""
    edge = np.tanh(_GRADING * np.linspace(-1, 1, cells + 1)) / np.tanh(_GRADING)
    out: np.ndarray = (1 + edge) / 2
    return out


def _middles(edges: np.ndarray) -> np.ndarray:
    out: np.ndarray = (edges[1:] + edges[:-1]) / 2
    return out


def _gauss() -> tuple[np.ndarray, np.ndarray]:
    """Return points and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(4)
    return (points + 1) / 2, weights / 2


def _quadratic(at: np.ndarray) -> Float[np.ndarray, "3 point"]:
    """Return the functions of the nodes 0, 1/2 and 1."""
    return np.stack([(1 - at) * (1 - 2 * at), 4 * at * (1 - at), at * (2 * at - 1)])


def _slope(at: np.ndarray) -> Float[np.ndarray, "3 point"]:
    return np.stack([4 * at - 3, 4 - 8 * at, 4 * at - 1])


def _places(
    across: np.ndarray, up: np.ndarray, order: int, side: int
) -> Int[np.ndarray, "element place"]:
    """Return the numbers of the nodes of each element, those along y first."""
    local = np.arange(order + 1)
    x = order * across[:, None, None] + local[None, :, None]
    y = order * up[:, None, None] + local[None, None, :]
    return (x * side + y).reshape(len(across), -1)


def _air(kelvin: float) -> tuple[float, float, float]:
    """Return conductivity, kinematic viscosity and thermal diffusivity at 1 atm."""
    density = 101325 / (287.053 * kelvin)
    viscosity = 1.458e-6 * kelvin**1.5 / (kelvin + 110.4)
    conductivity = 2.64638e-3 * kelvin**1.5 / (kelvin + 245.4 * 10 ** (-12 / kelvin))
    return conductivity, viscosity / density, conductivity / (density * 1006.0)
