"""`sluice study` on this machine's Ray head, on one of its own, or on the cluster that RAY_ADDRESS names."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sluice.services.interrupts import sigterm_interrupts
from sluice.services.progress import Reporter
from sluice.services.run_lock import hold_run
from sluice.services.study.settings import StudyConfig
from sluice.services.submit.head import ensure_token, find_head, start_head

_FAILED = 4


def run_on_cluster(study: StudyConfig) -> int:
    """Run what is left of the study and write its page; returns the exit code.

    Raises:
        RunError: another process works on the study, or a start or a ranker could not be made.
        ClusterError: there is no cluster, and none can be started.
    """
    with (
        sigterm_interrupts(),
        Reporter.for_stream(sys.stdout) as reporter,
        hold_run(study.directory),
        _cluster(reporter),
    ):
        from sluice.services.study.page import write_page
        from sluice.services.study.run import run_study

        failed = run_study(study, reporter)
        for line in failed:
            reporter.line(f"failed: {line}")
        reporter.line(f"report   {write_page(study)}")
    return _FAILED if failed else 0


@contextmanager
def _cluster(reporter: Reporter) -> Iterator[None]:
    """A cluster to work on; a head of our own ends with the study."""
    ensure_token()  # before Ray is imported
    from sluice.cluster import session

    if os.environ.get("RAY_ADDRESS"):
        session.connect_cluster()
        yield
        return
    head = find_head() or start_head(reporter.line)
    try:
        session.connect_cluster(head.address or "auto")
        yield
    finally:
        import ray

        ray.shutdown()
        head.stop()
