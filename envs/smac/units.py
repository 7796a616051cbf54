"""The numbers of StarCraft II's units as SMAC's maps load them: the core and Liberty tables, build 4.10.

Every SMAC map depends on the Liberty mod alone, so these are not the multiplayer ("Legacy of the Void") numbers that
other re-implementations use: a stalker hits for 10 (+4 armoured) every 1.44 s, not for 13 (+5) every 1.87.
Sources: `SC2Mapster/SC2GameData: mods/{core,liberty}.sc2mod/base.sc2data/GameData/*.xml` (tag v4.10.0.75689) and the
unit overrides inside `oxwhirl/smac: smac/env/starcraft2/maps/SMAC_Maps/*.SC2Map`.

Rates are per game second, which has 16 loops; one SMAC step is 8 loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

LOOPS_PER_SECOND = 16
LOOPS_PER_STEP = 8

COOLDOWN_JITTER = (-1.0, 2.0)
"""After each shot a uniform number of loops in this range is added to the weapon's cooldown."""
SHIELD_DELAY_SECONDS = 10.0
SHIELD_RATE = 2.0
ZERG_HEALTH_RATE = 0.2734
ENERGY_RATE = 0.5625
ENERGY_START, ENERGY_MAX = 50.0, 200.0
HEAL_RATE, HEAL_ENERGY_PER_HP, HEAL_RANGE = 9.0, 1.0 / 3.0, 4.0
AUTO_HEAL_RANGE, AUTO_HEAL_ENERGY = 6.0, 5.0
MIN_SCAN_RANGE = 5.0
RANGE_SLOP = 1.0
MIN_DAMAGE = 0.5


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit type. Lengths in map cells; range is edge to edge; speed, period and delays per or in game seconds."""

    name: str
    race: Literal["terran", "protoss", "zerg"]
    health: float
    shield: float = 0.0
    armour: float = 0.0
    light: bool = False
    armoured: bool = False
    biological: bool = False
    structure: bool = False
    air: bool = False
    """Flies: passes over ground units, and only weapons with `hits_air` hit it."""
    walks_over: bool = False
    """On the ground, but passes over other ground units (the colossus)."""
    radius: float
    """Of range measurements."""
    separation: float
    """Of collisions."""
    speed: float
    range: float | None
    """None: no weapon."""
    hits_air: bool = False
    period: float = 1.0
    damage_point: float = 0.0
    damage: float = 0.0
    bonus_light: float = 0.0
    bonus_armoured: float = 0.0
    projectile_speed: float | None = None
    """None: the shot hits at once."""
    second_hit_delay: float | None = None
    """Zealot and colossus: every attack hits a second time after this delay."""
    sight: float
    max_cooldown: float = 15.0
    """What SMAC divides the cooldown by, in loops (`oxwhirl/smac: smac/env/starcraft2/starcraft2.py`)."""

    @property
    def scan_range(self) -> float:
        """How far, edge to edge, an enemy looks for targets."""
        return max(MIN_SCAN_RANGE, self.range or 0.0)


BANELING_SPLASH_RADIUS = 2.2
COLOSSUS_SPLASH_HALF_WIDTH, COLOSSUS_SPLASH_REACH = 1.25, 0.15
COLOSSUS_HIT_DELAY = 0.25

UNITS: Mapping[str, Unit] = MappingProxyType(
    {
        unit.name: unit
        for unit in (
            Unit(
                name="marine",
                race="terran",
                health=45,
                light=True,
                biological=True,
                radius=0.375,
                separation=0.375,
                speed=2.25,
                range=5,
                hits_air=True,
                period=0.8608,
                damage_point=0.05,
                damage=6,
                sight=9,
                max_cooldown=15,
            ),
            Unit(
                name="marauder",
                race="terran",
                health=125,
                armour=1,
                armoured=True,
                biological=True,
                radius=0.5625,
                separation=0.5,
                speed=2.25,
                range=6,
                period=1.5,
                damage=10,
                bonus_armoured=10,
                projectile_speed=20,
                sight=10,
                max_cooldown=25,
            ),
            Unit(
                name="medivac",
                race="terran",
                health=150,
                armour=1,
                armoured=True,
                air=True,
                radius=0.75,
                separation=0.75,
                speed=2.75,
                range=None,
                sight=11,
                max_cooldown=200,
            ),
            Unit(
                name="stalker",
                race="protoss",
                health=80,
                shield=80,
                armour=1,
                armoured=True,
                radius=0.625,
                separation=0.625,
                speed=2.9531,
                range=6,
                hits_air=True,
                period=1.44,
                damage_point=0.167,
                damage=10,
                bonus_armoured=4,
                projectile_speed=18.75,
                sight=10,
                max_cooldown=35,
            ),
            Unit(
                name="zealot",
                race="protoss",
                health=100,
                shield=50,
                armour=1,
                light=True,
                biological=True,
                radius=0.5,
                separation=0.375,
                speed=2.25,
                range=0.1,
                period=1.2,
                damage=8,
                second_hit_delay=0.28,
                sight=9,
                max_cooldown=22,
            ),
            Unit(
                name="zergling",
                race="zerg",
                health=35,
                light=True,
                biological=True,
                radius=0.375,
                separation=0.375,
                speed=2.9531,
                range=0.1,
                period=0.696,
                damage_point=0.167,
                damage=5,
                sight=8,
                max_cooldown=11,
            ),
            Unit(
                name="baneling",
                race="zerg",
                health=30,
                biological=True,
                radius=0.375,
                separation=0.375,
                speed=2.5,
                range=0.25,
                damage=20,
                bonus_light=15,
                sight=8,
                max_cooldown=1,
            ),
            Unit(
                name="hydralisk",
                race="zerg",
                health=80,
                light=True,
                biological=True,
                radius=0.625,
                separation=0.5,
                speed=2.25,
                range=5,
                hits_air=True,
                period=0.83,
                damage_point=0.208,
                damage=12,
                projectile_speed=40,
                sight=9,
                max_cooldown=10,
            ),
            Unit(
                name="colossus",
                race="protoss",
                health=200,
                shield=150,
                armour=1,
                armoured=True,
                walks_over=True,
                radius=1.0,
                separation=0.75,
                speed=2.25,
                range=6,
                period=2.2,
                damage_point=0.083,
                damage=20,
                second_hit_delay=0.341,
                sight=10,
                max_cooldown=24,
            ),
            Unit(
                name="spine_crawler",
                race="zerg",
                health=300,
                armour=2,
                armoured=True,
                biological=True,
                structure=True,
                radius=0.875,
                separation=0.875,
                speed=0.0,
                range=7,
                period=1.6,
                damage_point=0.333,
                damage=25,
                bonus_armoured=5,
                sight=11,
            ),
        )
    }
)


def raw_damage(shooter: Unit, target: Unit) -> float:
    """Damage of one hit before armour, bonuses included; 0 where the weapon cannot hit the target."""
    if shooter.range is None or (target.air and not shooter.hits_air):
        return 0.0
    if shooter.name == "baneling" and target.structure:
        return 0.0
    damage = shooter.damage + shooter.bonus_light * target.light + shooter.bonus_armoured * target.armoured
    return float(damage)
