"""``python -m projgen``."""

import sys

from projgen.cli import main

sys.exit(main())
