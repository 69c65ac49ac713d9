"""Execute one entry of the bench in this process, and print what was measured as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings

from catalogue import entry


def main() -> None:
    """Run the entry that is named on the command line."""
    warnings.simplefilter("ignore")
    fault = entry(sys.argv[1])
    if fault.audit is None:
        raise SystemExit(f"{fault.name} is described from its source; there is nothing to execute")
    start = time.process_time()
    measured = fault.audit()
    seconds = time.process_time() - start
    print(json.dumps({**dataclasses.asdict(measured), "seconds": seconds}))


if __name__ == "__main__":
    main()
