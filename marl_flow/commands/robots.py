"""Which published single robots are those that the agents of our MA-MuJoCo tasks share."""

from __future__ import annotations

from marl_flow.datasets.formats.robot import SharedRobot
from marl_flow.envs.mamujoco.tasks import ANT, PARTITIONS, task_spec

SAME_REWARDS = {
    True: ("Ant-v2", "Ant-v3", "Ant-v4"),
    False: ("HalfCheetah-v2", "HalfCheetah-v3", "HalfCheetah-v4", "HalfCheetah-v5"),
}
"""Ants and others: the tasks whose rewards are ours. Ant-v5 subtracts a cost of contacts and gives no reward for the
last step."""


def shared_robot(task_id: str) -> SharedRobot | None:
    """How the agents of a task share a robot; None for tasks without one."""
    if task_id not in PARTITIONS:
        return None
    partition = PARTITIONS[task_id]
    ant = partition.robot == ANT
    return SharedRobot(
        task=task_spec(task_id),
        num_positions=partition.robot.num_positions,
        num_velocities=partition.robot.num_velocities,
        num_actuators=sum(len(own) for own in partition.actuators),
        unseen=2 if ant else 1,
        recorded_as=SAME_REWARDS[ant],
        observe=partition.observe,
        divide=partition.divide,
    )
