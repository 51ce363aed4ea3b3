"""The main job's door: `accelerate launch train_apdm.py --config configs/X.yaml [--key value ...]`.

The same code as `apdm harden`.
"""

import sys

from apdm.cli import leave, main

if __name__ == "__main__":
    leave(main(["harden", *sys.argv[1:]]))
