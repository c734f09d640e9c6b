"""`python -m resnet_jax SUBCOMMAND` is the same as `resnet-jax SUBCOMMAND`."""

import sys

from resnet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
