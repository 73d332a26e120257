"""`python -m emu_embodied`: the same as the `emu-embodied` command."""

import sys

from emu_embodied.commands import main

sys.exit(main())
