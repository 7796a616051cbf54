"""A battle advanced loop by loop: enemies choose targets, units move, then attacks (combat.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import HELP_RADIUS, MAX_PUSH, NEVER, RANGE_TOLERANCE, Army, Battle, Ground
from marl_flow.envs.smac.combat import attack, explode_banelings, heal, regenerate
from marl_flow.envs.smac.pairs import Pairs, Targeting, find_targeting
from marl_flow.envs.smac.units import AUTO_HEAL_ENERGY, COOLDOWN_JITTER, RANGE_SLOP


def advance(battle: Battle, army: Army, ground: Ground, draws: Tensor) -> None:
    """The battles one SMAC step later, in place. draws [1 + loops, U, E] uniform in [0, 1): cooldown jitter, then
    each loop's order of attacks."""
    low, high = COOLDOWN_JITTER
    jitter = low + (high - low) * draws[0]
    pairs = Pairs(battle, army)
    _retarget_helpers(battle, army)
    for priority in draws[1:]:
        _loop(battle, army, ground, pairs, jitter, priority)


def _retarget_helpers(battle: Battle, army: Army) -> None:
    """Enemies without a target attack whoever hit them in the last step, else whoever hit the nearest teammate within
    HELP_RADIUS. Then the attackers of the last step are cleared."""
    allies = army.num_allies
    x, y, attacker = battle.x[allies:], battle.y[allies:], battle.attacker[allies:]
    if bool((attacker >= 0).any()):
        squared = (x[:, None] - x[None]) ** 2 + (y[:, None] - y[None]) ** 2
        squared = squared.masked_fill((attacker < 0)[None], torch.inf)
        distance, teammate = squared.min(1)
        new_target = attacker.gather(0, teammate)
        helps = (battle.target[allies:] < 0) & (distance <= HELP_RADIUS**2) & ~army.unarmed[allies:]
        helps &= battle.health.gather(0, new_target.clamp_min(0)) > 0
        battle.target[allies:] = torch.where(helps, new_target, battle.target[allies:])
    battle.attacker.fill_(-1)


def _loop(battle: Battle, army: Army, ground: Ground, pairs: Pairs, jitter: Tensor, priority: Tensor) -> None:
    battle.cooldown.sub_((battle.cooldown > 0).to(battle.cooldown.dtype))  # a value below 0 shortens the next cooldown
    battle.windup.sub_(1.0)
    _choose_targets(battle, army, pairs)
    if army.has("medivac"):
        _choose_heal_targets(battle, army)
    targeting, was_alive = find_targeting(battle, army, pairs), battle.health > 0
    _move(battle, army, ground, pairs, targeting)
    if army.has("medivac"):
        heal(battle, army, targeting.in_reach)
    attack(battle, army, pairs, targeting, jitter, priority)
    if army.has("baneling"):
        explode_banelings(battle, army, pairs, was_alive)
    regenerate(battle, army)
    dead = battle.health <= 0
    battle.x = torch.where(dead, pairs.off_map, battle.x)
    battle.y = torch.where(dead, pairs.off_map, battle.y)


def _choose_targets(battle: Battle, army: Army, pairs: Pairs) -> None:
    """Enemies keep, change or lose their targets."""
    allies = army.num_allies
    x, y = battle.x[allies:], battle.y[allies:]
    squared = (x[:, None] - battle.x[None, :allies]).square_()
    squared += (y[:, None] - battle.y[None, :allies]).square_()
    current = battle.target[allies:]
    at = current.clamp_min(0)
    # healers' targets are teammates, whose numbers are not among the allies here
    to_current = squared.gather(1, at.clamp_max(allies - 1)[:, None])[:, 0]
    valid = (current >= 0) & (battle.health.gather(0, at) > 0)
    reach = army.reach[allies:] + army.radius[allies:] + pairs.target_radius(at)
    limit = torch.where(battle.windup[allies:] < NEVER / 2, (reach + RANGE_SLOP) ** 2, (reach + RANGE_TOLERANCE) ** 2)
    keep = valid & (to_current <= limit)
    scanned = squared.masked_fill_(squared > pairs.scan_squared, torch.inf)
    if not pairs.plain:
        scanned += pairs.penalty
    nearest_distance, nearest = scanned.min(1)
    if not pairs.plain:  # unarmed targets are left for armed ones
        keep &= ~(army.unarmed.expand(battle.x.shape).gather(0, at) & (nearest_distance < pairs.last_resort))
    sees = valid & (to_current <= (army.sight[allies:] + army.radius[allies:]) ** 2)
    attacker = battle.attacker[allies:]
    strikes_back = (attacker >= 0) & (battle.health.gather(0, attacker.clamp_min(0)) > 0)
    otherwise = torch.where(sees, current, torch.where(strikes_back, attacker, -1))
    chosen = torch.where(keep, current, torch.where(nearest_distance < torch.inf, nearest, otherwise))
    if army.has("medivac"):
        chosen = torch.where(army.heals[allies:], current, chosen)
    interrupted = (chosen != current) & (battle.windup[allies:] < NEVER / 2)
    battle.windup[allies:].masked_fill_(interrupted, NEVER)
    battle.cooldown[allies:].masked_fill_(interrupted, 0.0)
    battle.target[allies:] = chosen


def _choose_heal_targets(battle: Battle, army: Army) -> None:
    """Enemy medivacs: the hurt teammate with the smallest fraction of its health, then the nearest, in scan range."""
    allies = army.num_allies
    x, y, health = battle.x[allies:], battle.y[allies:], battle.health[allies:]
    radius = army.radius[allies:]
    distance = ((x[:, None] - x[None]) ** 2 + (y[:, None] - y[None]) ** 2).sqrt()
    fraction = health / army.max_health[allies:]
    candidate = army.healable[allies:] & (health > 0) & (fraction < 1)
    candidate = candidate[None] & (distance <= army.scan[allies:, None] + radius[:, None] + radius[None])
    score = torch.where(candidate, fraction[None] + 1e-5 * distance, torch.inf)
    best, hurt = score.min(1)
    heals = army.heals[allies:] & (battle.energy[allies:] >= AUTO_HEAL_ENERGY) & (best < torch.inf)
    chosen = torch.where(heals, hurt + allies, -1)
    battle.target[allies:] = torch.where(army.heals[allies:], chosen, battle.target[allies:])


def _move(battle: Battle, army: Army, ground: Ground, pairs: Pairs, targeting: Targeting) -> None:
    """Units walk towards targets out of reach, else to their goals; touching units are pushed apart; walls stop all."""
    goal_x, goal_y = battle.goal_x, battle.goal_y
    if ground.flow_x is not None and ground.flow_y is not None:
        cell = _cell(ground, battle.x, battle.y)
        far = pairs.is_enemy & ((goal_x - battle.x).abs().maximum((goal_y - battle.y).abs()) > 1.0)
        goal_x = torch.where(far, ground.flow_x[cell], goal_x)
        goal_y = torch.where(far, ground.flow_y[cell], goal_y)
    walk_x = torch.where(targeting.has_target, targeting.offset_x, goal_x - battle.x)
    walk_y = torch.where(targeting.has_target, targeting.offset_y, goal_y - battle.y)
    length = (walk_x * walk_x).add_(walk_y * walk_y).sqrt_()
    stride = torch.where(targeting.has_target, length - targeting.reach, length).clamp_min_(0.0)
    stride = torch.minimum(stride, army.speed)
    # an ally whose target has died stands until its next order
    waits = ~targeting.has_target & (battle.target >= 0) & ~pairs.is_enemy
    stride.masked_fill_(waits | (battle.health <= 0) | (battle.windup < NEVER / 2), 0.0)
    stride /= length.clamp_min_(1e-6)
    new_x, new_y = battle.x + walk_x.mul_(stride), battle.y + walk_y.mul_(stride)
    push_x, push_y = _pushes(army, pairs, new_x, new_y, targeting.in_reach)
    side_x, side_y = _sidesteps(battle, pairs, walk_x, walk_y, push_x, push_y)
    new_x += push_x
    new_x += side_x
    new_y += push_y
    new_y += side_y
    if ground.box is not None:
        low_x, high_x, low_y, high_y = ground.box
        battle.x, battle.y = new_x.clamp_(low_x, high_x), new_y.clamp_(low_y, high_y)
    else:
        free_x = ground.cells[_cell(ground, new_x, battle.y)]
        step_x = torch.where(free_x, new_x, battle.x)
        free_y = ground.cells[_cell(ground, step_x, new_y)]
        battle.x, battle.y = step_x, torch.where(free_y, new_y, battle.y)


def _sidesteps(
    battle: Battle, pairs: Pairs, walk_x: Tensor, walk_y: Tensor, push_x: Tensor, push_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Sideways steps [U, E] of blocked units: as long as the part of the walk that pushes cancelled, perpendicular to
    it, away from the centre of the own side, so that the rear ranks walk around the front."""
    walked = (walk_x * walk_x).add_(walk_y * walk_y).clamp_min_(1e-12)
    blocked = (walk_x * push_x).add_(walk_y * push_y).neg_().div_(walked).clamp_(0.0, 1.0)
    across = (battle.y - pairs.centre_y).mul_(walk_x).sub_((battle.x - pairs.centre_x).mul_(walk_y))
    blocked = torch.where(across >= 0, blocked, -blocked)
    return (walk_y * blocked).neg_(), walk_x * blocked


def _cell(ground: Ground, x: Tensor, y: Tensor) -> Tensor:
    top = ground.size - 1
    return x.floor().clamp_(0, top).long() * ground.size + y.floor().clamp_(0, top).long()


def _pushes(army: Army, pairs: Pairs, x: Tensor, y: Tensor, standing: Tensor) -> tuple[Tensor, Tensor]:
    """Displacements [U, E] of touching units: half of the overlap each, all of it against a standing attacker."""
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
