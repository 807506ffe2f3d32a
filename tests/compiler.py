"""What the tests ask of XLA, and so does a process whose floats are compared with theirs."""

import jax

QUICK_COMPILER = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    QUICK_COMPILER += " --xla_cpu_use_fusion_emitters=false"  # the last releases that have both
