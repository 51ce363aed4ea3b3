"""Harden a model, on one or several processes: the same code as `apdm harden`, as a script for `accelerate launch`.

accelerate launch [--config_file launch/X.yaml] train_apdm.py --config configs/Y.yaml [--key value ...]
"""

import sys

from apdm.cli import console

if __name__ == "__main__":
    console(["harden", *sys.argv[1:]])
