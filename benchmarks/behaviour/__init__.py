"""How the behaviour policies of the native datasets were trained, and how to train them again.

The package ships small policies (datasets/policies/, envs/mpe/weights/); a native dataset is their play. Each command
trains one task's policies, on one thread, and logs as it goes:

    python -m marl_flow.benchmarks.behaviour.prey train TASK --out DIR       prey of mpe/simple_tag, mpe/simple_world
    python -m marl_flow.benchmarks.behaviour.prey measure [--omar FOLDER]    prey against scripted predators
    python -m marl_flow.benchmarks.behaviour.mpe TASK --out DIR              mpe/simple_spread, and predators of both
    python -m marl_flow.benchmarks.behaviour.smac train TASK --out DIR       smac/3m, 8m, 2s3z, 5m_vs_6m
    python -m marl_flow.benchmarks.behaviour.smac select TASK --out DIR
    python -m marl_flow.benchmarks.behaviour.mamujoco train TASK --out DIR   mamujoco/2ant, 4ant, 2halfcheetah
    python -m marl_flow.benchmarks.behaviour.mamujoco select TASK --out DIR

Training leaves snapshots of the actor; selecting takes, for each quality, those whose mean return meets the published
one, and writes DIR/<suite>_<task>.safetensors, the file that belongs in datasets/policies/, with its choices as JSON
beside it. mpe selects at once. Training of MPE is by analytic policy gradients through the simulator, of SMAC and
MA-MuJoCo by multi-agent PPO (mappo.py).
"""
