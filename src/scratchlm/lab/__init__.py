"""Many runs: a study file comes in, trained cells, rows.csv and a report that weighs them come out.

spec -> search, cells -> runner (worker, shared) -> rows -> analysis -> report
"""

from scratchlm.lab.spec import Study, read_study

__all__ = ["Study", "read_study"]
