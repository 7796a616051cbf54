"""A battle advanced loop by loop: whom enemies attack, where everybody walks, then the blows of combat.py."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import CLOSE, HELP_RADIUS, MAX_PUSH, NEVER, Army, Battle, Ground
from marl_flow.envs.smac.combat import attack, explode, heal, recover
from marl_flow.envs.smac.pairs import Aim, Pairs, aim_of
from marl_flow.envs.smac.units import AUTO_HEAL_ENERGY, COOLDOWN_JITTER, RANGE_SLOP


def advance(s: Battle, army: Army, ground: Ground, draws: Tensor) -> None:
    """The battles one SMAC step later, in place. draws [1 + loops, U, E] uniform in [0, 1): cooldown jitter, then who
    goes first in each loop."""
    low, high = COOLDOWN_JITTER
    jitter = low + (high - low) * draws[0]
    pairs = Pairs(s, army)
    _answer_calls(s, army)
    for priority in draws[1:]:
        _loop(s, army, ground, pairs, jitter, priority)


def _answer_calls(s: Battle, army: Army) -> None:
    """Enemies without a target take the attacker of who was hit in the last step: themselves, else the nearest friend
    within reach of a call for help. Then the step's own attackers are forgotten."""
    allies = army.num_allies
    x, y, attacker = s.x[allies:], s.y[allies:], s.attacker[allies:]
    if bool((attacker >= 0).any()):
        squared = (x[:, None] - x[None]) ** 2 + (y[:, None] - y[None]) ** 2
        squared = squared.masked_fill((attacker < 0)[None], torch.inf)
        distance, friend = squared.min(1)
        called = attacker.gather(0, friend)
        answers = (s.target[allies:] < 0) & (distance <= HELP_RADIUS**2) & ~army.harmless[allies:]
        answers &= s.health.gather(0, called.clamp_min(0)) > 0
        s.target[allies:] = torch.where(answers, called, s.target[allies:])
    s.attacker.fill_(-1)


def _loop(s: Battle, army: Army, ground: Ground, pairs: Pairs, jitter: Tensor, priority: Tensor) -> None:
    s.cooldown.sub_((s.cooldown > 0).to(s.cooldown.dtype))  # what a shot in time leaves below 0 shortens the next wait
    s.windup.sub_(1.0)
    _choose_targets(s, army, pairs)
    if army.has("medivac"):
        _choose_patients(s, army)
    aim, lived = aim_of(s, army, pairs), s.health > 0
    _move(s, army, ground, pairs, aim)
    if army.has("medivac"):
        heal(s, army, aim.in_reach)
    attack(s, army, pairs, aim, jitter, priority)
    if army.has("baneling"):
        explode(s, army, pairs, lived)
    recover(s, army)
    dead = s.health <= 0
    s.x = torch.where(dead, pairs.limbo, s.x)
    s.y = torch.where(dead, pairs.limbo, s.y)


def _choose_targets(s: Battle, army: Army, pairs: Pairs) -> None:
    """Enemies keep, change or drop their targets."""
    allies = army.num_allies
    x, y = s.x[allies:], s.y[allies:]
    squared = (x[:, None] - s.x[None, :allies]).square_()
    squared += (y[:, None] - s.y[None, :allies]).square_()
    current = s.target[allies:]
    at = current.clamp_min(0)
    # healers' targets are friends: their numbers are not among the allies here
    own = squared.gather(1, at.clamp_max(allies - 1)[:, None])[:, 0]
    valid = (current >= 0) & (s.health.gather(0, at) > 0)
    reach = army.reach[allies:] + army.radius[allies:] + pairs.target_radius(at)
    slack = torch.where(s.windup[allies:] < NEVER / 2, (reach + RANGE_SLOP) ** 2, (reach + CLOSE) ** 2)
    keep = valid & (own <= slack)
    scanned = squared.masked_fill_(squared > pairs.scan_squared, torch.inf)
    if not pairs.plain:
        scanned += pairs.penalty
    near, nearest = scanned.min(1)
    if not pairs.plain:  # who cannot fight back is left for who can
        keep &= ~(army.harmless.expand(s.x.shape).gather(0, at) & (near < pairs.last_resort))
    sees = valid & (own <= (army.sight[allies:] + army.radius[allies:]) ** 2)
    attacker = s.attacker[allies:]
    answers = (attacker >= 0) & (s.health.gather(0, attacker.clamp_min(0)) > 0)
    otherwise = torch.where(sees, current, torch.where(answers, attacker, -1))
    chosen = torch.where(keep, current, torch.where(near < torch.inf, nearest, otherwise))
    if army.has("medivac"):
        chosen = torch.where(army.heals[allies:], current, chosen)
    lost = (chosen != current) & (s.windup[allies:] < NEVER / 2)
    s.windup[allies:].masked_fill_(lost, NEVER)
    s.cooldown[allies:].masked_fill_(lost, 0.0)
    s.target[allies:] = chosen


def _choose_patients(s: Battle, army: Army) -> None:
    """Enemy medivacs: the hurt friend with the least share of its life, then the nearest, within their scan range."""
    allies = army.num_allies
    x, y, health = s.x[allies:], s.y[allies:], s.health[allies:]
    radius = army.radius[allies:]
    distance = ((x[:, None] - x[None]) ** 2 + (y[:, None] - y[None]) ** 2).sqrt()
    share = health / army.max_health[allies:]
    fit = army.organic[allies:] & (health > 0) & (share < 1)
    fit = fit[None] & (distance <= army.scan[allies:, None] + radius[:, None] + radius[None])
    score = torch.where(fit, share[None] + 1e-5 * distance, torch.inf)
    best, patient = score.min(1)
    heals = army.heals[allies:] & (s.energy[allies:] >= AUTO_HEAL_ENERGY) & (best < torch.inf)
    chosen = torch.where(heals, patient + allies, -1)
    s.target[allies:] = torch.where(army.heals[allies:], chosen, s.target[allies:])


def _move(s: Battle, army: Army, ground: Ground, pairs: Pairs, aim: Aim) -> None:
    """Walks towards targets out of reach or goals, then pushes apart who touches, then stops at walls."""
    goal_x, goal_y = s.goal_x, s.goal_y
    if ground.way_x is not None and ground.way_y is not None:
        cell = _cell(ground, s.x, s.y)
        far = pairs.is_enemy & ((goal_x - s.x).abs().maximum((goal_y - s.y).abs()) > 1.0)
        goal_x = torch.where(far, ground.way_x[cell], goal_x)
        goal_y = torch.where(far, ground.way_y[cell], goal_y)
    way_x = torch.where(aim.aimed, aim.way_x, goal_x - s.x)
    way_y = torch.where(aim.aimed, aim.way_y, goal_y - s.y)
    length = (way_x * way_x).add_(way_y * way_y).sqrt_()
    stride = torch.where(aim.aimed, length - aim.reach, length).clamp_min_(0.0)
    stride = torch.minimum(stride, army.speed)
    bereft = ~aim.aimed & (s.target >= 0) & ~pairs.is_enemy  # an ally whose target is gone stands until its next order
    stride.masked_fill_(bereft | (s.health <= 0) | (s.windup < NEVER / 2), 0.0)
    stride /= length.clamp_min_(1e-6)
    new_x, new_y = s.x + way_x.mul_(stride), s.y + way_y.mul_(stride)
    push_x, push_y = _pushes(army, pairs, new_x, new_y, aim.in_reach)
    side_x, side_y = _around(s, pairs, way_x, way_y, push_x, push_y)
    new_x += push_x
    new_x += side_x
    new_y += push_y
    new_y += side_y
    if ground.box is not None:
        low_x, high_x, low_y, high_y = ground.box
        s.x, s.y = new_x.clamp_(low_x, high_x), new_y.clamp_(low_y, high_y)
    else:
        free_x = ground.cells[_cell(ground, new_x, s.y)]
        step_x = torch.where(free_x, new_x, s.x)
        free_y = ground.cells[_cell(ground, step_x, new_y)]
        s.x, s.y = step_x, torch.where(free_y, new_y, s.y)


def _around(
    s: Battle, pairs: Pairs, walk_x: Tensor, walk_y: Tensor, push_x: Tensor, push_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Sideways steps [U, E] of who is held up: as long as the way that pushes took from a walk, across it, away from
    the middle of the own side, so that the rear ranks walk around the front."""
    walked = (walk_x * walk_x).add_(walk_y * walk_y).clamp_min_(1e-12)
    held = (walk_x * push_x).add_(walk_y * push_y).neg_().div_(walked).clamp_(0.0, 1.0)
    across = (s.y - pairs.middle_y).mul_(walk_x).sub_((s.x - pairs.middle_x).mul_(walk_y))
    held = torch.where(across >= 0, held, -held)
    return (walk_y * held).neg_(), walk_x * held


def _cell(ground: Ground, x: Tensor, y: Tensor) -> Tensor:
    top = ground.size - 1
    return x.floor().clamp_(0, top).long() * ground.size + y.floor().clamp_(0, top).long()


def _pushes(army: Army, pairs: Pairs, x: Tensor, y: Tensor, standing: Tensor) -> tuple[Tensor, Tensor]:
    """Where touching units are pushed [U, E]: half of the overlap each, all of it for who meets a standing attacker."""
    dx, dy = x[:, None] - x[None], y[:, None] - y[None]
    gap = dx * dx
    gap += dy * dy
    gap += pairs.apart
    overlap = army.pushes / gap.sqrt_()
    overlap -= 1.0
    overlap.clamp_min_(0.0)
    stands = standing.to(x.dtype).mul_(0.5)
    overlap *= (stands + 0.5)[None] - stands[:, None]
    return dx.mul_(overlap).sum(1).clamp_(-MAX_PUSH, MAX_PUSH), dy.mul_(overlap).sum(1).clamp_(-MAX_PUSH, MAX_PUSH)
