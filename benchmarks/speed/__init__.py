"""How fast the suite is: `python -m marl_flow.benchmarks.speed` (or `make bench`) measures and prints one table.

Each section is a module with `rows()`: the environments of MPE (mpe.py), SMAC (smac.py) and MA-MuJoCo (mamujoco.py)
beside other libraries, the data layer (windows.py) and training (training.py).
"""
