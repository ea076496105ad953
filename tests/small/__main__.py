"""`python tests/small run small2026 ...`: the command line, with the study of this folder beside the others."""

import sys
from pathlib import Path

import icldyn.studies

icldyn.studies.__path__.append(str(Path(__file__).with_name("studies")))

from icldyn import launch  # noqa: E402
from icldyn.cli import main  # noqa: E402

launch.ICLDYN = [sys.executable, str(Path(__file__).parent)]
sys.exit(main())
