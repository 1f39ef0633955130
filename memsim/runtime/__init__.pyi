from memsim.runtime.capped_run import run as run
from memsim.runtime.run_config import RunConfig as RunConfig
from memsim.runtime.run_config import RunOutcome as RunOutcome
from memsim.runtime.run_config import RunProgress as RunProgress
