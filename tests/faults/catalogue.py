"""The faults that a run survives, and the tests that prove it: the table of docs/reliability.md.

`make faults` runs the tests and counts.
"""

from tests.faults.data_faults import DATA_FAULTS
from tests.faults.hostile import HOSTILE
from tests.faults.process_faults import PROCESS_FAULTS
from tests.faults.run_faults import RUN_FAULTS

FAULTS = (*PROCESS_FAULTS, *RUN_FAULTS, *DATA_FAULTS, *HOSTILE)
