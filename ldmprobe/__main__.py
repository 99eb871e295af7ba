"""``python -m ldmprobe`` is the ``ldmprobe`` command."""

import sys

from ldmprobe.cli import main

sys.exit(main())
