"""Bit allocation: many units share a budget of bits, and each takes the setting that serves the whole best.

A unit is whatever can be coded at several sizes: a layer of a model, a range of columns, a slice of a vector, the list
of an inverted file. Its curve of error against size is measured, not assumed: one residual encode holds the errors
after each of its codebooks (`residual_curve`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.codes import Codes
from mcq.errors import ConfigError, InputError
from mcq.knapsack import Costs, Losses, choose
from mcq.metric import Identity, Metric
from mcq.residual import ResidualQuantizer
from mcq.validate import in_range

#: Least predicted gain over the best uniform setting that is worth settings of many kinds.
WORTHWHILE = 0.01
#: Beyond, sums over units might not fit 64 bits.
MAX_COST = 1 << 48
#: Beyond, sums over units might not be finite.
MAX_DISTORTION = 1e300


@dataclass(frozen=True)
class Unit:
    """Something that takes one of several settings, and what each of them costs and loses.

    Attributes
    ----------
    name : str
    settings : sequence of hashable objects, each another one
        Numbers of codebooks, configs, names: they are compared, and handed back.
    cost : sequence of int
        Bits of the unit at each setting, with all that decoding needs.
    distortion : sequence of float
        Error of the unit at each setting. The sum over units is minimised, so all must be measured in the same way.

    Raises
    ------
    InputError
        If the three do not have the same length, or one has values that it must not; the message names the unit.

    Examples
    --------
    >>> Unit("layer 1", settings=[1, 2, 3], cost=[1000, 2000, 3000], distortion=[9.0, 3.0, 1.0]).name
    'layer 1'
    """

    name: str
    settings: Sequence[Hashable]
    cost: Sequence[int]
    distortion: Sequence[float]

    def __post_init__(self) -> None:
        settings, where = tuple(self.settings), f"unit {self.name!r}"
        cost, distortion = np.asarray(self.cost), np.asarray(self.distortion)
        if not settings or cost.shape != (len(settings),) or distortion.shape != (len(settings),):
            raise InputError(
                f"{where} must have a cost and a distortion for each of one or more settings, got {len(settings)} "
                f"settings, costs of shape {cost.shape}, distortions of shape {distortion.shape}"
            )
        try:
            distinct = len(set(settings))
        except TypeError as error:
            raise InputError(f"{where} must have settings that can be compared by hash: {error}") from None
        if distinct < len(settings):
            raise InputError(f"{where} must have each setting once, got {', '.join(map(repr, settings))}")
        if cost.dtype.kind not in "iu" or cost.min() < 0 or cost.max() > MAX_COST:
            raise InputError(f"{where} must have costs in whole bits from 0 to 2^48, got {cost.tolist()}")
        if distortion.dtype.kind not in "iuf" or not (np.abs(distortion) <= MAX_DISTORTION).all():
            raise InputError(
                f"{where} must have distortions within {MAX_DISTORTION:g}, got {distortion.tolist()}; measure it anew"
            )
        for name, values in (("settings", settings), ("cost", cost.tolist()), ("distortion", distortion.tolist())):
            object.__setattr__(self, name, tuple(values))


class Chosen(NamedTuple):
    """What a unit takes.

    Attributes
    ----------
    setting : object
    cost : int
        Bits.
    distortion : float
    slope : float
        Distortion that the next larger settings of the unit would save, per bit, by the best of them; 0 at the end.
    """

    setting: Hashable
    cost: int
    distortion: float
    slope: float


class Uniform(NamedTuple):
    """The best setting that all units can share within the budget, pinned units apart."""

    setting: Hashable
    cost: int
    distortion: float


@dataclass(frozen=True)
class Allocation:
    """Settings for all units; printing it gives a summary.

    Attributes
    ----------
    chosen : dict of str to Chosen
        By name of the unit, in the order in which the units were given.
    budget : int
        Bits.
    multiplier : float
        Distortion that one more bit of budget would save, about.
    gap : float
        How much lower the sum of distortions could be at most; 0 where it is known to be the least possible.
    uniform : Uniform or None
        None where no setting fits all units and the budget.
    """

    chosen: dict[str, Chosen]
    budget: int
    multiplier: float
    gap: float
    uniform: Uniform | None

    @property
    def cost(self) -> int:
        """Bits of all units together, never above the budget."""
        return sum(chosen.cost for chosen in self.chosen.values())

    @property
    def slack(self) -> int:
        """Bits of the budget that are left."""
        return self.budget - self.cost

    @property
    def distortion(self) -> float:
        """Predicted sum of the distortions of all units."""
        return math.fsum(chosen.distortion for chosen in self.chosen.values())

    @property
    def gain(self) -> float | None:
        """Predicted part of the distortion of the best uniform setting that is saved, or None without one."""
        if self.uniform is None:
            return None
        saved = self.uniform.distortion - self.distortion
        return saved / self.uniform.distortion if self.uniform.distortion > 0 else 0.0

    @property
    def pays(self) -> bool:
        """Whether the predicted gain is at least one per cent; if not, a uniform setting is as good and simpler."""
        return self.gain is None or self.gain >= WORTHWHILE

    def __str__(self) -> str:
        lines = [
            f"units           {len(self.chosen)}",
            f"bits            {self.cost} of {self.budget} ({self.slack} left)",
            f"distortion      {self.distortion:.6g}",
        ]
        if self.uniform is None:
            lines.append("uniform         no setting fits all units and the budget")
        else:
            lines.append(
                f"uniform         {self.uniform.distortion:.6g} with {self.uniform.setting}, {self.uniform.cost} bits"
            )
            lines.append(f"predicted gain  {self.gain:.1%}{'' if self.pays else ': the uniform setting is as good'}")
        return "\n".join(lines)


def allocate(
    units: Sequence[Unit],
    budget_bits: int,
    *,
    ties: Iterable[Iterable[str]] = (),
    pins: Mapping[str, Hashable] | None = None,
    limits: Mapping[str, tuple[int | None, int | None]] | None = None,
) -> Allocation:
    """Choose a setting for each unit so that the sum of distortions is least within a budget.

    Minimises sum_u D_u(s_u) over settings s_u subject to sum_u R_u(s_u) <= budget. A setting that costs no less than
    another one and has no lower distortion is never taken, so a curve need not fall: its lower envelope counts.

    Parameters
    ----------
    units : sequence of Unit
        With names of their own. Their order does not matter.
    budget_bits : int
        For all units together.
    ties : iterable of iterables of names
        Units that must take the same setting, such as matrices that are multiplied as one.
    pins : mapping of name to setting, optional
        Units whose setting is given.
    limits : mapping of name to (int or None, int or None), optional
        Least and greatest cost of a unit, in bits.

    Returns
    -------
    Allocation

    Raises
    ------
    InputError
        If there are no units, or two have the same name.
    ConfigError
        If the budget is too small; if a pin, a limit or a tie names no unit, leaves it no setting, or contradicts
        another one.

    Notes
    -----
    Exact, unless thousands of solutions are all but equally good; `Allocation.gap` then bounds what may be missing.
    1,000 units with 20 settings each take about a tenth of a second. See `mcq.knapsack`.

    References
    ----------
    Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, ASSP 1988.

    Examples
    --------
    >>> flat = Unit("flat", settings=[1, 2, 3], cost=[100, 200, 300], distortion=[1.0, 0.4, 0.2])
    >>> steep = Unit("steep", settings=[1, 2, 3], cost=[100, 200, 300], distortion=[9.0, 3.0, 1.0])
    >>> best = allocate([flat, steep], budget_bits=400)
    >>> best.chosen["flat"].setting, best.chosen["steep"].setting, best.slack
    (1, 3, 0)
    >>> print(best)
    units           2
    bits            400 of 400 (0 left)
    distortion      2
    uniform         3.4 with 2, 400 bits
    predicted gain  41.2%
    """
    budget = in_range(budget_bits, 0, None, "budget_bits")
    classes = _classes(units, [tuple(tie) for tie in ties], pins or {}, limits or {})
    least, most = (sum(int(c.cost[end]) for c in classes) for end in (0, -1))
    if budget < least:
        raise ConfigError(
            f"budget_bits must be at least {least}, the smallest size possible, got {budget}; the largest is {most}"
        )
    found = choose([c.cost for c in classes], [c.loss for c in classes], budget)
    chosen = {}
    for c, option in zip(classes, found.options.tolist(), strict=True):
        for unit in c.members:
            at = unit.settings.index(c.settings[option])
            chosen[unit.name] = Chosen(unit.settings[at], unit.cost[at], unit.distortion[at], _slope(unit, at))
    chosen = {unit.name: chosen[unit.name] for unit in units}
    return Allocation(chosen, budget, found.multiplier, found.gap, _best_uniform(classes, budget))


def residual_curve(
    name: str,
    quantizer: ResidualQuantizer,
    codes: Codes,
    x: ArrayLike,
    metric: Metric | None = None,
    *,
    weight: float = 1.0,
) -> Unit:
    """Return the curve of a matrix that was encoded once: its settings are the numbers of codebooks, 1 to M.

    Parameters
    ----------
    name : str
        Of the unit.
    quantizer : ResidualQuantizer
        ``quantizer.prefix(m)`` is the one that setting m stands for, and ``codes.prefix(m)`` are its codes.
    codes : Codes
        Of `x`; the best come from a fit with as many codebooks as may be wanted.
    x : array-like of shape (n, d)
    metric : Metric, optional
        H over the d columns; the identity if left out.
    weight : float
        What one unit of this distortion counts against those of other matrices: a sensitivity, or one over the
        distortion of zeros where relative errors shall be added up.

    Raises
    ------
    InputError
        If the codes are of another quantizer or another matrix, or the metric weighs another number of columns.
    ConfigError
        If `weight` is negative.

    Notes
    -----
    Costs M decodes and M distortions.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((256, 8)).astype(np.float32)
    >>> quantizer = ResidualQuantizer(num_codebooks=3, codebook_bits=4)
    >>> unit = residual_curve("x", quantizer, quantizer.fit_encode(x), x)
    >>> unit.settings, unit.cost
    ((1, 2, 3), (4128, 6176, 10272))
    """
    if np.shape(x) != codes.shape:
        raise InputError(f"x must be the matrix of the codes, of shape {codes.shape}, got shape {np.shape(x)}")
    in_range(weight, 0.0, None, "weight")
    metric, entries = metric or Identity(), codes.shape[0] * codes.shape[1]
    settings = range(1, quantizer.config.num_codebooks + 1)
    distortion = [weight * metric.distortion(x, quantizer.decode(codes, num_codebooks=m)) for m in settings]
    cost = [round(quantizer.prefix(m).bits(codes.prefix(m)).all_in * entries) for m in settings]
    return Unit(name, settings, cost, distortion)


class _Class(NamedTuple):
    """Units that take one setting together: tied ones, or a single one. Costs rise, losses fall."""

    members: tuple[Unit, ...]
    settings: list[Hashable]
    cost: Costs
    loss: Losses
    every: dict[Hashable, tuple[int, float]]  # cost and loss of all settings, those of no use included


def _classes(
    units: Sequence[Unit],
    ties: list[tuple[str, ...]],
    pins: Mapping[str, Hashable],
    limits: Mapping[str, tuple[int | None, int | None]],
) -> list[_Class]:
    """Return the classes in an order that does not depend on that of the units."""
    named = {unit.name: unit for unit in units}
    if not units or len(named) < len(units):
        raise InputError(f"units must be one or more, each with a name of its own, got {len(units)} with {len(named)}")
    for what, names in (("ties", (name for tie in ties for name in tie)), ("pins", pins), ("limits", limits)):
        for name in names:
            if name not in named:
                raise ConfigError(f"{what} must name given units, got {name!r}")
    allowed = {name: _allowed(unit, pins, limits) for name, unit in named.items()}
    return [_join([named[name] for name in names], allowed) for names in _tied(named, ties)]


def _tied(names: Iterable[str], ties: list[tuple[str, ...]]) -> list[list[str]]:
    """Return the sorted classes of names; ties that share a name are one."""
    class_of = {name: {name} for name in names}
    for tie in ties:
        merged = set().union(*(class_of[name] for name in tie))
        class_of.update(dict.fromkeys(merged, merged))
    return sorted({id(members): sorted(members) for members in class_of.values()}.values())


def _allowed(
    unit: Unit, pins: Mapping[str, Hashable], limits: Mapping[str, tuple[int | None, int | None]]
) -> set[Hashable]:
    """Return the settings that pin and limits leave to a unit."""
    low, high = limits.get(unit.name, (None, None))
    costs = dict(zip(unit.settings, unit.cost, strict=True))
    allowed = {s for s, cost in costs.items() if (low is None or cost >= low) and (high is None or cost <= high)}
    if not allowed:
        raise ConfigError(
            f"limits must leave unit {unit.name!r} a setting, got ({low}, {high}), but its costs are {unit.cost}"
        )
    if unit.name not in pins:
        return allowed
    pin = pins[unit.name]
    if pin not in costs:
        raise ConfigError(f"unit {unit.name!r} must be pinned to one of its settings {unit.settings}, got {pin!r}")
    if pin not in allowed:
        raise ConfigError(
            f"unit {unit.name!r} is pinned to {pin!r}, which costs {costs[pin]}, but its limits are ({low}, {high}); "
            "drop one of the two"
        )
    return {pin}


def _join(members: list[Unit], allowed: Mapping[str, set[Hashable]]) -> _Class:
    """Return the class of some units, on the lower envelope of the sum of their curves."""
    common = set.intersection(*(allowed[unit.name] for unit in members))
    if not common:
        listed = "; ".join(f"{unit.name!r}: {sorted(map(repr, allowed[unit.name]))}" for unit in members)
        raise ConfigError(f"tied units must have a setting in common that pins and limits allow, got {listed}")
    places = [{setting: i for i, setting in enumerate(unit.settings)} for unit in members]
    every = {
        setting: (
            sum(unit.cost[place[setting]] for unit, place in zip(members, places, strict=True)),
            math.fsum(unit.distortion[place[setting]] for unit, place in zip(members, places, strict=True)),
        )
        for setting in members[0].settings
        if setting in common
    }
    settings: list[Hashable] = []
    for setting in sorted(every, key=lambda setting: every[setting]):
        if not settings or every[setting][1] < every[settings[-1]][1]:
            settings.append(setting)
    costs, losses = zip(*(every[setting] for setting in settings), strict=True)
    return _Class(tuple(members), settings, np.array(costs, np.int64), np.array(losses), every)


def _slope(unit: Unit, at: int) -> float:
    """Return the steepest fall of distortion from one setting of a unit to a larger one, per bit."""
    falls: NDArray[np.float64] = np.array(unit.distortion)[at] - np.array(unit.distortion)
    extra = np.array(unit.cost) - unit.cost[at]
    return float((falls[extra > 0] / extra[extra > 0]).max(initial=0.0))


def _best_uniform(classes: list[_Class], budget: int) -> Uniform | None:
    """Return the setting that is best for all classes that have a choice."""
    free = [c for c in classes if len(c.every) > 1]
    fixed = [next(iter(c.every.values())) for c in classes if len(c.every) == 1]
    best = None
    for setting in (free or classes)[0].every:
        if all(setting in c.every for c in free):
            parts = [c.every[setting] for c in free] + fixed
            cost, loss = sum(part[0] for part in parts), math.fsum(part[1] for part in parts)
            if cost <= budget and (best is None or (loss, cost) < (best.distortion, best.cost)):
                best = Uniform(setting, cost, loss)
    return best
