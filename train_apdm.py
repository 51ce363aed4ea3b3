"""The main job's door: `accelerate launch train_apdm.py --config configs/X.yaml [--key value ...]`.

The same code as `apdm harden`.
"""

import sys

from apdm.cli import main

if __name__ == "__main__":
    sys.exit(main(["harden", *sys.argv[1:]]))
